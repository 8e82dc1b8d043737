"""The metrics of a window by hand."""

import pytest
import torch
from support.tensors import CONTEXT, f64, mask, scores_of
from support.windows import NAN, on_ranks

from fire_opd_trl import Rollout, Scores
from fire_opd_trl.stages import World, metrics_by_teacher, window_metrics
from fire_opd_trl.stages.metrics import top_decile_share


def test_the_metrics_of_a_window_by_hand():
    # Row 0 is empty, row 1 has a broken teacher value, row 2 is dropped, rows 3 and 4 survive.
    finished_B, looped_B = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 1]])
    sampled = Rollout(mask("00", "11", "11", "11", "10"), finished_B=finished_B, looped_B=looped_B)
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
            "advantage_top_decile": 0.3 * 3 / 5.5,  # a tenth of 3 tokens, 0.3 of the largest
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
    rollout = Rollout(
        mask("11", "10", "11", "10"),
        teacher_B=torch.tensor([0, 0, 1, 2]),
        finished_B=torch.tensor([True, True, True, False]),
        looped_B=torch.tensor([False, True, True, True]),
    )
    scores = Scores(
        teacher_logp_BT=f64([[-6.0, -4.0], [-3.0, NAN], [NAN, -1.0], [-7.0, NAN]]),
        student_logp_BT=f64([[-1.0, -2.0], [-1.0, NAN], [-1.0, -1.0], [-2.0, NAN]]),
    )
    keep_B, signals = torch.tensor([False, True, False, False]), ("teacher_logp_BT", "student_logp_BT")
    assert metrics_by_teacher(rollout, scores, signals, keep_B, 3, CONTEXT.world) == [
        # student - teacher: 5 + 2 in row 0, 2 in row 1; row means of the teacher -5 and -3
        # teacher - student at the last token of rows 0 and 1: -4 + 2 and -3 + 1
        {"rows": 2, "keep_ratio": 1 / 2, "reverse_kl": 9 / 3, "reverse_kl_kept": 2, "teacher_logp": -4}
        | {"looped_ratio": 1 / 2, "terminal_gap": -2},
        {"rows": 1},
        {
            "rows": 1,
            "keep_ratio": 0,
            "reverse_kl": 5,
            "teacher_logp": -7,
            "looped_ratio": 1,
        },  # none kept or ended
    ]


@pytest.mark.parametrize(
    "values, share",
    [
        ([2.0] * 10, 0.1),  # equal: a tenth of the tokens has a tenth, exactly
        ([-3.0] * 7, 0.1),  # also where 0.7 tokens are a tenth; signs do not matter
        ([0.0] * 9 + [5.0], 1.0),
        ([0.0] * 19 + [5.0], 1.0),  # two of 20 tokens, of which one has everything
        ([1.0] * 18 + [9.0, -9.0], 0.5),  # 18 of 36
        ([1.0] * 18 + [9.1, -9.1], 18.2 / 36.2),  # between two ends of bins
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.5 / 15),  # half a token
        ([1e-30] * 19 + [1e30], 1.0),  # and half of nothing
    ],
)
def test_the_share_of_the_top_decile_by_hand(values, share):
    assert top_decile_share(f64([values]), len(values), World()) == pytest.approx(share, rel=1e-6)


def test_the_share_of_the_top_decile_is_right_within_0_8_percent_and_depends_on_no_layout():
    generator = torch.Generator().manual_seed(0)
    assert top_decile_share(torch.zeros(2, 3), 6, World()) is None  # a method without advantages
    for spread in (0.01, 0.5, 2.0, 8.0):  # from nearly equal to a few that have everything
        value_BT = (spread * torch.randn(40, 50, generator=generator)).exp() * torch.randn(40, 50, generator=generator)
        size_N = value_BT.abs().double().flatten().sort(descending=True).values
        whole = top_decile_share(value_BT, 2000, World())
        assert whole == pytest.approx((size_N[:200].sum() / size_N.sum()).item(), rel=0.008)
        padded_BT = torch.nn.functional.pad(value_BT.flip(0), (0, 9, 3, 0))
        assert top_decile_share(padded_BT, 2000, World()) == whole  # to the bit
        parts = value_BT.split([1, 30, 9])
        shares = on_ranks(3, lambda rank, world, parts=parts: top_decile_share(parts[rank], 2000, world))
        assert shares == [whole] * 3
    # The worst there is: ten tokens at the lower and one at the upper end of a bin, and 1.1 of 11 are a tenth.
    values = f64([[1.0] * 10 + [1.0078]])
    assert top_decile_share(values, 11, World()) == pytest.approx((1.0078 + 0.1) / 11.0078, rel=0.008)
    assert top_decile_share(values, 11, World()) != pytest.approx((1.0078 + 0.1) / 11.0078, rel=0.005)
