"""Rows with images: every number is that of the row alone, on any layout, also where a rank has no image at all."""

import pytest
import torch
from datasets import IterableDataset
from support.layouts import assert_same_records
from support.trainers import furthest, logs_of
from support.vision import characters, processor, rows_with_images, vision_model, vision_trainer
from support.worker import recorded, trained
from trl.data_utils import prepare_multimodal_messages


COUNTS = [1, 0, 2, 0, 0, 0, 0, 0]  # images of each row: on two ranks the second has none
CASE = {"images": COUNTS, "batch": 8, "accumulation": 1}


def alone(model, row: dict, completion_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of a row's completion, by the model's own forward of this row and no other."""
    read = processor()
    text = read.apply_chat_template(
        prepare_multimodal_messages(row["prompt"], row["images"]), add_generation_prompt=True
    )
    inputs = read(images=row["images"] or None, text=[text], return_tensors="pt")
    count, device = len(completion_ids), inputs["input_ids"].device
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completion_ids.unsqueeze(0)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros(1, count, dtype=types.dtype, device=device)], dim=1)
    with torch.no_grad():
        logp = model.eval()(**inputs).logits[0, -count - 1 : -1].log_softmax(dim=-1)
    return logp.gather(1, completion_ids.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(dim=1)


@pytest.mark.parametrize("budget", [60, 200, 10**6])  # a row to a forward; some with and some without images; one
def test_every_row_is_scored_as_it_is_alone(budget, tmp_path):
    rows = rows_with_images([1, 0, 2, 0, 1])
    trainer = vision_trainer(tmp_path, [1, 0, 2, 0, 1], sample=True, scoring_token_budget=budget)
    seen, scored = {}, trainer.window_scorer.scored

    def watched(batch):
        seen.update(batch=batch, scores=scored(batch))
        return seen["scores"]

    trainer.window_scorer.scored = watched
    trainer.model.train()
    trainer._generate_and_score_completions(rows)
    batch, scores = seen["batch"], seen["scores"]
    values = {
        "student": (trainer.model, scores.student_logp_BT, scores.student_entropy_BT),
        "teacher": (trainer.teachers["teacher"].module, scores.teacher_logp_BT, scores.teacher_entropy_BT),
    }
    assert float((scores.student_logp_BT - scores.teacher_logp_BT).abs().max()) > 0.1  # they are two models
    for number, row in enumerate(rows):
        count = int(batch["completion_mask"][number].sum())
        for model, logp_BT, entropy_BT in values.values():
            logp, entropy = alone(model, row, batch["completion_ids"][number, :count])
            torch.testing.assert_close(logp_BT[number, :count], logp, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(entropy_BT[number, :count], entropy, atol=2e-5, rtol=1e-5)


def test_an_image_matters_to_its_row():
    """Else the test above would hold for a model that never looks."""
    model, (row, other), ids = vision_model(0), rows_with_images([1, 1]), torch.arange(20, 26)
    apart = alone(model, row, ids)[0] - alone(model, {**row, "images": other["images"]}, ids)[0]
    assert float(apart.abs().max()) > 0.01


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained({**CASE, "config": {"log_rollouts": 8}}, str(tmp_path_factory.mktemp("whole")))


def test_a_step_with_images_trains_the_whole_model(whole):
    start = vision_model(0).state_dict()
    moved = {name for name, value in whole.model.state_dict().items() if not torch.equal(value, start[name])}
    assert all(any(part in name for name in moved) for part in ("visual.patch_embed", "language_model", "lm_head"))
    (log,) = logs_of(whole)
    assert log["fire/kept_rows"] == 8 and log["grad_norm"] > 0
    records = recorded(whole.args.output_dir)
    assert [row["prompt"].count("<|vision_start|>") for row in records] == COUNTS
    (part,) = whole._buffered_inputs
    trained = {tuple(ids[mask.bool()].tolist()): advantage[mask.bool()].tolist() for ids, mask, advantage in zip(
        part["completion_ids"], part["completion_mask"], part["advantages"], strict=True)}  # fmt: skip
    assert [row["advantage"] for row in records] == [trained[tuple(row["token_ids"])] for row in records]


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
def test_micro_batches_with_and_without_images_take_the_same_step(batch, accumulation, whole, tmp_path):
    parts = trained({**CASE, "batch": batch, "accumulation": accumulation}, str(tmp_path))
    assert furthest(parts.model.state_dict(), whole.model.state_dict()) < 1e-6
    assert accumulation < 8 or sum("pixel_values" in part for part in parts._buffered_inputs) == 2


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["ddp", "fsdp2", "zero3"])
def test_a_rank_without_any_image_takes_the_same_step(launcher, whole, on_two_ranks):
    """The head is not tied to the embeddings: under FSDP2 it is a unit of its own, whose gradient must be reduced."""
    config = {"ddp_find_unused_parameters": False, "log_multimodal": True, "log_rollouts": 8}
    two = on_two_ranks(launcher, {**CASE, "batch": 2, "accumulation": 2, "config": config})
    assert furthest(two["parameters"], whole.model.state_dict()) < 1e-6
    assert_same_records(recorded(whole.args.output_dir), two["records"])


@pytest.mark.launch
def test_a_window_without_any_image_takes_the_same_step_on_two_ranks(on_two_ranks, tmp_path):
    """The vision tower has no gradient then, for which DDP must not wait: gradients would stay those of each rank."""
    case = {"images": [0] * 4, "config": {"gradient_checkpointing": True}}
    one = trained({**case, "batch": 4, "accumulation": 1}, str(tmp_path / "one"))
    two = on_two_ranks("ddp", {**case, "batch": 2, "accumulation": 1})
    assert furthest(two["parameters"], one.model.state_dict()) < 1e-6


@pytest.mark.parametrize("image", [[], None])
def test_rows_may_say_in_any_way_that_they_have_no_image(image, tmp_path):
    rows = [{**row, "images": row["images"] or image} for row in rows_with_images([1, 0])]
    trainer = vision_trainer(tmp_path, [1, 0], sample=True)
    trainer.model.train()
    for window in (rows, rows[1:] * 2):  # the second has no image at all
        batch = trainer._generate_and_score_completions(window)
        assert ("pixel_values" in batch) == (window is rows)
    assert [len(of_row) for of_row in trainer._logs["images"]] == [1, 0, 0, 0][-len(trainer._logs["images"]) :]


def test_a_stream_of_chats_is_read_with_the_template_of_the_processor_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(characters(), "chat_template", None)
    rows = [{"prompt": row["prompt"]} for row in rows_with_images([0, 0])]
    trainer = vision_trainer(tmp_path, [0, 0], True, IterableDataset.from_generator(lambda: iter(rows)))
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_stream_with_images_and_a_prompt_for_the_teacher_alone_is_refused(tmp_path):
    rows = [{**row, "teacher_prompt": "1="} for row in rows_with_images([1, 0])]
    trainer = vision_trainer(tmp_path, [1, 0], rows=IterableDataset.from_generator(lambda: iter(rows)))
    with pytest.raises(ValueError, match="A window has images, and prompts for the teacher alone.*Remove teacher_"):
        trainer.train()
