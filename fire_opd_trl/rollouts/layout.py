"""A window in TRL's layout: its keys and their axes, and rows taken out of it, trimmed."""

from typing import Any

import torch
from trl.trainer.utils import pad, split_pixel_values_by_grid, unsplit_pixel_values_by_grid


PER_TOKEN = (
    "completion_ids",
    "train_mask",
    "advantages",
    "old_per_token_logps",
    "ref_per_token_logps",
    "divergence",
)
PER_ROW = ("scale", "teacher_number")
# The tensors of a batch in TRL's layout: prompts end, and completions begin, in one column.
PROMPT_KEYS = ("prompt_ids", "prompt_mask")
COMPLETION_KEYS = ("completion_mask", *PER_TOKEN)
WHOLE_KEYS = ("token_type_ids", "mm_token_type_ids")
VISION_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "image_position_ids",
)
COMPANION = "companion"  # a row with images that a forward without any runs beside its rows (see `with_companion`)
RAGGED_KEYS = ("teacher_hidden", "top_ids", "top_logps")  # one tensor a row, of the row's own length
ROW_KEYS = (*PER_ROW, *RAGGED_KEYS)
Batch = dict[str, Any]


def lengths(batch: Batch) -> list[int]:
    """
    Returns the tokens of each row, prompt and completion. With images the rows stand in TRL's rectangle, where each
    completion begins behind the longest prompt of all.
    """
    prompt_B = batch["prompt_mask"].sum(dim=1)
    prompt_B = prompt_B.max().expand(len(prompt_B)) if model_kwargs(batch) else prompt_B
    return (prompt_B + batch["completion_mask"].sum(dim=1)).tolist()


def model_kwargs(batch: Batch) -> dict[str, Any]:
    """Returns what a forward needs beside ids and mask: images and token types; nothing where no row has an image."""
    return {key: batch[key] for key in (*WHOLE_KEYS, *VISION_KEYS) if key in batch}


def take(batch: Batch, rows: list[int], multiple: int = 1) -> Batch:
    """
    Takes some rows out of a batch, trimmed to their own longest prompt and completion.

    Args:
        batch (`dict`): Tensors in TRL's layout; keys that a forward or the loss does not need are left out.
        rows (`list[int]`): The rows, at least one.
        multiple (`int`): Round both lengths up to a multiple of this where the batch is long enough.

    Returns:
        `dict`: The same keys for these rows; without those of images if none of them has any, since no model takes
        empty ones.
    """
    width_P, width_C = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    index = torch.tensor(rows, device=batch["prompt_ids"].device)
    masks = batch["prompt_mask"][index], batch["completion_mask"][index]
    longest = torch.stack([mask.sum(dim=1).max() for mask in masks]).tolist()
    prompt, completion = (
        min(width, max(1, round_up(length, multiple)))
        for length, width in zip(longest, (width_P, width_C), strict=True)
    )
    split = split_pixel_values_by_grid(batch)
    taken: Batch = {}
    for key, value in split.items():
        if key in PROMPT_KEYS:
            taken[key] = value[index, width_P - prompt :]
        elif key in COMPLETION_KEYS:
            taken[key] = value[index, :completion]
        elif key in WHOLE_KEYS:
            taken[key] = value[index, width_P - prompt : width_P + completion]
        elif (key in VISION_KEYS or key in ROW_KEYS) and value is not None:
            taken[key] = [value[row] for row in rows] if isinstance(value, list) else value[index]
    pictured = any(taken.get("num_images") or ())
    if "num_images" in batch and not pictured:
        taken = {key: value for key, value in taken.items() if key not in (*WHOLE_KEYS, *VISION_KEYS)}
    if COMPANION in batch and not pictured:
        taken[COMPANION] = batch[COMPANION]
    return unsplit_pixel_values_by_grid(taken)


def with_prompts(batch: Batch, prompts: list[list[int] | None], pad_token_id: int) -> Batch:
    """Puts the same completions behind other prompts; a row without another prompt keeps its own."""
    if all(ids is None for ids in prompts):
        return batch
    device = batch["prompt_ids"].device
    own = [ids[mask.bool()] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    rows = [mine if ids is None else torch.tensor(ids, device=device) for mine, ids in zip(own, prompts, strict=True)]
    other = {key: value for key, value in batch.items() if key not in (*WHOLE_KEYS, *VISION_KEYS)}
    return {
        **other,
        "prompt_ids": pad(rows, padding_value=pad_token_id, padding_side="left"),
        "prompt_mask": pad([torch.ones_like(ids) for ids in rows], padding_value=0, padding_side="left"),
    }


def round_up(length: int, multiple: int) -> int:
    """Rounds a length up to a multiple of `multiple`."""
    return -(-length // multiple) * multiple
