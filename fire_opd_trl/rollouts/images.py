"""Rows with images beside rows without: what TRL and the processors cannot take, and what every rank must run."""

from typing import Any

import torch

from ..stages import World
from .exchange import from_bytes, to_bytes
from .layout import COMPANION, PROMPT_KEYS, VISION_KEYS, WHOLE_KEYS, Batch, lengths, model_kwargs, take


def lists_of_images(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The trainer calls this on a rank's rows of the dataset before TRL reads them. TRL knows a window without images by
    its empty lists; `None` for the images of a row, or for each row's `image`, would reach the processor.
    """
    if "images" in rows[0]:
        return [{**row, "images": row.get("images") or []} for row in rows]
    if "image" in rows[0] and any(row.get("image") is None for row in rows):
        return [{**row, "images": images} for row, images in zip(rows, images_of(rows), strict=True)]
    return rows


def images_of(rows: list[dict[str, Any]]) -> list[list]:
    """Returns the images of each row of the dataset, for the log of a rollout that reports none."""
    return [list(row.get("images") or [image for image in [row.get("image")] if image is not None]) for row in rows]


def without_lost_images(batch: Batch, placeholder: int | None, pad_token_id: int) -> Batch:
    """
    The trainer calls this on a window as TRL hands it on. Where the image tokens of one row do not match its images,
    TRL drops the images of all rows. What a row with image tokens then says was never sampled: it does not train, and
    its image tokens become padding, since a model would look for their images.
    """
    if "mm_token_type_ids" not in batch or "pixel_values" in batch:
        return batch
    rest = {key: value for key, value in batch.items() if key not in (*WHOLE_KEYS, *VISION_KEYS)}
    lost_B = torch.zeros(len(batch["prompt_ids"]), dtype=torch.bool, device=batch["prompt_ids"].device)
    for key in ("prompt_ids", "completion_ids"):
        image_BL = batch[key] == (-1 if placeholder is None else placeholder)
        rest[key] = batch[key].masked_fill(image_BL, pad_token_id)
        lost_B |= image_BL.any(dim=1)
    if "tool_mask" in batch:
        rest["tool_mask"] = batch["tool_mask"] * ~lost_B.unsqueeze(1)
    return rest


def with_companion(batch: Batch, world: World) -> Batch:
    """
    The trainer calls this on a window before models read it. Ranks whose models are sharded, or whose gradients are
    averaged, must run the same modules in every forward: the vision tower in all of them or in none. If any rank has
    an image, the batch of every rank gets a row with images, of its own or of another rank, to run beside rows that
    have none. It is never trained on; only the router's loss of a mixture of experts counts its tokens.

    Returns:
        `dict`: The batch, with the key `COMPANION` if the window has images and there are several ranks.
    """
    if world.ranks == 1:
        return batch
    device = batch["prompt_ids"].device
    images_B = torch.tensor(batch.get("num_images") or [0] * len(batch["prompt_ids"]))
    pictured_N = world.gather(images_B.any().reshape(1).to(device))
    if not pictured_N.any():
        return batch
    own: Batch = {}
    if images_B.any():
        length_B, rows = lengths(batch), images_B.nonzero().flatten().tolist()
        own = one_line(batch, min(rows, key=lambda row: length_B[row]))
    if pictured_N.all():
        return {**batch, COMPANION: own}
    donor, nothing = int(pictured_N.nonzero()[0]), torch.empty(0, dtype=torch.uint8)
    parcel = to_bytes(own) if world.rank == donor else nothing
    arrived = world.swap([nothing if has else parcel for has in pictured_N.tolist()])[donor]
    return {**batch, COMPANION: own or from_bytes(arrived, device)}


def one_line(batch: Batch, row: int) -> Batch:
    """Returns a row as a line of ids, all of which the model reads, with its images and token types."""
    read = (*PROMPT_KEYS, "completion_ids", "completion_mask", *WHOLE_KEYS, *VISION_KEYS)
    part = take({key: batch[key] for key in read if key in batch}, [row])
    ids, mask = (torch.cat([part[f"prompt_{of}"], part[f"completion_{of}"]], dim=1) for of in ("ids", "mask"))
    return {"ids": ids, "mask": mask, **model_kwargs(part)}
