"""The score of a trajectory, and which rows are finite."""

from support.tensors import CONTEXT, f64, mask, scores_of
from support.windows import INF, NAN

from fire_opd_trl import Rollout
from fire_opd_trl.stages import (
    finite_B,
    mean_teacher_logp,
)


def test_the_score_is_the_mean_and_not_the_sum_of_the_teacher_log_probabilities():
    rollout = Rollout(mask("1111", "1000", "1010", "0000"))
    teacher_BT = f64([[-1.0, -2.0, -3.0, -6.0], [-3.0, NAN, NAN, NAN], [-0.5, -100.0, -1.5, NAN], [NAN] * 4])
    score_B = mean_teacher_logp(rollout, scores_of(rollout.mask_BT, teacher_logp_BT=teacher_BT), CONTEXT)
    assert score_B.tolist() == [-3.0, -3.0, -1.0, 0.0]  # -12/4; -3/1: the same in spite of the lengths; -2/2; empty


def test_finite_rows_are_those_without_nan_or_infinity_under_the_mask():
    value_BT = f64([[0.0, NAN], [NAN, 0.0], [0.0, INF], [0.0, -INF], [-1e300, 1e300], [NAN, NAN]])
    mask_BT = mask("10", "11", "11", "01", "11", "00")
    assert finite_B(value_BT, mask_BT).tolist() == [True, False, False, False, True, True]
