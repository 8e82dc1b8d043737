"""Rows of a window change their rank: their ids move, and what is known of each token, never weights or gradients."""

import io
from typing import Any

import torch

from ..stages import World
from .layout import PER_ROW, PER_TOKEN


def exchange_rows(batch: dict, plan: list[list[int]], world: World) -> tuple[dict, dict[int, int]]:
    """
    `micro_batches` calls this on every rank, so that each row goes to the rank that trains on it.

    Args:
        batch (`dict`): This rank's rows in TRL's layout, without images or whole distributions.
        plan (`list[list[int]]`): For each rank the rows that it trains on, numbered among the rows of all ranks. It
            is the same on every rank.
        world ([`World`]): All ranks.

    Returns:
        `dict`, `dict[int, int]`: The rows that the plan gives this rank, in the same layout, and the place of each of
        them in it.
    """
    count = len(batch["prompt_ids"])
    own = world.local_slice(count)
    sizes = world.gather(torch.tensor([count], device=batch["prompt_ids"].device)).tolist()
    parcels = [pack_rows(batch, [row - own.start for row in rows if own.start <= row < own.stop]) for rows in plan]
    arrived = world.swap(parcels)
    mine, order, start = plan[world.rank], [], 0
    for size in sizes:
        order += [row for row in mine if start <= row < start + size]
        start += size
    return unpack_rows(arrived, batch), {row: place for place, row in enumerate(order)}


def pack_rows(batch: dict, rows: list[int]) -> torch.Tensor:
    """Returns the rows as bytes, without their padding."""
    device = batch["prompt_ids"].device
    index = torch.tensor(rows, dtype=torch.long, device=device)
    prompt_BP, completion_BC = batch["prompt_mask"][index].bool(), batch["completion_mask"][index].bool()
    prompt_BP[:, -1] = True  # an empty prompt is one padding token (see `rows_in_lines`)
    content = {
        "prompt_lengths": prompt_BP.sum(dim=1),
        "completion_lengths": completion_BC.sum(dim=1),
        "prompt_ids": batch["prompt_ids"][index][prompt_BP].int(),
    }
    for key in batch:
        if key in PER_TOKEN:
            content[key] = batch[key][index][completion_BC]
        elif key in PER_ROW:
            content[key] = batch[key][index]
    content["completion_ids"] = content["completion_ids"].int()
    return to_bytes(content) if rows else torch.empty(0, dtype=torch.uint8)


def unpack_rows(parcels: list[torch.Tensor], like: dict) -> dict:
    """Returns the rows of several parcels, padded to the longest; an empty dict where every parcel is empty."""
    device = like["prompt_ids"].device
    contents = [from_bytes(parcel, device) for parcel in parcels if len(parcel)]
    if not contents:
        return {}
    flat = {key: torch.cat([content[key] for content in contents]) for key in contents[0]}
    prompt_B, completion_B = flat.pop("prompt_lengths"), flat.pop("completion_lengths")
    width_P, width_C = int(prompt_B.max()), int(completion_B.max())
    prompt_BP = torch.arange(width_P, device=device) >= width_P - prompt_B.unsqueeze(1)
    completion_BC = torch.arange(width_C, device=device) < completion_B.unsqueeze(1)
    batch: dict[str, Any] = {"prompt_mask": prompt_BP.to(like["prompt_mask"].dtype)}
    batch["completion_mask"] = completion_BC.to(like["completion_mask"].dtype)
    for key, values in flat.items():
        if key in PER_ROW:
            batch[key] = values
        else:
            mask = prompt_BP if key == "prompt_ids" else completion_BC
            values = values.to(like[key].dtype)
            batch[key] = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return batch


def to_bytes(record: dict[str, Any]) -> torch.Tensor:
    """Returns tensors and lists as a tensor of bytes."""
    buffer = io.BytesIO()
    torch.save({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in record.items()}, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def from_bytes(parcel: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Returns what [`to_bytes`] was given, on this device."""
    return torch.load(io.BytesIO(parcel.cpu().numpy().tobytes()), map_location=device, weights_only=True)
