"""Which rows go into which forward: short with short, long with long, and equally many forwards on every rank."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby

import torch

from ..stages import order_by_draw, uniform_hash


def padded_tokens(rows: list[int], length_B: list[int]) -> int:
    """Returns the tokens of the rectangle that holds these rows, padding included."""
    return len(rows) * max((length_B[row] for row in rows), default=0)


def longest_first(rows: list[int], length_B: list[int]) -> list[int]:
    """Returns the rows by falling length, ties by row: neighbours need little padding, and the first run is large."""
    return sorted(rows, key=lambda row: (-length_B[row], row))


def of_like_length(rows: list[int], length_B: list[int], bounds: Sequence[int]) -> list[list[int]]:
    """
    Returns the rows in classes by length, the longest first. Rows on either side of a bound have no forward in common:
    see [`~fire_opd_trl.scoring.forward.length_bounds`].

    Args:
        rows (`list[int]`): The rows.
        length_B (`list[int]`): Tokens of every row of the batch.
        bounds (`Sequence[int]`): The largest lengths of all classes but the longest, ascending.
    """
    classes = groupby(longest_first(rows, length_B), key=lambda row: bisect_left(bounds, length_B[row]))
    return [list(alike) for _, alike in classes]


def cut_within_limit(rows: list[int], length_B: list[int], limit: int, bounds: Sequence[int] = ()) -> list[list[int]]:
    """Cut the rows, longest first, greedily into runs of one class with at most `limit` padded tokens (or one row)."""
    cuts: list[list[int]] = []
    for alike in of_like_length(rows, length_B, bounds):
        cuts.append([])
        for row in alike:
            if cuts[-1] and (len(cuts[-1]) + 1) * length_B[cuts[-1][0]] > limit:
                cuts.append([])
            cuts[-1].append(row)
    return cuts


def cut_into_micro_batches(
    rows: list[int], length_B: list[int], count: int, bounds: Sequence[int] = ()
) -> list[list[int]]:
    """
    Cut the rows, sorted by length, into `count` micro-batches so that the largest padded one is as small as it can be.

    Args:
        rows (`list[int]`): The rows to place.
        length_B (`list[int]`): Tokens of every row of the batch.
        count (`int`): Number of micro-batches, fixed by the training loop and equal on all ranks.
        bounds (`Sequence[int]`): See [`of_like_length`]. With fewer micro-batches than classes they cannot be kept.

    Returns:
        `list[list[int]]`: The rows of exactly `count` micro-batches, longest rows first. Each row stands in one of
        them; the last ones are empty where there are fewer rows than micro-batches.
    """
    if len(of_like_length(rows, length_B, bounds)) > count:
        bounds = ()
    low, high = 0, padded_tokens(rows, length_B)
    while low < high:  # the smallest limit under which the runs are few enough
        middle = (low + high) // 2
        if len(cut_within_limit(rows, length_B, middle, bounds)) <= count:
            high = middle
        else:
            low = middle + 1
    return cut_to_count(cut_within_limit(rows, length_B, low, bounds), length_B, count)


def cut_to_count(cuts: list[list[int]], length_B: list[int], count: int) -> list[list[int]]:
    """Cut further, into exactly `count` runs: halve the largest, and add empty ones where no run can be halved."""
    cuts = list(cuts)
    while len(cuts) < count and any(len(cut) > 1 for cut in cuts):
        several = [index for index, cut in enumerate(cuts) if len(cut) > 1]
        index = max(several, key=lambda index: padded_tokens(cuts[index], length_B))
        half = len(cuts[index]) // 2
        cuts[index : index + 1] = [cuts[index][:half], cuts[index][half:]]
    return cuts + [[] for _ in range(count - len(cuts))]


def cut_at_least_cost(rows: list[int], length_B: list[int], limit: int, forward: int) -> list[list[int]]:
    """
    Cut the rows, sorted by length, into as many runs as cost least. A run costs its padded tokens and `forward` tokens
    more. No run has more than `limit` padded tokens, except that a longer row makes a run of its own.
    """
    order = longest_first(rows, length_B)
    least, starts = [0.0], [0]  # for every number of first rows: their least cost, and where their last run starts
    for end in range(1, len(order) + 1):
        least.append(float("inf"))
        starts.append(end - 1)
        for start in range(end - 1, -1, -1):
            padded = (end - start) * length_B[order[start]]
            if padded > limit and end - start > 1:
                break  # nor would longer runs fit
            if (cost := least[start] + padded + forward) < least[end]:
                least[end], starts[end] = cost, start
    cuts, end = [], len(order)
    while end:
        cuts.append(order[starts[end] : end])
        end = starts[end]
    return cuts[::-1]


def deal_to_ranks(
    rows: list[int], length_N: list[int], count: int, ranks: int, bounds: Sequence[int] = ()
) -> list[list[list[int]]]:
    """
    Cut the rows of all ranks together into micro-batches, and deal these to the ranks. Those that run at the same time
    are of similar size, so that no rank waits long for another, and the largest of them goes to the rank with the
    fewest tokens so far, so that the ranks' sums are even.

    Returns:
        `list[list[list[int]]]`: For each rank the rows of its `count` micro-batches.
    """
    cuts = cut_into_micro_batches(rows, length_N, count * ranks, bounds)
    cuts.sort(key=lambda cut: -padded_tokens(cut, length_N))
    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for start in range(0, len(cuts), ranks):
        fewest_first = sorted(range(ranks), key=lambda rank: tokens[rank])
        for rank, cut in zip(fewest_first, cuts[start : start + ranks], strict=True):
            plan[rank].append(cut)
            tokens[rank] += padded_tokens(cut, length_N)
    return plan


def shortest_row(length_B: list[int]) -> int:
    """Returns the row that costs least: a rank runs it, with weight zero, where it has no row left for a forward."""
    return min(range(len(length_B)), key=lambda row: length_B[row])


def optimizer_step_N(keep_N: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
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
    draw_N = uniform_hash(seed, row_N, torch.full_like(row_N, -1))
    place_N = order_by_draw(draw_N, keep_N).argsort(stable=True)
    return torch.where(keep_N, place_N % steps, -1)
