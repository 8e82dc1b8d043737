"""A tiny Qwen2.5-VL with random weights, its processor, and rows with and without images; nothing is downloaded."""

import functools
import random
import string
from pathlib import Path

import torch
import trl
from datasets import Dataset, IterableDataset
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer


PATCH, MERGE = 4, 2  # pixels of a patch; patches of a token, in each direction
SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]


def template(name: str) -> str:
    """A chat template that TRL carries."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the printable characters."""
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
    """The processor of the tiny model: 8 x 8 pixels make a token."""
    size = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 16 * (PATCH * MERGE) ** 2}
    images = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=size)
    return PictureProcessor(images, characters(), chat_template=template("qwen2_5_vl"))


def vision_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Two layers of text, two of vision, with weights large enough that the model has opinions."""
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
