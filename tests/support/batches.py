"""Batches of ragged rows as TRL hands them on, and windows of them over several ranks."""

import numpy as np
import torch


def ragged(seed: int, batch: int, taken: int | None = None) -> tuple[list[int], list[int], list[int]]:
    """Some rows of a batch, and heavy-tailed prompt and completion lengths of all its rows."""
    random = np.random.default_rng(seed)
    rows = sorted(random.choice(batch, batch if taken is None else taken, replace=False).tolist())
    return rows, random.integers(1, 30, batch).tolist(), (1 + random.exponential(20, batch)).astype(int).tolist()


def literal_batch() -> dict:
    return {
        "prompt_ids": torch.tensor([[0, 0, 11, 12], [0, 21, 22, 23], [0, 0, 0, 31]]),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]),
        "completion_ids": torch.tensor([[13, 14, 15, 0, 0], [24, 0, 0, 0, 0], [32, 33, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]),
        "advantages": torch.tensor([[1.3, 1.4, 1.5, 0, 0], [2.4, 0, 0, 0, 0], [3.2, 3.3, 0, 0, 0]]),
        "token_type_ids": torch.tensor(
            [[9, 9, 1, 2, 3, 4, 5, 9, 9], [9, 1, 2, 3, 4] + [9] * 4, [9, 9, 9, 1, 2, 3] + [9] * 3]
        ),
        "scale": torch.tensor([0.1, 0.2, 0.3]),
        "rewards": torch.tensor([7.0, 8.0, 9.0]),
    }


def random_batch(seed: int, rows: int, pad_prompt: int = 2, pad_completion: int = 3) -> dict:
    """A batch whose ids all differ, with more padding than any row needs."""
    _, prompt_B, completion_B = ragged(seed, rows)
    width_P, width_C = max(prompt_B) + pad_prompt, max(completion_B) + pad_completion
    prompt_mask = torch.arange(width_P) >= width_P - torch.tensor(prompt_B).unsqueeze(1)
    completion_mask = torch.arange(width_C) < torch.tensor(completion_B).unsqueeze(1)
    ids = 1 + torch.arange(rows * (width_P + width_C)).reshape(rows, -1) + 10**6 * seed
    return {
        "prompt_ids": ids[:, :width_P] * prompt_mask,
        "prompt_mask": prompt_mask.long(),
        "completion_ids": ids[:, width_P:] * completion_mask,
        "completion_mask": completion_mask.long(),
        "train_mask": completion_mask,
    }


def tokens_of(batch: dict, row: int) -> tuple[int, ...]:
    """A row as the model reads it, without padding."""
    ids = torch.cat([batch["prompt_ids"][row], batch["completion_ids"][row]])
    mask = torch.cat([batch["prompt_mask"][row], batch["completion_mask"][row]])
    return tuple(ids[mask.bool()].tolist())


SIZES = [3, 11, 1, 9]


def window_of(sizes: list[int]) -> tuple[list[dict], torch.Tensor]:
    """One batch for each rank, of different widths, and who survives; none on the third rank."""
    parts = [random_batch(seed, rows) for seed, rows in enumerate(sizes)]
    keep_N = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(0)) < 0.7
    keep_N[sum(sizes[:2]) : sum(sizes[:3])] = False
    for part, keep_B in zip(parts, keep_N.split(sizes), strict=True):
        part["keep"] = keep_B
    return parts, keep_N
