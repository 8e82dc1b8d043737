"""Advantages by hand."""

from support.tensors import CONTEXT, f64, mask
from support.windows import INF, NAN

from fire_opd_trl import Rollout, Scores
from fire_opd_trl.stages import (
    combined,
    log_ratio,
)


def test_the_advantage_is_teacher_minus_student():
    rollout = Rollout(mask("110", "001"))
    teacher_BT = f64([[-1.0, -2.0, NAN], [NAN, INF, -0.25]]).requires_grad_()
    student_BT = f64([[-3.0, -0.5, NAN], [1e30, INF, -0.25]]).requires_grad_()
    scores = Scores(teacher_logp_BT=teacher_BT, student_logp_BT=student_BT)
    advantage_BT = log_ratio(rollout, scores, CONTEXT)
    assert advantage_BT.tolist() == [[2.0, -1.5, 0.0], [0.0, 0.0, 0.0]]  # -1+3, -2+0.5; -0.25+0.25
    assert not advantage_BT.requires_grad


def test_the_mixed_advantage_is_distillation_plus_reward_times_the_engine_ratio():
    kept_BT = mask("110", "101", "000")
    advantage_BT = f64([[1.0, -2.0, 0.0], [0.5, 0.0, 4.0], [0.0, 0.0, 0.0]])
    reward_B, ratio_BT = f64([1.0, -3.0, NAN]), f64([[2.0, 0.5, NAN], [1.0, INF, 0.25], [NAN, NAN, NAN]])
    assert combined(advantage_BT, kept_BT, reward_B, 0.0, None).tolist() == advantage_BT.tolist()
    # A + 2 R: 1 + 2, -2 + 2; 0.5 - 6, 4 - 6.
    expected = [[3.0, 0.0, 0.0], [-5.5, 0.0, -2.0], [0.0, 0.0, 0.0]]
    assert combined(advantage_BT, kept_BT, reward_B, 2.0, None).tolist() == expected
    expected = [[6.0, 0.0, 0.0], [-5.5, 0.0, -0.5], [0.0, 0.0, 0.0]]  # times 2, 0.5; 1, 0.25
    assert combined(advantage_BT, kept_BT, reward_B, 2.0, ratio_BT).tolist() == expected
    expected = [[2.0, -1.0, 0.0], [0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert combined(advantage_BT, kept_BT, reward_B, 0.0, ratio_BT).tolist() == expected
