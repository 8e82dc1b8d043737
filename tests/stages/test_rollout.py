"""What a rollout holds, and sums and means under its mask."""

import torch
from support.tensors import f64, mask
from support.windows import INF, NAN

from fire_opd_trl import Rollout
from fire_opd_trl.stages import (
    masked_mean_B,
    masked_sum_B,
)


def test_masked_sums_and_means_see_nothing_outside_the_mask():
    value_BT = f64([[1.0, 2.0, NAN], [INF, 4.0, 8.0], [NAN, -INF, 1e300]])
    mask_BT = mask("110", "011", "000")
    assert masked_sum_B(value_BT, mask_BT).tolist() == [3.0, 12.0, 0.0]
    assert masked_mean_B(value_BT, mask_BT).tolist() == [1.5, 6.0, 0.0]  # (1+2)/2, (4+8)/2, an empty row 0


def test_a_rollout_takes_masks_of_numbers_and_empties_rows_by_their_mask_alone():
    rollout = Rollout(torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1]]), teacher_B=torch.tensor([3, 4, 5, 6]))
    assert rollout.mask_BT.dtype == torch.bool
    assert rollout.alive_B.tolist() == [True, True, False, True]
    kept = rollout.only(torch.tensor([False, True, True, True]))
    assert kept.mask_BT.tolist() == mask("00", "11", "00", "01").tolist()
    assert kept.teacher_B.tolist() == [3, 4, 5, 6]
    assert rollout.alive_B.tolist() == [True, True, False, True]  # the first record is as it was
