"""Whether a teacher fits: numbers worked by hand, and what is said of each kind of teacher."""

import math
from dataclasses import replace

import pytest
import torch

from fire_opd_trl.preflight.fit import Fit, doubts_of_fit, faults_of_fit, fit_of


# A pair as good ones are: nothing is said against it.
GOOD = Fit(
    answers=20, broken=0, tokens=1000, teacher=-0.5, student=-0.3, guessing=-10.8, spread=10.3, first=0.2, later=0.2,
    rejected=0.03, own_rejected=0.01, ended=18, end_gap=-0.1, parted=9, place=7, row_sums=[],
)  # fmt: skip


def window(student, teacher, mask, finished, owner=None):
    mask_BT = torch.tensor(mask, dtype=torch.bool)
    return {
        "old_per_token_logps": torch.tensor(student),
        "teacher_logps": torch.tensor(teacher),
        "train_mask": mask_BT,
        "completion_mask": mask_BT.long(),
        "finished": torch.tensor(finished),
        "teacher_number": torch.tensor(owner or [0] * len(mask)),
    }


def test_a_window_worked_by_hand():
    # Row 0: gaps 0, 0, 0, 3; it ends with the fourth token. Row 1: gaps 1, 5, then padding; it was cut. Row 2: NaN.
    student = [[-1.0, -1.0, -1.0, -1.0], [-2.0, -1.0, 9.0, 9.0], [-1.0, -1.0, 9.0, 9.0]]
    teacher = [[-1.0, -1.0, -1.0, -4.0], [-3.0, -6.0, 9.0, 9.0], [-1.0, math.nan, 9.0, 9.0]]
    mask = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    fit = fit_of(window(student, teacher, mask, [True, False, True]), 0, student_rows=16)
    assert (fit.answers, fit.broken, fit.tokens, fit.ended) == (3, 1, 6, 1)
    assert fit.teacher == pytest.approx(-16 / 6) and fit.student == pytest.approx(-7 / 6)
    assert fit.kl == pytest.approx(9 / 6)  # gaps 0 + 0 + 0 + 3 + 1 + 5 over six tokens
    assert fit.guessing == pytest.approx(-math.log(16))
    assert fit.first == pytest.approx(6 / 5) and fit.later == pytest.approx(3.0)  # the fourth token alone is later
    # ln 0.01 = -4.6: of the six tokens only the teacher's -6 is below it.
    assert fit.rejected == pytest.approx(1 / 6) and fit.own_rejected == 0
    assert fit.end_gap == pytest.approx(-3.0)  # the row that ended, not the broken one
    assert (fit.parted, fit.place) == (2, 2)  # at the tokens 4 and 2; torch's median is the lower of two
    assert fit.row_sums == [(0, 3.0, 4), (1, 6.0, 2)]


def test_a_row_counts_for_its_own_teacher():
    parts = [[[-1.0, -1.0], [-1.0, -1.0]], [[-2.0, -2.0], [-4.0, -4.0]], [[1, 1], [1, 1]], [True, True]]
    both = window(*parts, owner=[1, 0])
    assert fit_of(both, 0, 16).kl == pytest.approx(3.0) and fit_of(both, 1, 16).kl == pytest.approx(1.0)
    assert fit_of(both, 2, 16) is None


def test_nothing_is_said_against_a_good_pair():
    assert faults_of_fit(GOOD) == doubts_of_fit(GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"broken": 3}, "In 3 of 20 answers it gives NaN or infinite log-probabilities"),
        ({"teacher": -10.8}, "no likelier than guessing"),
        ({"teacher": -10.7, "spread": 2.1}, "its weights are random or lost"),  # 0.2 x 10.8 = 2.16
    ],
)
def test_a_teacher_from_which_nothing_can_be_learned_does_not_fit(change, said):
    (fault,) = faults_of_fit(replace(GOOD, **change))
    assert said in fault


@pytest.mark.parametrize(
    "change", [{"broken": 2}, {"teacher": -10.79}, {"spread": 2.17}, {"spread": 2.1, "tokens": 99}]
)
def test_a_fault_begins_at_its_limit(change):
    assert faults_of_fit(replace(GOOD, **change)) == []


@pytest.mark.parametrize(
    ("change", "said", "almost"),
    [
        ({"broken": 1}, "1 of 20 answers it has a NaN", {"broken": 0}),
        ({"first": 1.3}, "They part at once", {"first": 1.2}),
        ({"end_gap": -3.1}, "would not end where the student ends (3.1 nats less likely, in 18", {"end_gap": -3.0}),
        ({"teacher": -3.31}, "far apart, by 3.0 nats a token (limit 3)", {"teacher": -3.3}),
        ({"teacher": -0.3005}, "nothing to learn", {"teacher": -0.302}),
    ],
)
def test_a_doubt_begins_at_its_limit(change, said, almost):
    (doubt,) = doubts_of_fit(replace(GOOD, **change))
    assert said in doubt
    assert doubts_of_fit(replace(GOOD, **almost)) == []


def test_of_three_ends_nothing_is_concluded():
    assert (
        doubts_of_fit(replace(GOOD, end_gap=-9.0, ended=3))
        == []
        != doubts_of_fit(replace(GOOD, end_gap=-9.0, ended=4))
    )


def test_a_teacher_that_would_end_earlier_and_answers_that_are_all_cut_are_no_doubt():
    assert doubts_of_fit(replace(GOOD, end_gap=5.0)) == doubts_of_fit(replace(GOOD, end_gap=None, ended=0)) == []
