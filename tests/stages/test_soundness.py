"""What must hold before a stage reads anything, and of what a stage returns."""

from dataclasses import replace

import pytest
import torch

from fire_opd_trl import Context, Rollout, Scores
from fire_opd_trl.stages.soundness import (
    checked_output,
    refuse_broken_student,
    refuse_incomplete,
    refuse_missing,
    usable_B,
)


SIGNALS = ("teacher_logp_BT", "student_logp_BT", "teacher_entropy_BT")
ROLLOUT = Rollout(torch.tensor([[1, 1], [1, 0], [1, 1]]).bool())
SCORES = Scores(*(-torch.ones(3, 2) for _ in range(2)), teacher_entropy_BT=torch.ones(3, 2))


def broken(name: str, row: int, token: int, value: float = float("nan")) -> Scores:
    value_BT = vars(SCORES)[name].clone()
    value_BT[row, token] = value
    return replace(SCORES, **{name: value_BT})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_is_usable_if_all_that_is_read_of_the_teacher_is_finite_under_the_mask(value):
    assert usable_B(ROLLOUT, SCORES, SIGNALS).tolist() == [True] * 3
    assert usable_B(ROLLOUT, broken("teacher_entropy_BT", 0, 1, value), SIGNALS).tolist() == [False, True, True]
    assert usable_B(ROLLOUT, broken("teacher_logp_BT", 1, 1, value), SIGNALS).tolist() == [True] * 3  # padding
    assert usable_B(ROLLOUT, broken("teacher_entropy_BT", 0, 1, value), SIGNALS[:2]).tolist() == [True] * 3  # unread
    assert usable_B(ROLLOUT, broken("student_logp_BT", 0, 0, value), SIGNALS).tolist() == [True] * 3  # the student's


def test_a_broken_student_stops_with_the_number_of_rows():
    refuse_broken_student(ROLLOUT, SCORES, SIGNALS, Context().world)
    refuse_broken_student(ROLLOUT, broken("student_logp_BT", 1, 1), SIGNALS, Context().world)  # padding
    with pytest.raises(FloatingPointError, match="NaN or infinite in 1 trajectories"):
        refuse_broken_student(ROLLOUT, broken("student_logp_BT", 2, 0), SIGNALS, Context().world)


def test_what_a_method_reads_must_be_there():
    with pytest.raises(ValueError, match="method='m': signals lacks student_logp_BT, which every method reads"):
        refuse_incomplete("m", SIGNALS[:1])
    refuse_missing("m", ROLLOUT, SCORES, (), SIGNALS)
    with pytest.raises(ValueError, match="method='m' reads reward_B, which `rollout` lacks"):
        refuse_missing("m", ROLLOUT, SCORES, ("reward_B",), SIGNALS)
    with pytest.raises(ValueError, match="method='m' reads reverse_kl_BT, which `scores` lacks"):
        refuse_missing("m", ROLLOUT, SCORES, (), (*SIGNALS, "reverse_kl_BT"))


@pytest.mark.parametrize(("stage", "shape"), [("score", (3,)), ("filter", (3,)), ("reweight", (3, 2))])
def test_a_stage_returns_a_value_for_each_row_or_token_and_0_outside_the_mask(stage, shape):
    value = checked_output("m", stage, torch.ones(shape), ROLLOUT)
    assert value.tolist() == ([1.0] * 3 if shape == (3,) else [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match=f"method='m': {stage} returned a tensor of shape \\(2,\\)"):
        checked_output("m", stage, torch.ones(2), ROLLOUT)


def test_a_stage_that_returns_no_tensor_is_named():
    with pytest.raises(ValueError, match="method='m': filter returned a list. It must be a tensor"):
        checked_output("m", "filter", [True, True, False], ROLLOUT)
