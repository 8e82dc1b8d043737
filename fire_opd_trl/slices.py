"""Which surviving rows go into which micro-batch: short with short, long with long, as many slices on every rank."""

import torch

from .stages import uniform_hash


def padded_tokens(rows: list[int], prompt_B: list[int], completion_B: list[int]) -> int:
    """Tokens of the rectangle that holds these rows: prompts end, and completions begin, in one column."""
    return len(rows) * (max(prompt_B[row] for row in rows) + max(completion_B[row] for row in rows))


def cuts_within(rows: list[int], prompt_B: list[int], completion_B: list[int], limit: int) -> list[list[int]]:
    """The rows, in their order, cut greedily into runs of at most `limit` padded tokens (or of one row)."""
    cuts: list[list[int]] = []
    prompt = completion = 0
    for row in rows:
        prompt, completion = max(prompt, prompt_B[row]), max(completion, completion_B[row])
        if cuts and (len(cuts[-1]) + 1) * (prompt + completion) <= limit:
            cuts[-1].append(row)
        else:
            cuts.append([row])
            prompt, completion = prompt_B[row], completion_B[row]
    return cuts


def longest_first(rows: list[int], prompt_B: list[int], completion_B: list[int]) -> list[int]:
    """Rows by falling length, ties by row: neighbours need little padding, and memory peaks at the first slice."""
    return sorted(rows, key=lambda row: (-completion_B[row], -prompt_B[row], row))


def slices(rows: list[int], prompt_B: list[int], completion_B: list[int], count: int) -> list[list[int]]:
    """
    Cut the rows, sorted by length, into `count` runs so that the largest padded run is as small as it can be.

    Args:
        rows (`list[int]`): The rows to place.
        prompt_B (`list[int]`): Prompt length of every row of the batch.
        completion_B (`list[int]`): Completion length of every row of the batch.
        count (`int`): Number of slices, fixed by the training loop and equal on all ranks.

    Returns:
        `list[list[int]]`: Exactly `count` lists, largest rows first; each row stands in one of them; the last ones are
        empty where there are fewer rows than slices.
    """
    rows = longest_first(rows, prompt_B, completion_B)
    low, high = 0, padded_tokens(rows, prompt_B, completion_B) if rows else 0
    while low < high:  # the smallest limit under which the runs are few enough
        middle = (low + high) // 2
        if len(cuts_within(rows, prompt_B, completion_B, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    cuts = cuts_within(rows, prompt_B, completion_B, low)
    while len(cuts) < count and any(len(cut) > 1 for cut in cuts):  # a slice to spare halves the largest run
        index = max(
            (i for i, cut in enumerate(cuts) if len(cut) > 1),
            key=lambda i: padded_tokens(cuts[i], prompt_B, completion_B),
        )
        half = len(cuts[index]) // 2
        cuts[index : index + 1] = [cuts[index][:half], cuts[index][half:]]
    return cuts + [[] for _ in range(count - len(cuts))]


def shortest(prompt_B: list[int], completion_B: list[int]) -> int:
    """The row that costs least: what a rank runs, with weight zero, when it has a slice and no row for it."""
    return min(range(len(prompt_B)), key=lambda row: prompt_B[row] + completion_B[row])


def step_N(keep_N: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """
    Deal the survivors of a window to its optimizer steps at random and evenly: their number differs by one at most.

    Args:
        keep_N (`torch.Tensor`): Survivors among the rows of all ranks, in global order.
        steps (`int`): Optimizer steps that share the window.
        seed (`int`): Seed of the window; the deal depends on it and on the global row alone.

    Returns:
        `torch.Tensor`: For each row the number of its optimizer step, -1 for dropped rows.
    """
    row_N = torch.arange(len(keep_N), device=keep_N.device)
    draw_N = torch.where(keep_N, uniform_hash(seed, row_N, torch.full_like(row_N, -1)), 2.0)
    place_N = draw_N.argsort(stable=True).argsort(stable=True)
    return torch.where(keep_N, place_N % steps, -1)
