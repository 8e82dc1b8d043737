"""Slices hold every row once, are as small as cuts of the sorted rows can be, and lose no token when trimmed."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_pipeline import on_ranks

from fire_opd_trl.batches import lengths, micro_batches, take
from fire_opd_trl.scoring import token_scores
from fire_opd_trl.slices import cuts_within, longest_first, padded_tokens, shortest, slices, step_N
from fire_opd_trl.stages import World


def ragged(seed: int, batch: int, taken: int | None = None) -> tuple[list[int], list[int], list[int]]:
    """Some rows of a batch, and heavy-tailed prompt and completion lengths of all its rows."""
    random = np.random.default_rng(seed)
    rows = sorted(random.choice(batch, batch if taken is None else taken, replace=False).tolist())
    return rows, random.integers(1, 30, batch).tolist(), (1 + random.exponential(20, batch)).astype(int).tolist()


def peak(cuts: list[list[int]], prompt_B: list[int], completion_B: list[int]) -> int:
    return max(len(c) * (max(prompt_B[r] for r in c) + max(completion_B[r] for r in c)) for c in cuts if c)


# Cuts


def test_padded_tokens_are_those_of_the_rectangle():
    assert padded_tokens([0, 2], [3, 9, 1], [2, 9, 5]) == 2 * (3 + 5)  # longest prompt 3, longest completion 5
    assert padded_tokens([1], [3, 9, 1], [2, 9, 5]) == 18


def test_rows_are_sorted_by_completion_then_prompt_then_number():
    assert longest_first([4, 3, 2, 1, 0], [1, 7, 1, 2, 1], [5, 5, 9, 5, 5]) == [2, 1, 3, 0, 4]


def test_cuts_within_a_limit_are_greedy_and_a_row_that_is_too_long_goes_alone():
    prompt_B, completion_B = [1, 1, 1, 1, 1, 1], [19, 9, 9, 4, 4, 4]
    # 20 alone exceeds 18; 10 + 10 = 20 > 18, so 10 alone twice: with the next row 2 * 10 = 20; 3 * 5 = 15.
    assert cuts_within([0, 1, 2, 3, 4, 5], prompt_B, completion_B, 18) == [[0], [1], [2], [3, 4, 5]]
    assert cuts_within([0, 1, 2, 3, 4, 5], prompt_B, completion_B, 20) == [[0], [1, 2], [3, 4, 5]]
    assert cuts_within([], prompt_B, completion_B, 18) == []


def test_the_shortest_row_is_the_one_with_fewest_tokens():
    assert shortest([5, 1, 2], [1, 6, 3]) == 2


def test_slices_of_a_small_batch_by_hand():
    # Sorted: 0 (10), 3 (9), 1 (2), 2 (2), 4 (1). In two slices: {0, 3} of 2 * 10 and {1, 2, 4} of 3 * 2.
    assert slices([0, 1, 2, 3, 4], [0] * 5, [10, 2, 2, 9, 1], 2) == [[0, 3], [1, 2, 4]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("seed", range(6))
def test_slices_partition_the_rows_and_are_as_many_as_asked(seed, count):
    rows, prompt_B, completion_B = ragged(seed, batch=40, taken=[40, 31, 16, 7, 1, 0][seed])
    cuts = slices(rows, prompt_B, completion_B, count)
    assert len(cuts) == count
    assert sorted(row for cut in cuts for row in cut) == rows
    assert sum(not cut for cut in cuts) == max(0, count - len(rows))  # empty only if there are fewer rows than slices
    full = [cut for cut in cuts if cut]
    assert cuts[: len(full)] == full
    assert [row for cut in full for row in cut] == longest_first(rows, prompt_B, completion_B)


def test_a_slice_to_spare_halves_the_largest():
    # 16 equal rows in at most 5 slices: no peak below 4 rows, which takes 4 slices; the fifth halves the first.
    cuts = slices(list(range(16)), [1] * 16, [5] * 16, 5)
    assert [len(cut) for cut in cuts] == [2, 2, 4, 4, 4]
    for count in range(1, 20):
        cuts = slices(list(range(16)), [1] * 16, [5] * 16, count)
        assert len(cuts) == count and sum(map(bool, cuts)) == min(count, 16)


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_of_the_sorted_rows_has_a_smaller_peak(seed):
    rows, prompt_B, completion_B = ragged(seed, batch=12, taken=2 + seed % 8)
    order = longest_first(rows, prompt_B, completion_B)
    for count in range(1, len(rows) + 1):
        cuts = [(0, *places, len(order)) for places in combinations(range(1, len(order)), count - 1)]
        best = min(peak([order[i:j] for i, j in zip(c, c[1:], strict=False)], prompt_B, completion_B) for c in cuts)
        assert peak(slices(rows, prompt_B, completion_B, count), prompt_B, completion_B) == best


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_slices_are_never_larger_than_equally_many_rows_each(count):
    smaller = 0
    for seed in range(20):
        rows, prompt_B, completion_B = ragged(seed, batch=32)
        order, size = longest_first(rows, prompt_B, completion_B), 32 // count
        equal = peak([order[i : i + size] for i in range(0, 32, size)], prompt_B, completion_B)
        ours = peak(slices(rows, prompt_B, completion_B, count), prompt_B, completion_B)
        assert ours <= equal
        smaller += ours < 0.9 * equal
    assert smaller > 10


# Optimizer steps


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("kept", [0, 1, 5, 24, 40])
def test_survivors_are_dealt_evenly_to_the_steps(steps, kept):
    keep_N = torch.zeros(40, dtype=torch.bool)
    keep_N[torch.randperm(40, generator=torch.Generator().manual_seed(kept))[:kept]] = True
    number_N = step_N(keep_N, steps, seed=3)
    assert (number_N[~keep_N] == -1).all()
    counts = torch.bincount(number_N[keep_N], minlength=steps)
    assert counts.tolist() == sorted(counts.tolist(), reverse=True) and counts.sum() == kept
    assert len(counts) == steps and counts.max() - counts.min() <= 1


def test_the_deal_is_random_by_seed_and_fair_to_rows():
    keep_N = torch.ones(30, dtype=torch.bool)
    deals = torch.stack([step_N(keep_N, 3, seed) for seed in range(300)])
    assert torch.equal(deals[7], step_N(keep_N, 3, seed=7))
    assert len(deals.unique(dim=0)) == 300
    # Each row is in each step in 100 of 300 deals, standard error sqrt(300 * 1/3 * 2/3) = 8.2.
    counts = torch.stack([(deals == step).sum(dim=0) for step in range(3)])
    assert (counts - 100).abs().max() < 5 * 8.2


# Batches in TRL's layout: prompts padded on the left, completions on the right


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


def test_take_trims_to_its_own_longest_prompt_and_completion():
    part = take(literal_batch(), [2, 0])
    assert part["prompt_ids"].tolist() == [[0, 31], [11, 12]]
    assert part["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert part["completion_ids"].tolist() == [[32, 33, 0], [13, 14, 15]]
    assert part["completion_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    torch.testing.assert_close(part["advantages"], torch.tensor([[3.2, 3.3, 0.0], [1.3, 1.4, 1.5]]))
    assert part["token_type_ids"].tolist() == [[9, 1, 2, 3, 9], [1, 2, 3, 4, 5]]  # both sides, still side by side
    torch.testing.assert_close(part["scale"], torch.tensor([0.3, 0.1]))
    assert "rewards" not in part  # neither forward nor loss needs them
    assert part["prompt_ids"].numel() + part["completion_ids"].numel() == padded_tokens(
        [2, 0], *lengths(literal_batch())
    )


def test_take_rounds_widths_up_but_never_beyond_the_batch():
    part = take(literal_batch(), [1], multiple=4)
    assert part["prompt_ids"].tolist() == [[0, 21, 22, 23]]  # 3 -> 4
    assert part["completion_ids"].tolist() == [[24, 0, 0, 0]]  # 1 -> 4
    part = take(literal_batch(), [0], multiple=64)
    assert part["prompt_ids"].shape == (1, 4) and part["completion_ids"].shape == (1, 5)


def test_take_brings_the_images_of_its_rows():
    # Row 0 has an image of 1 x 2 x 1 patches, row 1 none, row 2 one of 3 and one of 1 patch: patches 0-1, none, 2-5.
    batch = {
        **literal_batch(),
        "pixel_values": torch.arange(6.0).unsqueeze(1),
        "image_grid_thw": torch.tensor([[1, 2, 1], [1, 3, 1], [1, 1, 1]]),
        "num_images": [1, 0, 2],
    }
    part = take(batch, [2, 1])
    assert part["pixel_values"].flatten().tolist() == [2.0, 3.0, 4.0, 5.0]
    assert part["image_grid_thw"].tolist() == [[1, 3, 1], [1, 1, 1]]
    assert part["num_images"] == [2, 0]


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


@pytest.mark.parametrize("multiple", [1, 8])
def test_slices_that_are_taken_hold_every_token_of_the_batch(multiple):
    batch = random_batch(seed=1, rows=24)
    rows = list(range(24))
    parts = [take(batch, cut, multiple) for cut in slices(rows, *lengths(batch), 5)]
    taken = [tokens_of(part, row) for part in parts for row in range(len(part["prompt_ids"]))]
    assert sorted(taken) == sorted(tokens_of(batch, row) for row in rows)
    padded = sum(part["prompt_ids"].numel() + part["completion_ids"].numel() for part in parts)
    assert padded < 0.7 * (batch["prompt_ids"].numel() + batch["completion_ids"].numel())


# Micro-batches over ranks


SIZES = [3, 11, 1, 9]


def window_of(sizes: list[int]) -> tuple[list[dict], torch.Tensor]:
    """One batch for each rank, of different widths, and who survives; none on the third rank."""
    parts = [random_batch(seed, rows) for seed, rows in enumerate(sizes)]
    keep_N = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(0)) < 0.7
    keep_N[sum(sizes[:2]) : sum(sizes[:3])] = False
    for part, keep_B in zip(parts, keep_N.split(sizes), strict=True):
        part["keep"] = keep_B
    return parts, keep_N


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize(("steps", "per_step"), [(1, 1), (1, 4), (3, 2)])
def test_over_all_ranks_each_step_is_one_exact_mean(steps, per_step, loss_type):
    batches, keep_N = window_of(SIZES)

    def work(rank: int, world: World):
        arguments = {"loss_type": loss_type, "processes": 4, "world": world, "seed": 5, "multiple": 1}
        return micro_batches(batches[rank], steps=steps, per_step=per_step, **arguments)

    ranks = on_ranks(4, work)
    assert [len(parts) for parts in ranks] == [steps * per_step] * 4  # equally many forwards everywhere
    dealt = step_N(keep_N, steps, seed=5)  # what a single process would deal
    whole = [tokens_of(batch, row) for batch in batches for row in range(len(batch["keep"]))]
    for step in range(steps):
        parts = [part for rank in ranks for part in rank[step * per_step : (step + 1) * per_step]]
        rows = [(part, row) for part in parts for row in range(len(part["scale"])) if part["scale"][row] > 0]
        expected = [tokens for tokens, number in zip(whole, dealt.tolist(), strict=True) if number == step]
        assert sorted(tokens_of(part, row) for part, row in rows) == sorted(expected)
        assert {part["rows_in_step"] for part in parts} == {len(expected)}
        # Averaged over the 4 processes, sum_i scale_i |y_i| is 1: a loss of 1 on every token is a loss of 1.
        total = sum(float(part["scale"][row]) * int(part["train_mask"][row].sum()) for part, row in rows) / 4
        assert total == pytest.approx(1.0, rel=1e-5)
        shares = [
            float(part["scale"][row]) * (int(part["train_mask"][row].sum()) ** (loss_type == "grpo"))
            for part, row in rows
        ]
        assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-5)  # rows alike in grpo, tokens alike in dapo


# Scoring


@pytest.mark.parametrize("budget", [1, 200, 10**6])
def test_scores_come_back_in_place_within_the_budget(budget):
    batch, sizes = random_batch(seed=2, rows=20), []
    rows = [row for row in range(20) if row != 4]

    def forward(part):
        sizes.append((len(part["prompt_ids"]), part["prompt_ids"].numel() + part["completion_ids"].numel()))
        ids = part["completion_ids"]
        return ids.double(), -ids.double(), {"twice": torch.stack([ids, 2 * ids], dim=2)}

    logp_BT, entropy_BT, seen = token_scores(forward, batch, budget, World(), vocabulary=10**9, rows=rows)
    expected_BT = batch["completion_ids"].float()
    expected_BT[4] = 0
    assert torch.equal(logp_BT, expected_BT) and torch.equal(entropy_BT, -expected_BT)
    lengths = batch["completion_mask"].sum(dim=1).tolist()  # what else was seen keeps each row's own length
    for row, (twice, length) in enumerate(zip(seen["twice"], lengths, strict=True)):
        ids = batch["completion_ids"][row, : length if row != 4 else 0]
        assert torch.equal(twice, torch.stack([ids, 2 * ids], dim=1))
    assert all(tokens <= budget or row_count == 1 for row_count, tokens in sizes)
    assert (len(sizes) == 1) == (budget == 10**6) and (len(sizes) == 19) == (budget == 1)


def test_every_rank_scores_in_equally_many_forwards():
    batches, _ = window_of(SIZES)
    calls = [0] * 4

    def work(rank: int, world: World):
        def forward(part):
            calls[rank] += 1
            return part["completion_ids"].float(), None, {"ids": part["completion_ids"]}

        return token_scores(forward, batches[rank], 150, world, vocabulary=10**9, rows=[] if rank == 2 else None)

    results = on_ranks(4, work)
    assert len(set(calls)) == 1 and calls[0] > 2
    for rank, (logp_BT, entropy_BT, seen) in enumerate(results):
        assert bool(seen) == (rank != 2)
        expected_BT = batches[rank]["completion_ids"].float() * (rank != 2)
        assert torch.equal(logp_BT, expected_BT) and not entropy_BT.any()


def test_a_token_that_the_model_does_not_know_is_scored_nan_and_never_shown_to_it():
    batch = random_batch(seed=0, rows=12)
    largest = int(batch["completion_ids"].max())
    unknown_BT = batch["completion_ids"] == largest

    def forward(part):
        assert part["completion_ids"].max() < largest
        return part["completion_ids"].float(), None, None

    logp_BT, *_ = token_scores(forward, batch, 200, World(), vocabulary=largest)
    assert torch.equal(logp_BT.isnan(), unknown_BT) and unknown_BT.sum() == 1
    assert torch.equal(logp_BT[~unknown_BT], batch["completion_ids"].float()[~unknown_BT])
    assert int(batch["completion_ids"].max()) == largest  # the batch itself is left as it was
