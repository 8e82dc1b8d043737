"""What records take: tensors, arrays and lists; what would broadcast, or be computed as something else, is refused."""

import numpy as np
import pytest
import torch

from fire_opd_trl import METHODS, Rollout, Scores, distil
from fire_opd_trl.stages.records import AXES, FRACTIONS, as_tensor


LOGP = [[-1, -2], [-3, 0]]


@pytest.mark.parametrize("given", [torch.tensor, np.array, list, tuple], ids=lambda kind: kind.__name__)
def test_tensors_arrays_and_lists_are_the_same_record(given):
    numbers = torch.tensor(LOGP, dtype=torch.float32)
    logp_BT = (
        given(LOGP) if given in (list, tuple) else given(numbers.tolist())
    )  # whole numbers in a list are meant so
    rollout = Rollout(given([[1, 1], [1, 0]]), teacher_B=given([0, 1]), reward_B=given([1.0, 0.0]))
    signal = distil(rollout, Scores(logp_BT, (0 * numbers).tolist()), METHODS["opd"]())
    assert rollout.mask_BT.dtype == torch.bool and rollout.teacher_B.dtype == torch.int64
    assert signal.advantage_BT.tolist() == [[-1.0, -2.0], [-3.0, 0.0]]  # teacher - student, in the mask


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: Rollout([[1, 1], [1]]), "Rollout: mask_BT is a list that makes no tensor .*pad rows to one length"),
        (lambda: Rollout(torch.ones(3)), r"mask_BT has the shape \[3\]. Give one for each token of each trajectory"),
        (lambda: Rollout("mask"), "mask_BT is a str that makes no tensor"),
        (
            lambda: Rollout(torch.ones(4, 3), reward_B=torch.ones(4, 1)),
            r"reward_B has the shape \[4, 1\]. Give one value",
        ),
        (
            lambda: Rollout(torch.ones(4, 3), reward_B=torch.ones(3)),
            r"reward_B has the shape \[3\], and mask_BT \[4, 3\]",
        ),
        (lambda: Rollout(torch.ones(4, 3), group_B=torch.ones(4)), "group_B holds float32. Give whole numbers"),
        (
            lambda: Scores(torch.zeros(4, 3).long(), torch.zeros(4, 3)),
            "teacher_logp_BT holds int64. Give numbers with",
        ),
        (lambda: Scores(torch.zeros(1, 3), torch.zeros(4, 3)), r"student_logp_BT has the shape \[4, 3\], and teacher"),
    ],
)
def test_a_record_refuses_with_what_to_give(made, sentence):
    with pytest.raises(ValueError, match=sentence):
        made()


def test_a_window_and_its_scores_have_one_shape():
    # Before, one row of scores was broadcast over four of the window, in silence.
    scores = Scores(-torch.ones(1, 3), -torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"scores has the shape \[1, 3\], and the mask of rollout \[4, 3\]"):
        distil(Rollout(torch.ones(4, 3)), scores, METHODS["opd"]())


def test_a_tensor_is_taken_as_it_is():
    value_BT = torch.zeros(2, 2, dtype=torch.float64)
    assert as_tensor("x", value_BT, FRACTIONS, AXES["BT"]) is value_BT
