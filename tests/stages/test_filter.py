"""Which trajectories are dropped, by numbers worked out by hand."""

import math
from fractions import Fraction

import pytest
import torch
from support.tensors import CONTEXT, f64, mask
from support.windows import INF, NAN, hash_in_plain_python

from fire_opd_trl import Context, Rollout
from fire_opd_trl.stages import (
    as_many_at_random,
    drop_lowest,
    keep_all,
    uniform_hash,
)


def one_token_each(rows: int) -> Rollout:
    return Rollout(torch.ones(rows, 1, dtype=torch.bool))


def test_the_filter_drops_the_lowest_scores():
    score_B = f64([-3.0, -1.0, -2.0, -5.0, -4.0])
    keep_B = drop_lowest(score_B, one_token_each(5), CONTEXT, fraction=0.4)
    assert keep_B.tolist() == [True, True, True, False, False]  # floor(0.4 * 5) = 2: -5 and -4


@pytest.mark.parametrize("share", "0 0.01 0.05 0.1 0.2 0.25 0.29 0.3 0.33 0.57 0.58 0.7 0.9 0.99 0.999".split())
def test_exactly_the_floor_of_the_share_is_dropped(share):
    for rows in (*range(1, 41), 50, 64, 99, 100, 101, 128, 200, 300, 1000, 1024):
        score_B = uniform_hash(1, torch.arange(rows))
        keep_B = drop_lowest(score_B, one_token_each(rows), CONTEXT, fraction=float(share))
        drop = math.floor(Fraction(share) * rows)  # decimal: 0.29 * 100 is 29, though 28.999999999999996 in binary
        assert int((~keep_B).sum()) == drop, rows
        if drop:
            assert score_B[~keep_B].max() < score_B[keep_B].min(), rows


def test_the_share_is_meant_in_decimals_where_binary_falls_short():
    assert math.floor(0.29 * 100) == 28  # what the floor of the product would give
    assert int(drop_lowest(torch.arange(100.0), one_token_each(100), CONTEXT, fraction=0.29).sum()) == 71


def test_ties_are_broken_by_the_row():
    equal_B = torch.zeros(10)
    assert drop_lowest(equal_B, one_token_each(10), CONTEXT, fraction=0.2).tolist() == [False] * 2 + [True] * 8
    score_B = f64([2.0, 1.0, 3.0, 1.0, 1.0, 0.0])  # dropped: row 5, then two of the three ones, those of rows 1 and 3
    keep_B = drop_lowest(score_B, one_token_each(6), CONTEXT, fraction=0.5)
    assert keep_B.tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("score_of_empty", [0.0, -1e9, 1e9, INF, -INF, NAN])
def test_empty_rows_are_never_ranked_and_never_kept(score_of_empty):
    rollout = Rollout(mask("0", "1", "0", "1", "1", "0", "1", "1"))
    score_B = f64([score_of_empty, -5.0, score_of_empty, -4.0, -3.0, score_of_empty, -2.0, -1.0])
    keep_B = drop_lowest(score_B, rollout, CONTEXT, fraction=0.4)  # floor(0.4 * 5) = 2, not floor(0.4 * 8) = 3
    assert keep_B.tolist() == [False, False, False, False, True, False, True, True]
    assert keep_all(score_B, rollout, CONTEXT).tolist() == rollout.alive_B.tolist()


def test_per_teacher_each_teacher_loses_its_own_lowest():
    # Teacher 7 is harsh: ranked together it would lose all three rows. floor(0.5 * 3) = 1 of 7's, floor(0.5 * 4) = 2
    # of 3's alive four; the row that is empty counts nowhere.
    teacher_B = torch.tensor([7, 3, 7, 3, 3, 7, 3, 3])
    score_B = f64([-90.0, -1.0, -95.0, -2.0, -3.0, -91.0, 0.0, -4.0])
    rollout = Rollout(mask("1", "1", "1", "1", "1", "1", "0", "1"), teacher_B=teacher_B)
    keep_B = drop_lowest(score_B, rollout, CONTEXT, fraction=0.5, scope="teacher")
    assert keep_B.tolist() == [True, True, False, True, False, True, False, False]
    together_B = drop_lowest(score_B, rollout, CONTEXT, fraction=0.5, scope="batch")  # floor(0.5 * 7) = 3
    assert together_B.tolist() == [False, True, False, True, True, False, False, True]


def as_many_as(*keep: bool):
    """A filter that always says the same of the rows of a window, wherever this rank's rows stand in it."""

    def filter(score_B, rollout, context):
        return torch.tensor(keep)[context.world.local_slice(len(score_B))]

    return filter


def test_a_random_filter_keeps_as_many_rows_as_its_model_among_those_that_have_a_token():
    rollout = Rollout(mask("1", "1", "0", "1", "1", "0", "1", "1"))
    for kept in range(7):  # the model would also keep the two empty rows, which count for nothing
        model = as_many_as(*[row in (2, 5) or [0, 1, 3, 4, 6, 7].index(row) < kept for row in range(8)])
        keep_B = as_many_at_random(torch.zeros(8), rollout, CONTEXT, filter=model)
        assert keep_B.sum() == kept and not keep_B[[2, 5]].any()


def test_a_random_filter_keeps_the_rows_of_the_lowest_draws_whatever_their_scores():
    rollout, model = one_token_each(20), as_many_as(*[True] * 5 + [False] * 15)
    for seed in (5, 6):
        keep_B = as_many_at_random(torch.arange(20.0), rollout, Context(seed=seed), filter=model)
        again_B = as_many_at_random(-torch.arange(20.0), rollout, Context(seed=seed), filter=model)
        draws = [hash_in_plain_python(seed, row) for row in range(20)]
        assert keep_B.nonzero().flatten().tolist() == sorted(sorted(range(20), key=lambda row: draws[row])[:5])
        assert torch.equal(keep_B, again_B)


def test_a_trajectory_alone_is_never_dropped():
    rollout = Rollout(mask("1", "0", "1", "1"))
    keep_B = drop_lowest(f64([-9.0, 0.0, -1.0, -5.0]), rollout, CONTEXT, fraction=0.99, scope="trajectory")
    assert keep_B.tolist() == [True, False, True, True]
