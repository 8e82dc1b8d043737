"""Which tokens train at all, by hand."""

import pytest
import torch

from fire_opd_trl import Context, Rollout, Scores
from fire_opd_trl.stages.select import (
    agreeing_with_verifier,
    explore_then_refine,
    highest_weights,
    top_share_BT,
    unit_range_BT,
    unsure_or_far,
)


MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]).bool()
TEACHER = torch.tensor([[-1.0, -5.0, -9.0, -2.0, -1.0], [-1.0, -2.0, -6.0, -9.0, -9.0]])
STUDENT = torch.tensor([[-2.0, -1.0, -9.0, -2.0, -3.0], [-2.0, -1.0, -1.0, -9.0, -9.0]])
ENTROPY = torch.tensor([[1.0, 4.0, 99.0, 2.0, 3.0], [0.0, 2.0, 1.0, 99.0, 99.0]])
FAR = torch.tensor([[0.0, 0.0, 99.0, 8.0, 2.0], [4.0, 0.0, 2.0, 99.0, 99.0]])
SCORES = Scores(TEACHER, STUDENT, student_entropy_BT=ENTROPY, reverse_kl_BT=FAR)
ROLLOUT = Rollout(MASK, reward_B=torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("share", "first", "second"),
    [
        (0.5, [0.0, 2.0, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0, 0.0]),  # 2 of 4, and floor(1.5) = 1 of 3
        (0.01, [0.0, 4.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0, 0.0]),  # never none
        (1.0, [1.0, 1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.0]),
    ],
)
def test_the_top_share_of_a_row_carries_the_weight_of_all(share, first, second):
    assert top_share_BT(ENTROPY, MASK, share).tolist() == [first, second]


def test_of_equal_values_the_earlier_is_taken():
    assert top_share_BT(torch.ones(2, 5), MASK, 0.5).tolist()[0] == [2.0, 2.0, 0.0, 0.0, 0.0]


def test_weights_made_hard_are_those_that_were_highest():
    weight_BT = highest_weights(ROLLOUT, SCORES, Context(), weigh=lambda *_: ENTROPY, keep=0.5)
    assert weight_BT.tolist() == top_share_BT(ENTROPY, MASK, 0.5).tolist()


def test_values_are_clipped_at_the_quantile_and_scaled_over_the_window():
    scaled_BT = unit_range_BT(FAR, MASK, 1.0, Context().world)
    assert scaled_BT.tolist() == [[0.0, 0.0, 0.0, 1.0, 0.25], [0.5, 0.0, 0.25, 0.0, 0.0]]
    assert unit_range_BT(torch.full((2, 5), 3.0), MASK, 1.0, Context().world).tolist() == [[0.0] * 5] * 2


def test_a_token_is_chosen_for_being_unsure_or_far():
    weight_BT = unsure_or_far(ROLLOUT, SCORES, Context(), keep=0.5, clip_quantile=1.0)
    # s = h + d - h d, with h = H / 4 and d = KL / 8: 0.25, 1, 1, 0.8125 and 0.5, 0.5, 0.4375
    assert weight_BT.tolist() == [[0.0, 2.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0]]


def test_first_the_tokens_above_the_floor_and_then_those_of_high_entropy():
    knobs = {"floor": -3.0, "keep": 0.5, "switch": 0.5}
    early = explore_then_refine(ROLLOUT, SCORES, Context(progress=0.0), **knobs)
    # log-ratios 1, -4, 0, 2 and 1, -1, -5: five of seven
    assert early.tolist() == [pytest.approx([1.4, 0.0, 0.0, 1.4, 1.4]), pytest.approx([1.4, 1.4, 0.0, 0.0, 0.0])]
    late = explore_then_refine(ROLLOUT, SCORES, Context(progress=0.5), **knobs)
    # entropies 0 1 1 2 2 3 4, their median is 2
    assert late.tolist() == [pytest.approx([0.0, 1.75, 0.0, 1.75, 1.75]), pytest.approx([0.0, 1.75, 0.0, 0.0, 0.0])]


def test_the_teacher_trains_where_the_verifier_agrees():
    weight_BT = agreeing_with_verifier(ROLLOUT, SCORES, Context(), conflict=0.25)
    # The first row is correct: pulled up 1 and 2. The second is wrong: pushed down -1 and -5.
    assert weight_BT.tolist() == [[1.0, 0.25, 0.0, 0.25, 1.0], [0.25, 1.0, 1.0, 0.0, 0.0]]
