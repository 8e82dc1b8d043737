"""Scopes of statistics, and maxima over them."""

import pytest
import torch
from support.tensors import Later, f64, mask
from support.windows import INF, NAN

from fire_opd_trl import Rollout
from fire_opd_trl.stages import (
    World,
    scope_B,
    scope_max_B,
)


def test_scopes_are_numbered_and_unknown_ones_refused():
    rollout = Rollout(mask("1", "1", "1"), teacher_B=torch.tensor([4, 2, 4]))
    assert scope_B(rollout, "batch", World()).tolist() == [0, 0, 0]
    assert scope_B(rollout, "teacher", World()).tolist() == [4, 2, 4]
    assert scope_B(rollout, "trajectory", World()).tolist() == [0, 1, 2]
    assert scope_B(rollout, "trajectory", Later(5)).tolist() == [5, 6, 7]
    assert scope_B(Rollout(mask("1", "1")), "teacher", World()).tolist() == [0, 0]  # one teacher needs no number
    with pytest.raises(ValueError, match="scope='row'.*batch, teacher, trajectory"):
        scope_B(rollout, "row", World())


def test_maxima_are_taken_over_masked_tokens_of_the_scope():
    rollout = Rollout(mask("110", "101", "011", "000"), teacher_B=torch.tensor([1, 0, 1, 0]))
    value_BT = f64([[1.0, 2.0, 99.0], [3.0, NAN, 5.0], [INF, 4.0, 0.5], [NAN, 77.0, 88.0]])
    assert scope_max_B(value_BT, rollout, "batch", World()).tolist() == [5.0, 5.0, 5.0, 5.0]
    assert scope_max_B(value_BT, rollout, "teacher", World()).tolist() == [4.0, 5.0, 4.0, 5.0]
    assert scope_max_B(value_BT, rollout, "trajectory", World()).tolist() == [2.0, 5.0, 4.0, 0.0]
