"""Micro-batches of the survivors: each row once, each optimizer step one exact mean over all ranks."""

import pytest
import torch
from support.batches import SIZES, random_batch, tokens_of, window_of
from support.windows import on_ranks

from fire_opd_trl.rollouts.layout import lengths
from fire_opd_trl.rollouts.micro_batches import layout_metrics, micro_batches
from fire_opd_trl.rollouts.packing import (
    cut_into_micro_batches,
    optimizer_step_N,
    padded_tokens,
)
from fire_opd_trl.scoring.forward import ForwardOutput, rows_in_lines, trl_rectangle
from fire_opd_trl.scoring.token_scores import score_rows
from fire_opd_trl.stages import World


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
