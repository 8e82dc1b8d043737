"""Scores come back in their places, in forwards within the budget."""

import pytest
import torch
from support.batches import SIZES, random_batch, window_of
from support.windows import on_ranks

from fire_opd_trl.scoring.forward import ForwardOutput, rows_in_lines
from fire_opd_trl.scoring.token_scores import score_rows
from fire_opd_trl.stages import World


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
