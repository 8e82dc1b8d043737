"""The metrics of a window by hand."""

import pytest
import torch
from support.tensors import CONTEXT, f64, mask, scores_of
from support.windows import NAN

from fire_opd_trl import Rollout, Scores
from fire_opd_trl.stages import metrics_by_teacher, window_metrics


def test_the_metrics_of_a_window_by_hand():
    # Row 0 is empty, row 1 has a broken teacher value, row 2 is dropped, rows 3 and 4 survive.
    sampled = Rollout(mask("00", "11", "11", "11", "10"), *[None] * 3, *torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 1]]))
    usable = sampled.only(torch.tensor([True, False, True, True, True]))
    kept = usable.only(torch.tensor([False, False, False, True, True]))
    scores = Scores(
        teacher_logp_BT=f64([[NAN, NAN], [NAN, -1.0], [-6.0, -4.0], [-1.0, -2.0], [-3.0, NAN]]),
        student_logp_BT=f64([[NAN, NAN], [-1.0, -1.0], [-1.0, -2.0], [-2.0, -4.0], [-1.0, NAN]]),
        teacher_entropy_BT=f64([[NAN, NAN], [NAN, 1.0], [9.0, 9.0], [1.0, 2.0], [4.0, 9.0]]),
        student_entropy_BT=f64([[NAN, NAN], [9.0, 9.0], [9.0, 9.0], [2.0, 2.0], [0.5, 9.0]]),
    )
    score_B = f64([0.0, 0.0, -5.0, -1.5, -3.0])
    weight_BT = f64([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 1.5], [1.0, 0.0]])
    advantage_BT = f64([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 3.0], [-2.0, 0.0]])
    metrics = window_metrics(sampled, usable, kept, scores, score_B, weight_BT, advantage_BT, None, CONTEXT)
    assert metrics == pytest.approx(
        {
            "rows": 5,
            "empty": 1,
            "nonfinite_teacher": 1,
            "kept_rows": 2,
            "keep_ratio": 2 / 3,  # of the rows that could be ranked
            "kept_token_ratio": 3 / 5,
            "active_token_ratio": 3 / 5,
            "reverse_kl": (5 + 2 - 1 - 2 + 2) / 5,  # student - teacher over the tokens of rows 2, 3 and 4
            "reverse_kl_kept": (-1 - 2 + 2) / 3,  # and of the survivors, rows 3 and 4
            "teacher_logp": (-5 - 1.5 - 3) / 3,
            "threshold": -5,  # the highest score that was dropped
            "weight_max": 1.5,
            "weight_ess": 3**2 / (3 * 3.5),  # (0.5 + 1.5 + 1)^2 / (3 (0.25 + 2.25 + 1))
            "advantage_abs": 5.5 / 3,
            "teacher_entropy": 7 / 3,
            "student_entropy": 4.5 / 3,
            "confidence": 1 - 7 / 3 / 4,
            "confusion": 4.5 / 3 / 2,
            "keep_ratio_finished": 1,  # row 3 of row 3
            "keep_ratio_truncated": 1 / 2,  # row 4 of rows 2 and 4
            "keep_ratio_looped": 1 / 2,  # the same rows
            "looped_ratio": 2 / 3,  # of rows 2, 3 and 4
            "terminal_gap": -2 + 4,  # teacher - student at the last token of row 3, the only usable one that finished
            # A tenth of 3 tokens is 0.3 of the largest; the bins of 0.5, 2 and 3 are 1/256, 1/64 and 1/64 wide.
            "advantage_top_decile": 0.3 * (3 + 1 / 128) / (5.5 + 1 / 512 + 2 / 128),
        },
        rel=1e-6,
    )


def test_a_token_is_active_if_it_has_any_weight_in_the_gradient_or_in_the_divergence():
    rollout = Rollout(mask("1111", "1110"))
    weight_BT, divergence_BT = (
        f64([[0.0, 2.0, 0.0, 0.0], [0.0] * 4]),
        f64([[0.0, 1.0, 0.5, 0.0], [0.0, -1.0, 0.0, 0.0]]),
    )
    scores, score_B = scores_of(rollout.mask_BT), f64([0.0, 0.0])
    for extra, active in ((None, 1), (divergence_BT, 3)):
        metrics = window_metrics(rollout, rollout, rollout, scores, score_B, weight_BT, weight_BT, extra, CONTEXT)
        assert metrics["active_token_ratio"] == pytest.approx(active / 7)
        assert metrics["kept_token_ratio"] == 1


def test_the_metrics_of_each_teacher_by_hand():
    # Teacher 0 has rows 0 (dropped) and 1 (kept), teacher 1 the broken row 2, teacher 2 the dropped row 3.
    rollout = Rollout(mask("11", "10", "11", "10"), teacher_B=torch.tensor([0, 0, 1, 2]))
    scores = Scores(
        teacher_logp_BT=f64([[-6.0, -4.0], [-3.0, NAN], [NAN, -1.0], [-7.0, NAN]]),
        student_logp_BT=f64([[-1.0, -2.0], [-1.0, NAN], [-1.0, -1.0], [-2.0, NAN]]),
    )
    keep_B, signals = torch.tensor([False, True, False, False]), ("teacher_logp_BT", "student_logp_BT")
    assert metrics_by_teacher(rollout, scores, signals, keep_B, 3, CONTEXT.world) == [
        # student - teacher: 5 + 2 in row 0, 2 in row 1; row means of the teacher -5 and -3
        {"rows": 2, "keep_ratio": 1 / 2, "reverse_kl": 9 / 3, "reverse_kl_kept": 2, "teacher_logp": -4},
        {"rows": 1},
        {"rows": 1, "keep_ratio": 0, "reverse_kl": 5, "teacher_logp": -7},  # no survivor
    ]
