"""
A vision-language student: some rows have images, some have none, and the teacher sees the same pixels.

Two tiny random models of the architecture Qwen2.5-VL are made here, so that nothing is downloaded. Their answers mean
nothing; everything else is as with real models:

    python examples/images.py

With real models, on a GPU, and a folder of images with a metadata.jsonl, whose rows have `file_name` and `prompt`:

    python examples/images.py --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct \
        --teacher Qwen/Qwen2.5-VL-7B-Instruct --dataset_name images/ --steps 50

docs/tools_and_images.md explains it. Needs pillow.
"""

import argparse
import functools
import string
from pathlib import Path

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.preflight.loading import load_named
from fire_opd_trl.preflight.packages import refuse_missing
from fire_opd_trl.trainer.ending import Ending, refusals


PATCH, MERGE = 4, 2  # pixels of a patch; patches of a token, in each direction
SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 200)}


def template(name: str) -> str:
    """Returns a chat template that TRL carries."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def characters() -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are the printable characters."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="?",
        additional_special_tokens=SPECIAL[2:],
        padding_side="left",
    )


class PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor without videos, which need torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def processor() -> PictureProcessor:
    """Returns the processor of the tiny models: 8 x 8 pixels make a token."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # needs pillow

    size = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 16 * (PATCH * MERGE) ** 2}
    images = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=size)
    return PictureProcessor(images, characters(), chat_template=template("qwen2_5_vl"))


def vision_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Returns two layers of text, two of vision, with random weights so large that the model has opinions."""
    torch.manual_seed(seed)
    ids = dict(zip(("image_token_id", "video_token_id"), characters().convert_tokens_to_ids(SPECIAL[5:]), strict=True))
    ids["vision_start_token_id"], ids["vision_end_token_id"] = characters().convert_tokens_to_ids(SPECIAL[3:5])
    text = {
        "vocab_size": len(characters()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "window_size": 2 * PATCH * MERGE,
        "fullatt_block_indexes": [1], "initializer_range": 0.2,
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)).eval()


def tiny_rows(count: int) -> list[dict]:
    """Returns rows of which every third has no image, and the others one or two, of different sizes."""
    from PIL import Image

    rows = []
    for number in range(count):
        colours = [list(COLOURS)[(number + place) % 3] for place in range(number % 3)]
        sizes = [(8 * (1 + number % 4), 8 * (1 + place)) for place in range(len(colours))]
        pictures = [Image.new("RGB", size, COLOURS[name]) for name, size in zip(colours, sizes, strict=True)]
        asked = "Which colours do you see?" if pictures else f"What is {number} + 1?"
        rows.append({"prompt": [{"role": "user", "content": asked}], "images": pictures})
    return rows


def loaded_rows(name: str) -> Dataset:
    """Returns the rows of a dataset of images: those of a folder or of the Hub, with `image` and a text `prompt`."""
    splits = load_named(name, None, streaming=False)
    rows = splits["train"] if "train" in splits else splits[next(iter(splits))]
    if missing := {"image", "prompt"} - set(rows.column_names):
        raise ValueError(
            f"--dataset_name {name} has no column {' and no '.join(sorted(missing))}; it has: "
            f"{', '.join(rows.column_names)}. A folder of images needs a metadata.jsonl, whose rows have `file_name` "
            "and `prompt`."
        )

    def as_chats(batch: dict) -> dict:
        return {
            "prompt": [[{"role": "user", "content": text}] for text in batch["prompt"]],
            "images": [[] if image is None else [image.convert("RGB")] for image in batch["image"]],
        }

    return rows.map(as_chats, batched=True, batch_size=32, remove_columns=rows.column_names)


def main(argv: list[str] | None = None) -> FiReOPDTrainer:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model_name_or_path", help="Student. By default a tiny random one is made here.")
    parser.add_argument("--teacher", help="Teacher. It is needed with --model_name_or_path.")
    parser.add_argument("--dataset_name", help="Folder of images with a metadata.jsonl, or a dataset on the Hub.")
    parser.add_argument("--method", default="fire", help="Recipe of fire_opd_trl. Default: %(default)s.")
    parser.add_argument("--steps", type=int, default=2, help="Optimizer steps. Default: %(default)s.")
    parser.add_argument("--rows", type=int, default=8, help="Answers of a step. Default: %(default)s.")
    parser.add_argument("--use_vllm", action="store_true", help="Sample with vLLM, in the same process.")
    parser.add_argument("--use_cpu", action="store_true", help="Train on the CPU, as the tiny models do.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/images"), help="Default: %(default)s.")
    options = parser.parse_args(argv)
    real = options.model_name_or_path is not None
    if real != (options.teacher is not None):
        parser.error("give both --model_name_or_path and --teacher, or neither of them")
    if options.use_vllm and not real:
        parser.error("--use_vllm has no effect on the tiny models; give --model_name_or_path and --teacher")
    if options.rows < 4 or options.rows % 4:
        parser.error(f"--rows {options.rows}: give a multiple of 4, the rows of a forward")
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: give at least 1")

    name, on_cpu = options.dataset_name, options.use_cpu or not real
    with refusals():  # what you can mend is said in a sentence, before a model is made or loaded
        refuse_missing({"a row with images": ("PIL",)})
        args = FiReOPDConfig(
            str(options.output_dir),
            method=options.method,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=options.rows // 4,
            max_completion_length=256 if real else 16,
            learning_rate=1e-6 if real else 1e-3,
            use_vllm=options.use_vllm,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            allow_guessing_teacher=not real,  # it has random weights
            log_rollouts=8,
            logging_steps=1,
            save_strategy="no",
        )
        options.output_dir.mkdir(parents=True, exist_ok=True)
        rows = loaded_rows(name) if name else Dataset.from_list(tiny_rows(options.steps * options.rows))
        if real:
            student, teacher, reader = options.model_name_or_path, options.teacher, None
        else:
            student, teacher, reader = vision_model(0), vision_model(1), processor()
        trainer = FiReOPDTrainer(
            model=student, teacher_model=teacher, args=args, train_dataset=rows, processing_class=reader
        )
    trainer.train()
    trainer.save_model()
    print(f"\nThe student and its processor are in {options.output_dir}. Of the last step:")
    (last,) = [log for log in trainer.state.log_history if log.get("step") == options.steps and "grad_norm" in log]
    for name in ("fire/reverse_kl", "fire/kept_rows", "fire/teacher_logp", "completions/mean_length"):
        print(f"{name:<24}{last[name]:>10.4f}")
    return trainer


if __name__ == "__main__":
    with Ending():
        main()
