"""The rows that are recorded: drawn alike in every layout, brought to one rank whole, and nothing but those."""

import math

import numpy as np
import pytest
import torch
from support.windows import emptied, on_ranks, parts_of, rows_of, window, with_value

from fire_opd_trl import METHODS, Context, Method, distil
from fire_opd_trl.rollouts.drawn_rows import FATES, bring_rows, drawn_rows, weighted_reward_B
from fire_opd_trl.stages import World


SIZES = [17, 1, 12, 10]  # rows of four ranks
EMPTY, BROKEN = 4, 9


def batch_of(mask_BT: torch.Tensor) -> dict:
    """TRL's batch of these rows: no two ids are equal, prompts are ragged, and tools have written in the holes."""
    rows, width = mask_BT.shape
    length_B1 = (mask_BT * torch.arange(1, width + 1)).amax(dim=1, keepdim=True)
    ids = torch.arange(rows * (width + 5)).reshape(rows, -1) + 100
    prompt = torch.arange(5) >= torch.arange(rows).unsqueeze(1) % 5
    return {
        "prompt_ids": ids[:, :5] * prompt,
        "prompt_mask": prompt.long(),
        "completion_ids": ids[:, 5:],
        "completion_mask": (torch.arange(width) < length_B1.clamp(min=1)).long(),
    }


def brought(method: Method, count: int, world: World | None = None, rows: slice = slice(None), seed: int = 3) -> list:
    rollout, scores = window(seed=1)
    batch = {name: value[rows] for name, value in batch_of(rollout.mask_BT).items()}
    scores = with_value(scores, "teacher_logp_BT", BROKEN, 0, math.nan)
    rollout, scores = rows_of(emptied(rollout, [EMPTY]), scores, rows)
    world = world or World()
    signal = distil(rollout, scores, method, Context(world, seed=seed))
    return bring_rows(
        batch,
        rollout,
        scores.only(("student_entropy_BT", *method.signals)),
        signal,
        method,
        advantage_BT=signal.advantage_BT if method.advantage else None,
        reward_B=rollout.reward_B,
        count=count,
        seed=seed,
        world=world,
    )


def same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)  # NaN is NaN


@pytest.mark.parametrize("name", ["fire", "tip"])
def test_ranks_bring_the_rows_of_one_process_to_the_first_and_nothing_to_others(name):
    parts = parts_of(SIZES)
    for count in (12, 99):
        one = brought(METHODS[name](), count)
        first, *others = on_ranks(4, lambda r, w, n=count: brought(METHODS[name](), n, w, parts[r]))
        same(one, first)
        assert len(one) == min(count, 40) and others == [[], [], []]
        assert [row["row"] for row in one] == sorted(row["row"] for row in one)


def test_a_row_is_brought_with_all_that_is_known_of_it():
    rollout, scores = window(seed=1)
    batch, method = batch_of(rollout.mask_BT), METHODS["fire"]()
    rows = brought(method, 40)
    dropped = [row for row in rows if row["fate"] == FATES.index("filter")]
    assert len(dropped) == 7  # floor(0.2 x 38): two rows have nothing to rank
    assert max(row["score"] for row in dropped) <= min(row["score"] for row in rows if FATES[row["fate"]] is None)
    for number, row in enumerate(rows):
        length, prompt = int(batch["completion_mask"][number].sum()), batch["prompt_mask"][number].bool()
        assert row["prompt_ids"].tolist() == batch["prompt_ids"][number][prompt].tolist()
        assert row["token_ids"].tolist() == batch["completion_ids"][number][:length].tolist()
        np.testing.assert_allclose(row["student_entropy"], scores.student_entropy_BT[number, :length], rtol=1e-6)
        assert row["trains"].tolist() == (rollout.mask_BT[number, :length] & (number != EMPTY)).tolist()
        assert not row["weight"][~row["trains"]].any() and not row["advantage"][~row["trains"]].any()
        assert (row["group"], row["teacher"]) == (3 * (number // 4) + 5, number % 3)
        assert (row["row"], row["reward"]) == (number, rollout.reward_B[number])
        assert (row["finished"], row["truncated"], row["looped"]) == (
            number % 5 > 0,
            number % 5 == 0,
            number % 7 == 3,
        )
        if FATES[row["fate"]] is None:
            assert row["score"] == pytest.approx(row["teacher_logp"][row["trains"]].mean(), rel=1e-5)
            assert row["weight"].sum() == pytest.approx(row["trains"].sum())
            ratio = row["teacher_logp"] - row["student_logp"]
            np.testing.assert_allclose(row["advantage"], np.where(row["trains"], row["weight"] * ratio, 0), rtol=1e-5)
    assert FATES[rows[EMPTY]["fate"]] == "empty" and FATES[rows[BROKEN]["fate"]] == "nonfinite_teacher"
    assert all(math.isnan(rows[number]["score"]) for number in (EMPTY, BROKEN))
    assert "teacher_entropy" not in brought(METHODS["opd"](), 1)[0]  # nobody has computed it
    assert math.isnan(rows[BROKEN]["teacher_logp"][0]) and not math.isnan(rows[BROKEN]["teacher_logp"][1])


def test_a_method_without_policy_gradient_is_recorded_with_the_weights_of_its_divergence():
    rows = brought(METHODS["tip"](), 40)
    assert "advantage" not in rows[0]
    shares = {bool(weight) for row in rows for weight in row["weight"][row["trains"]]}
    assert shares == {True, False}  # it chooses half of the tokens


def test_rows_are_drawn_at_random_apart_from_what_a_method_draws():
    draws = [drawn_rows(50, 10, seed) for seed in range(200)]
    assert all(len(set(rows)) == 10 and rows == sorted(rows) for rows in draws)
    counts = np.bincount(np.concatenate(draws), minlength=50)
    # Each row is drawn in a fifth of 200 windows: 40, with a standard deviation of sqrt(200 x 0.2 x 0.8) = 5.7.
    assert counts.min() > 40 - 4 * 5.7 and counts.max() < 40 + 4 * 5.7
    kept = 0
    for seed in range(40):  # the control of a filter drops at random, with the same seed
        rows = brought(METHODS["random"](drop_fraction=0.5), 8, seed=seed)
        kept += sum(FATES[row["fate"]] is None for row in rows)
    # Of 40 rows 19 survive: 8 x 19 / 40 = 3.8 a window. Drawn by the same numbers it would be all 8, or none.
    assert 40 * 3.8 * 0.8 < kept < 40 * 3.8 * 1.2


def test_rewards_add_up_and_none_is_none():
    reward_BF = torch.tensor([[1.0, 2.0], [math.nan, 3.0], [math.nan, math.nan]])
    assert weighted_reward_B(reward_BF, torch.tensor([1.0, 0.5])).tolist() == pytest.approx(
        [2.0, 1.5, math.nan], nan_ok=True
    )
