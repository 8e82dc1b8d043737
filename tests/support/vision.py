"""A tiny Qwen2.5-VL with random weights, its processor, and rows with and without images; nothing is downloaded."""

import random

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


_example = load_module(packaged_folder("examples") / "images.py")  # it makes the models, and stands alone
PATCH, MERGE, SPECIAL = _example.PATCH, _example.MERGE, _example.SPECIAL
template, characters, processor, vision_model = (
    _example.template, _example.characters, _example.processor, _example.vision_model
)  # fmt: skip


def picture(seed: int) -> Image.Image:
    """A picture of 1 to 4 tokens in each direction."""
    width, height = ((1 + seed % 4) * PATCH * MERGE, (1 + seed // 4 % 4) * PATCH * MERGE)
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def rows_with_images(counts: list[int]) -> list[dict]:
    """Rows with so many pictures each, no two alike."""
    numbers = iter(range(10**6))
    return [
        {
            "prompt": [{"role": "user", "content": f"{row}: what is it? {'ab' * (row % 3)}"}],
            "images": [picture(next(numbers)) for _ in range(count)],
        }
        for row, count in enumerate(counts)
    ]


def frozen_rollout(prompts: list[list[dict]], trainer) -> dict:
    """A completion of 3 to 8 characters that depends on the prompt alone, its prompt as the processor reads it."""
    read, completions = processor(), []
    chats = [prepare_multimodal_messages(prompt) for prompt in prompts]
    for prompt in chats:
        text = prompt[-1]["content"][-1]["text"]
        draw = random.Random(text)
        completions.append([draw.randrange(len(SPECIAL), len(characters())) for _ in range(draw.randint(3, 8))])
    rendered = [read.apply_chat_template([chat], tokenize=True, add_generation_prompt=True)[0] for chat in chats]
    return {"prompt_ids": rendered, "completion_ids": completions, "logprobs": None}


def vision_trainer(folder, counts: list[int], sample: bool = False, rows=None, **config):
    """A trainer of a tiny student on these rows (a list or a stream); its teacher is another tiny model."""
    settings = {
        "method": "fire", "drop_fraction": 0.0, "per_device_train_batch_size": len(counts), "max_steps": 1,
        "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 1e6, "lr_scheduler_type": "constant",
        "max_completion_length": 8, "gradient_checkpointing": False, "shuffle_dataset": False, "save_strategy": "no",
        "logging_steps": 1, "preflight": False, "disable_tqdm": True, "bf16": False, "use_cpu": True, "seed": 3,
        "ddp_timeout": 20, "scoring_token_budget": 120, "allow_guessing_teacher": True,
    }  # fmt: skip
    if not isinstance(rows, IterableDataset):
        rows = Dataset.from_list(rows or rows_with_images(counts))
    return FiReOPDTrainer(
        model=vision_model(0),
        teacher_model=vision_model(1),
        args=FiReOPDConfig(str(folder), **{**settings, **config}),
        train_dataset=rows,
        processing_class=processor(),
        rollout_func=None if sample else frozen_rollout,
    )
