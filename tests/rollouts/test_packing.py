"""Slices hold every row once, are as small as cuts of the sorted rows can be, and lose no token when trimmed."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_pipeline import on_ranks

from fire_opd_trl.rollouts.exchange import exchange_rows, pack_rows, unpack_rows
from fire_opd_trl.rollouts.layout import PER_TOKEN, lengths, take
from fire_opd_trl.rollouts.micro_batches import layout_metrics, micro_batches
from fire_opd_trl.rollouts.packing import (
    cut_at_least_cost,
    cut_into_micro_batches,
    cut_to_count,
    cut_within_limit,
    deal_to_ranks,
    longest_first,
    optimizer_step_N,
    padded_tokens,
    shortest_row,
)
from fire_opd_trl.scoring.forward import ForwardOutput, rows_in_lines, trl_rectangle
from fire_opd_trl.scoring.token_scores import score_rows
from fire_opd_trl.stages import World


def ragged(seed: int, batch: int, taken: int | None = None) -> tuple[list[int], list[int], list[int]]:
    """Some rows of a batch, and heavy-tailed prompt and completion lengths of all its rows."""
    random = np.random.default_rng(seed)
    rows = sorted(random.choice(batch, batch if taken is None else taken, replace=False).tolist())
    return rows, random.integers(1, 30, batch).tolist(), (1 + random.exponential(20, batch)).astype(int).tolist()


def lines(seed: int, batch: int, taken: int | None = None) -> tuple[list[int], list[int]]:
    """Some rows of a batch, and the lengths of all its rows."""
    rows, prompt_B, completion_B = ragged(seed, batch, taken)
    return rows, [prompt + completion for prompt, completion in zip(prompt_B, completion_B, strict=True)]


def peak(cuts: list[list[int]], length_B: list[int]) -> int:
    return max(len(cut) * max(length_B[row] for row in cut) for cut in cuts if cut)


# Cuts


def test_padded_tokens_are_those_of_the_rectangle():
    assert padded_tokens([0, 2], [5, 18, 6]) == 2 * 6
    assert padded_tokens([1], [5, 18, 6]) == 18
    assert padded_tokens([], [5, 18, 6]) == 0


def test_rows_are_sorted_by_length_then_number():
    assert longest_first([4, 3, 2, 1, 0], [6, 12, 10, 7, 6]) == [1, 2, 3, 0, 4]


def test_cuts_within_a_limit_are_greedy_and_a_row_that_is_too_long_goes_alone():
    length_B = [5, 10, 20, 5, 10, 5]
    # 20 alone exceeds 18; 10 + 10 = 20 > 18, so 10 alone twice: with the next row 2 * 10 = 20; 3 * 5 = 15.
    assert cut_within_limit([0, 1, 2, 3, 4, 5], length_B, 18) == [[2], [1], [4], [0, 3, 5]]
    assert cut_within_limit([0, 1, 2, 3, 4, 5], length_B, 20) == [[2], [1, 4], [0, 3, 5]]
    assert cut_within_limit([], length_B, 18) == []


def test_the_shortest_row_is_the_one_with_fewest_tokens():
    assert shortest_row([6, 8, 5]) == 2


def test_micro_batches_of_a_small_batch_by_hand():
    # Sorted: 0 (10), 3 (9), 1 (2), 2 (2), 4 (1). In two micro-batches: {0, 3} of 2 * 10 and {1, 2, 4} of 3 * 2.
    assert cut_into_micro_batches([0, 1, 2, 3, 4], [10, 2, 2, 9, 1], 2) == [[0, 3], [1, 2, 4]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("seed", range(6))
def test_micro_batches_partition_the_rows_and_are_as_many_as_asked(seed, count):
    rows, length_B = lines(seed, batch=40, taken=[40, 31, 16, 7, 1, 0][seed])
    cuts = cut_into_micro_batches(rows, length_B, count)
    assert len(cuts) == count
    assert sorted(row for cut in cuts for row in cut) == rows
    assert sum(not cut for cut in cuts) == max(0, count - len(rows))  # empty only if there are too few rows
    full = [cut for cut in cuts if cut]
    assert cuts[: len(full)] == full
    assert [row for cut in full for row in cut] == longest_first(rows, length_B)


def test_a_micro_batch_to_spare_halves_the_largest():
    # 16 equal rows in at most 5 micro-batches: no peak below 4 rows, which takes 4; the fifth halves the first.
    cuts = cut_into_micro_batches(list(range(16)), [6] * 16, 5)
    assert [len(cut) for cut in cuts] == [2, 2, 4, 4, 4]
    for count in range(1, 20):
        cuts = cut_into_micro_batches(list(range(16)), [6] * 16, count)
        assert len(cuts) == count and sum(map(bool, cuts)) == min(count, 16)


def test_cuts_are_filled_up_by_halves_of_the_largest_and_then_by_nothing():
    assert cut_to_count([[0, 1, 2], [3, 4]], [9, 9, 9, 9, 9], 3) == [[0], [1, 2], [3, 4]]
    assert cut_to_count([[0, 1]], [9, 9], 4) == [[0], [1], [], []]
    assert cut_to_count([[0, 1]], [9, 9], 1) == [[0, 1]]


@pytest.mark.parametrize("seed", range(40))
def test_no_cut_of_the_sorted_rows_has_a_smaller_peak(seed):
    rows, length_B = lines(seed, batch=12, taken=2 + seed % 8)
    order = longest_first(rows, length_B)
    for count in range(1, len(rows) + 1):
        cuts = [(0, *places, len(order)) for places in combinations(range(1, len(order)), count - 1)]
        best = min(peak([order[i:j] for i, j in zip(c, c[1:], strict=False)], length_B) for c in cuts)
        assert peak(cut_into_micro_batches(rows, length_B, count), length_B) == best


def equal_counts(rows: list[int], length_B: list[int], count: int) -> list[list[int]]:
    """The simple cut: equally many of the sorted rows in each micro-batch."""
    order, size = longest_first(rows, length_B), -(-len(rows) // count)
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_micro_batches_are_never_larger_than_equally_many_rows_each(count):
    smaller, tokens, equal_tokens = 0, 0, 0
    for seed in range(20):
        rows, length_B = lines(seed, batch=32)
        equal, ours = equal_counts(rows, length_B, count), cut_into_micro_batches(rows, length_B, count)
        assert peak(ours, length_B) <= peak(equal, length_B)
        smaller += peak(ours, length_B) < 0.9 * peak(equal, length_B)
        tokens += sum(padded_tokens(cut, length_B) for cut in ours)
        equal_tokens += sum(padded_tokens(cut, length_B) for cut in equal)
    assert smaller > 10
    assert tokens < equal_tokens  # over the seeds also less padding in all, though that is not what is minimised


@pytest.mark.parametrize("limit", [1, 80, 300, 10**6])
@pytest.mark.parametrize("seed", range(10))
def test_no_cut_of_the_sorted_rows_costs_less(seed, limit):
    rows, length_B = lines(seed, batch=12, taken=1 + seed)
    order, costs = longest_first(rows, length_B), []
    for places in (places for count in range(len(rows)) for places in combinations(range(1, len(rows)), count)):
        bounds = (0, *places, len(rows))
        cuts = [order[i:j] for i, j in zip(bounds, bounds[1:], strict=False)]
        if all(len(cut) == 1 or padded_tokens(cut, length_B) <= limit for cut in cuts):
            costs.append(sum(padded_tokens(cut, length_B) + 40 for cut in cuts))
    cuts = cut_at_least_cost(rows, length_B, limit, 40)
    assert [row for cut in cuts for row in cut] == order
    assert all(len(cut) == 1 or padded_tokens(cut, length_B) <= limit for cut in cuts)
    assert sum(padded_tokens(cut, length_B) + 40 for cut in cuts) == min(costs)
    assert cut_at_least_cost([], length_B, limit, 40) == []


@pytest.mark.parametrize(("rows", "count", "ranks"), [(64, 4, 2), (64, 8, 4), (7, 2, 4), (0, 2, 2), (64, 4, 1)])
def test_rows_of_all_ranks_are_dealt_once_in_micro_batches_of_one_size(rows, count, ranks):
    length_N = lines(3, batch=64)[1]
    plan = deal_to_ranks(list(range(rows)), length_N, count, ranks)
    assert [len(cuts) for cuts in plan] == [count] * ranks
    assert sorted(row for cuts in plan for cut in cuts for row in cut) == list(range(rows))
    turns = [[padded_tokens(plan[rank][turn], length_N) for rank in range(ranks)] for turn in range(count)]
    if rows == 64:
        assert peak([cut for cuts in plan for cut in cuts], length_N) == peak(
            cut_into_micro_batches(list(range(rows)), length_N, count * ranks), length_N
        )
        tokens = [sum(length_N[row] for cut in cuts for row in cut) for cuts in plan]
        assert max(tokens) < 1.1 * sum(tokens) / ranks
        assert all(min(turn) > 0 for turn in turns)


# Optimizer steps


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("kept", [0, 1, 5, 24, 40])
def test_survivors_are_dealt_evenly_to_the_steps(steps, kept):
    keep_N = torch.zeros(40, dtype=torch.bool)
    keep_N[torch.randperm(40, generator=torch.Generator().manual_seed(kept))[:kept]] = True
    number_N = optimizer_step_N(keep_N, steps, seed=3)
    assert (number_N[~keep_N] == -1).all()
    counts = torch.bincount(number_N[keep_N], minlength=steps)
    assert counts.tolist() == sorted(counts.tolist(), reverse=True) and counts.sum() == kept
    assert len(counts) == steps and counts.max() - counts.min() <= 1


def test_the_deal_is_random_by_seed_and_fair_to_rows():
    keep_N = torch.ones(30, dtype=torch.bool)
    deals = torch.stack([optimizer_step_N(keep_N, 3, seed) for seed in range(300)])
    assert torch.equal(deals[7], optimizer_step_N(keep_N, 3, seed=7))
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


def test_a_line_is_prompt_and_completion_without_a_gap():
    ids, mask, labels, columns = rows_in_lines(literal_batch())
    assert ids[mask].tolist() == [11, 12, 13, 14, 15, 21, 22, 23, 24, 31, 32, 33]
    assert ids.shape == (3, 5)  # the longest row, 2 + 3; the rectangle has 4 + 5 columns
    assert labels.tolist() == [[-100, -100, 13, 14, 15], [-100, -100, -100, 24, -100], [-100, 32, 33, -100, -100]]
    # Which of the 4 predictions is about each completion token: column j predicts the token in column j + 1.
    places = columns + 4
    assert [places[0, :3].tolist(), places[1, :1].tolist(), places[2, :2].tolist()] == [[1, 2, 3], [2], [0, 1]]
    assert int(places.max()) <= 3 and int(places.min()) >= 0
    assert rows_in_lines(literal_batch(), multiple=4)[0].shape == (3, 8)


def test_a_line_asks_for_no_token_that_does_not_train():
    part = {**literal_batch(), "train_mask": torch.tensor([[1, 0, 1, 0, 0], [1] * 5, [0, 1, 0, 0, 0]]).bool()}
    labels = rows_in_lines(part)[2]
    assert labels.tolist() == [[-100, -100, 13, -100, 15], [-100, -100, -100, 24, -100], [-100, -100, 33, -100, -100]]


def test_a_line_may_have_no_prompt_and_one_token():
    part = {"prompt_ids": torch.tensor([[0]]), "prompt_mask": torch.tensor([[0]])}
    part.update(completion_ids=torch.tensor([[7]]), completion_mask=torch.tensor([[1]]))
    ids, mask, labels, columns = rows_in_lines(part)
    assert ids.tolist() == [[0, 7]] and labels.tolist() == [[-100, 7]] and columns.tolist() == [[-1]]
    part["completion_mask"] = torch.tensor([[0]])
    assert (rows_in_lines(part)[2] == -100).all()


def test_the_rectangle_is_trls():
    ids, mask, width, columns = trl_rectangle(literal_batch())
    assert ids.shape == (3, 9) and int(mask.sum()) == 12 and width == 5
    assert columns.tolist() == [[-5, -4, -3, -2, -1]] * 3


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
def test_micro_batches_that_are_taken_hold_every_token_of_the_batch(multiple):
    batch = random_batch(seed=1, rows=24)
    rows = list(range(24))
    parts = [take(batch, cut, multiple) for cut in cut_into_micro_batches(rows, lengths(batch), 5)]
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


def test_micro_batches_are_the_smallest_micro_batches_of_the_survivors():
    batch = random_batch(seed=1, rows=24)
    batch["keep"] = torch.arange(24) % 5 > 0
    arguments = {"loss_type": "grpo", "world": World(), "seed": 5, "multiple": 1}
    parts = micro_batches(batch, steps=1, per_step=5, **arguments)
    cuts = cut_into_micro_batches(batch["keep"].nonzero().flatten().tolist(), lengths(batch), 5)
    taken = [[tokens_of(part, row) for row in range(len(part["scale"]))] for part in parts]
    assert taken == [[tokens_of(batch, row) for row in cut] for cut in cuts]
    padded = sum(padded_tokens(cut, lengths(batch)) for cut in cuts)
    tokens = sum(lengths(batch)[row] for cut in cuts for row in cut)
    metrics = layout_metrics(parts, World())
    assert metrics == pytest.approx({"padding": 1 - tokens / padded, "rank_excess": 0.0})
    assert sum(rows_in_lines(part)[0].numel() for part in parts) == padded


@pytest.mark.parametrize("balance", ["none", "tokens"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize(("steps", "per_step"), [(1, 1), (1, 4), (3, 2)])
def test_over_all_ranks_each_step_is_one_exact_mean(steps, per_step, loss_type, balance):
    batches, keep_N = window_of(SIZES)

    def work(rank: int, world: World):
        arguments = {"loss_type": loss_type, "world": world, "seed": 5, "multiple": 1}
        arguments["balance"] = balance
        return micro_batches(batches[rank], steps=steps, per_step=per_step, **arguments)

    ranks = on_ranks(4, work)
    assert [len(parts) for parts in ranks] == [steps * per_step] * 4  # equally many forwards everywhere
    number_N = optimizer_step_N(keep_N, steps, seed=5)  # what a single process would deal
    whole = [tokens_of(batch, row) for batch in batches for row in range(len(batch["keep"]))]
    for step in range(steps):
        parts = [part for rank in ranks for part in rank[step * per_step : (step + 1) * per_step]]
        rows = [(part, row) for part in parts for row in range(len(part["scale"])) if part["scale"][row] > 0]
        expected = [tokens for tokens, number in zip(whole, number_N.tolist(), strict=True) if number == step]
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


# Rows that change their rank


def full_batch(seed: int, rows: int) -> dict:
    """A batch with all that the loss may need of a row, every number another."""
    batch = random_batch(seed, rows)
    shape, random = batch["completion_ids"].shape, torch.Generator().manual_seed(seed)
    for key in ("advantages", "old_per_token_logps", "ref_per_token_logps", "divergence"):
        batch[key] = torch.randn(shape, generator=random)
    batch["train_mask"] = batch["train_mask"] & (torch.rand(shape, generator=random) < 0.8)  # tools write too
    batch["scale"], batch["teacher_number"] = torch.rand(rows, generator=random), torch.arange(rows) + 10 * seed
    return batch


def known_of(batch: dict, row: int) -> dict[str, list]:
    """All that a batch says about a row, without padding."""
    one, width = take(batch, [row]), int(batch["completion_mask"][row].sum())
    known = {key: value[0][:width] if value[0].dim() else value[0] for key, value in one.items()}
    return {"tokens": tokens_of(batch, row), **{k: v.tolist() for k, v in known.items() if not k.startswith("prompt")}}


def test_a_parcel_holds_its_rows_to_the_bit_and_no_padding():
    batch = full_batch(seed=4, rows=9)
    parcels = [pack_rows(batch, [5, 2]), pack_rows(batch, []), pack_rows(batch, [7])]
    arrived = unpack_rows(parcels, like=batch)
    assert [known_of(arrived, row) for row in range(3)] == [known_of(batch, row) for row in (5, 2, 7)]
    assert {key: value[0].dtype for key, value in arrived.items()} == {key: batch[key][0].dtype for key in arrived}
    assert len(parcels[1]) == 0 and unpack_rows([parcels[1]], like=batch) == {}
    wider = {**batch, "completion_ids": torch.nn.functional.pad(batch["completion_ids"], (0, 999))}
    wider |= {"completion_mask": torch.nn.functional.pad(batch["completion_mask"], (0, 999))}
    wider |= {key: torch.nn.functional.pad(batch[key], (0, 999)) for key in PER_TOKEN if key != "completion_ids"}
    assert len(pack_rows(wider, [5, 2])) == len(parcels[0])


def test_rows_arrive_where_the_plan_sends_them_with_all_that_is_known_of_them():
    batches = [full_batch(seed, rows) for seed, rows in enumerate([4, 6, 1])]
    home = [(rank, row) for rank, batch in enumerate(batches) for row in range(len(batch["scale"]))]
    plan = [[9, 0, 4], [], [10, 3, 8, 1]]  # rows 2, 5, 6, 7 were dropped; rank 1 gets nothing
    for rank, (batch, place) in enumerate(on_ranks(3, lambda rank, world: exchange_rows(batches[rank], plan, world))):
        assert sorted(place) == sorted(plan[rank]) and sorted(place.values()) == list(range(len(plan[rank])))
        for row, where in place.items():
            owner, number = home[row]
            assert known_of(batch, where) == known_of(batches[owner], number)
        assert bool(batch) == bool(plan[rank])


def test_balance_evens_out_what_the_ranks_update_on():
    # Long rows on rank 0, short ones on rank 1, and nothing survives on rank 2.
    batches = [random_batch(seed, 24) for seed in range(3)]
    batches[1]["completion_mask"][:, 2:] = 0
    batches[1]["train_mask"] = batches[1]["completion_mask"].bool()
    for rank, batch in enumerate(batches):
        batch["keep"] = torch.full((24,), rank < 2)

    def excess(balance: str) -> dict[str, float]:
        arguments = {"loss_type": "grpo", "seed": 5, "multiple": 1, "balance": balance}

        def work(rank: int, world: World):
            return layout_metrics(micro_batches(batches[rank], steps=1, per_step=8, world=world, **arguments), world)

        (metrics, *others) = on_ranks(3, work)
        assert others == [metrics] * 2
        return metrics

    apart, even = excess("none"), excess("tokens")
    assert apart["rank_excess"] > 0.9 and even["rank_excess"] < 0.05
    assert even["padding"] < apart["padding"]


def test_rows_in_trls_rectangle_never_exceed_the_budget():
    """Long prompts with short completions and the other way round: together they are as wide as both."""
    batch, sizes = random_batch(seed=3, rows=20), []
    batch["token_type_ids"] = torch.ones_like(torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1))

    def forward(part):
        sizes.append((len(part["prompt_ids"]), trl_rectangle(part)[0].numel()))
        return ForwardOutput(part["completion_ids"].float(), None, {}, None)

    score_rows(forward, batch, 150, World(), vocabulary=10**9)
    assert all(tokens <= 150 or rows == 1 for rows, tokens in sizes) and len(sizes) > 2


def test_an_empty_prompt_is_the_same_padding_token_after_a_move():
    batch = full_batch(seed=4, rows=3)
    batch["prompt_mask"][1], batch["prompt_ids"][1] = 0, 9  # padding has id 9
    arrived = unpack_rows([pack_rows(batch, [1])], like=batch)
    assert rows_in_lines(arrived)[0].tolist() == rows_in_lines(take(batch, [1]))[0].tolist()
    assert rows_in_lines(arrived)[0][0, 0] == 9


@pytest.mark.parametrize("key", ["token_type_ids", "top_ids"])
def test_rows_with_images_or_whole_distributions_stay(key):
    batches = [random_batch(seed, 4) for seed in range(2)]
    for batch in batches:
        batch["keep"] = torch.ones(4, dtype=torch.bool)
    both = torch.cat([batches[1]["prompt_ids"], batches[1]["completion_ids"]], dim=1)
    batches[1][key] = torch.ones_like(both) if key == "token_type_ids" else list(both.split(1))
    arguments = {"loss_type": "grpo", "seed": 5, "multiple": 1, "balance": "tokens"}

    def work(rank: int, world: World):
        return micro_batches(batches[rank], steps=1, per_step=2, world=world, **arguments)

    for rank, parts in enumerate(on_ranks(2, work)):  # one rank's images keep all ranks' rows where they are
        rows = [tokens_of(part, row) for part in parts for row in range(len(part["scale"]))]
        assert sorted(rows) == sorted(tokens_of(batches[rank], row) for row in range(4))


# Scoring


@pytest.mark.parametrize("budget", [1, 200, 10**6])
def test_scores_come_back_in_place_within_the_budget(budget):
    batch, sizes = random_batch(seed=2, rows=20), []
    rows = [row for row in range(20) if row != 4]

    def forward(part):
        sizes.append((len(part["prompt_ids"]), rows_in_lines(part)[0].numel()))
        ids = part["completion_ids"]
        return ForwardOutput(ids.double(), -ids.double(), {"twice": torch.stack([ids, 2 * ids], dim=2)}, None)

    logp_BT, entropy_BT, seen = score_rows(forward, batch, budget, World(), vocabulary=10**9, rows=rows)
    expected_BT = batch["completion_ids"].float()
    expected_BT[4] = 0
    assert torch.equal(logp_BT, expected_BT) and torch.equal(entropy_BT, -expected_BT)
    lengths = batch["completion_mask"].sum(dim=1).tolist()  # what else was seen keeps each row's own length
    for row, (twice, length) in enumerate(zip(seen["twice"], lengths, strict=True)):
        ids = batch["completion_ids"][row, : length if row != 4 else 0]
        assert torch.equal(twice, torch.stack([ids, 2 * ids], dim=1))
    assert all(tokens <= budget or row_count == 1 for row_count, tokens in sizes)
    assert (len(sizes) == 19) == (budget == 1)


def test_every_rank_scores_in_equally_many_forwards():
    batches, _ = window_of(SIZES)
    calls = [0] * 4

    def work(rank: int, world: World):
        def forward(part):
            calls[rank] += 1
            return ForwardOutput(part["completion_ids"].float(), None, {"ids": part["completion_ids"]}, None)

        return score_rows(forward, batches[rank], 150, world, vocabulary=10**9, rows=[] if rank == 2 else None)

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
        return ForwardOutput(part["completion_ids"].float(), None, {}, None)

    logp_BT, *_ = score_rows(forward, batch, 200, World(), vocabulary=largest)
    assert torch.equal(logp_BT.isnan(), unknown_BT) and unknown_BT.sum() == 1
    assert torch.equal(logp_BT[~unknown_BT], batch["completion_ids"].float()[~unknown_BT])
    assert int(batch["completion_ids"].max()) == largest  # the batch itself is left as it was
