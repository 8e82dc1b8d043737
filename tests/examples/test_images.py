"""A tiny vision-language student takes two steps on rows with and without images; its teacher sees the same pixels."""

import json
import sys

import pytest
import torch
from PIL import Image
from support.commands import script_refusal
from support.trainers import logs_of
from support.worker import recorded
from transformers import AutoModelForImageTextToText

from fire_opd_trl.preflight.packaged import load_module, packaged_folder


@pytest.fixture(scope="module")
def example():
    return load_module(packaged_folder("examples") / "images.py")


def pictures_of(pixels: torch.Tensor, grids: torch.Tensor) -> list[tuple]:
    """Each picture of a forward: its size in patches, and its mean."""
    parts = pixels.split(grids.prod(dim=1).tolist())
    return [(*grid, round(part.mean().item(), 3)) for grid, part in zip(grids.tolist(), parts, strict=True)]


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """The trainer after two steps of 8 rows, the pictures that its teacher was shown, and the folder."""
    folder, seen = tmp_path_factory.mktemp("images"), []
    make = example.vision_model

    def watched(seed):
        model = make(seed)
        if seed == 1:  # the teacher
            model.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append((kwargs.get("pixel_values"), kwargs.get("image_grid_thw"))),
                with_kwargs=True,
            )
        return model

    example.vision_model = watched
    try:
        trainer = example.main(["--output_dir", str(folder)])
    finally:
        example.vision_model = make
    return trainer, [pair for pair in seen if pair[0] is not None], folder


def test_two_steps_train_on_rows_with_and_without_images(example, trained):
    trainer, _, folder = trained
    assert [len(row["images"]) for row in example.tiny_rows(6)] == [0, 1, 2, 0, 1, 2]
    logs = logs_of(trainer)
    assert len(logs) == 2 and all(log["fire/rows"] == 8 and log["fire/kept_rows"] == 7 for log in logs)
    assert all(log["grad_norm"] > 0 and log["fire/reverse_kl"] > 0 for log in logs)
    prompts = [record["prompt"] for record in recorded(folder)]
    assert len(prompts) == 16 and {prompt.count("<|vision_start|>") for prompt in prompts} == {0, 1, 2}
    before = example.vision_model(0).state_dict()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("visual" in name for name in moved) and any("language_model" in name for name in moved)


def test_the_teacher_sees_the_pixels_of_every_row_once(example, trained):
    _, seen, _ = trained
    shown = [picture for pixels, grids in seen for picture in pictures_of(pixels, grids)]
    reader, expected = example.processor(), []
    for row in example.tiny_rows(16):
        if row["images"]:
            read = reader.image_processor(row["images"], return_tensors="pt")
            expected += pictures_of(read["pixel_values"], read["image_grid_thw"])
    assert sorted(shown) == sorted(expected) and len(set(expected)) > 3


def test_the_saved_student_and_its_processor_load_again(example, trained):
    trainer, _, folder = trained
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    reader = example.PictureProcessor.from_pretrained(folder)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
    text = reader.apply_chat_template(chat, add_generation_prompt=True)
    inputs = reader(text=[text], images=[Image.new("RGB", (16, 16))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_a_folder_of_images_becomes_rows(example, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one", "two"):
        Image.new("L", (16, 8)).save(folder / f"{name}.png")
    lines = [{"file_name": f"{name}.png", "prompt": f"What is {name}?"} for name in ("one", "two")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = example.loaded_rows(str(folder))
    assert [row["prompt"][0]["content"] for row in rows] == ["What is one?", "What is two?"]
    assert all(image.mode == "RGB" and image.size == (16, 8) for row in rows for image in row["images"])
    lines = [{"file_name": "one.png", "text": "x"}, {"file_name": "two.png", "text": "x"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="has no column prompt; it has: image, text. A folder of images needs a meta"):
        example.loaded_rows(str(folder))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--teacher", "teacher"], "give both --model_name_or_path and --teacher"),
        (["--rows", "0"], "--rows 0: give a multiple of 4"),
        (["--steps", "-1"], "--steps -1: give at least 1"),
        (["--use_vllm"], "--use_vllm has no effect on the tiny models"),
        (["--method", "fir"], "method='fir' is refused."),
        (["--dataset_name", "nowhere/"], "dataset_name='nowhere/': no such file or folder"),
        (["--dataset_name", "."], "dataset_name='.' could not be read"),
        (["--dataset_name", "pictures"], "pictures has no column prompt; it has: image. A folder of images needs a"),
        (["--model_name_or_path", "nowhere/", "--teacher", "nowhere/", "--use_cpu"], "'nowhere/' could not be loaded"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_made(example, tmp_path, capsys, monkeypatch, argv, said):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(example, "vision_model", pytest.fail)
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    if "pictures" in argv:
        Image.new("L", (8, 8)).save("pictures/one.png")
    text = script_refusal(example.main, argv, capsys)
    assert said in text and "\n" not in text


def test_without_pillow_it_says_what_to_install(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)  # Python then finds none
    text = script_refusal(example.main, ["--output_dir", str(tmp_path)], capsys)
    assert text.endswith("needs the package PIL, which is not installed. Run: pip install pillow")
