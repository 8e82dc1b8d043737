"""What the completions of one prompt say about each other, by hand."""

import pytest
import torch

from fire_opd_trl import Context, Rollout
from fire_opd_trl.stages.group import (
    correct_B,
    group_mean_B,
    group_z_B,
    mixed_outcome_B,
    outcome_margin_B,
    over_group_B,
)


WORLD = Context().world
# Two prompts, not in one piece. The last row is empty: it takes part in nothing.
MASK = torch.tensor([[1], [1], [1], [1], [1], [0]]).bool()
ROLLOUT = Rollout(
    MASK,
    group_B=torch.tensor([7, 2, 7, 2, 7, 2]),
    reward_B=torch.tensor([1.0, 0.5, 0.0, 0.25, -1.0, -9.0]),
)
VALUE_B = torch.tensor([4.0, 1.0, 2.0, 3.0, 0.0, 99.0])


def test_sums_and_extremes_are_those_of_the_members_of_ones_own_prompt():
    alive_B = ROLLOUT.alive_B
    assert over_group_B(VALUE_B, alive_B, ROLLOUT, WORLD).tolist() == [6.0, 4.0, 6.0, 4.0, 6.0, 4.0]
    assert over_group_B(VALUE_B, alive_B, ROLLOUT, WORLD, "amax").tolist() == [4.0, 3.0, 4.0, 3.0, 4.0, 3.0]
    assert over_group_B(VALUE_B, alive_B, ROLLOUT, WORLD, "amin").tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    nobody_B = torch.zeros(6, dtype=torch.bool)
    assert over_group_B(VALUE_B, nobody_B, ROLLOUT, WORLD, "amin").tolist() == [torch.inf] * 6


def test_a_mean_without_members_is_0():
    assert group_mean_B(VALUE_B, ROLLOUT.alive_B, ROLLOUT, WORLD).tolist() == [2.0] * 6
    first_B = torch.arange(6) == 0
    assert group_mean_B(VALUE_B, first_B, ROLLOUT, WORLD).tolist() == [4.0, 0.0, 4.0, 0.0, 4.0, 0.0]


def test_z_scores_have_the_populations_deviation_and_are_0_where_all_are_equal():
    z_B = group_z_B(VALUE_B, ROLLOUT, WORLD)[:5].tolist()
    deviation = (8 / 3) ** 0.5  # of 4, 2, 0
    assert z_B == pytest.approx([2 / deviation, -1.0, 0.0, 1.0, -2 / deviation])
    assert group_z_B(torch.full((6,), 33.3), ROLLOUT, WORLD).tolist() == [0.0] * 6


def test_correct_is_a_reward_above_0():
    assert correct_B(ROLLOUT).tolist() == [True, True, False, True, False, False]


def test_a_margin_is_between_the_correct_and_the_wrong_of_a_prompt_and_infinite_without_both():
    assert mixed_outcome_B(ROLLOUT, WORLD).tolist() == [True, False] * 3  # the wrong one of prompt 2 is empty
    means = outcome_margin_B(VALUE_B, ROLLOUT, WORLD, "mean").tolist()
    assert means == [4.0 - 1.0, torch.inf] * 3  # correct: 4; wrong: 2 and 0
    extremes = outcome_margin_B(VALUE_B, ROLLOUT, WORLD, "minmax").tolist()
    assert extremes == [4.0 - 2.0, torch.inf] * 3
