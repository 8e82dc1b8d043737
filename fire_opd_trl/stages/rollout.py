"""Stage 1: what the student sampled, and sums and means over its tokens alone."""

from dataclasses import dataclass, replace

import torch

from .records import FRACTIONS, WHOLE, YES_OR_NO, take_tensors


@dataclass(frozen=True, eq=False)
class Rollout:
    """
    One window of sampled trajectories, as one rank holds it. Arrays and lists become tensors.

    The mask is the only statement about which tokens exist: a row that is dropped, or unusable, is a row whose mask is
    empty, so no later stage needs to know why.

    Example, with three answers of at most four tokens, the last of them empty:

    ```python
    >>> from fire_opd_trl import Rollout
    >>> Rollout(mask_BT=[[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], reward_B=[1.0, 0.0, 0.0]).alive_B
    tensor([ True,  True, False])
    ```

    Args:
        mask_BT (`torch.Tensor`): True on sampled tokens that train; false on padding, tool output, dropped rows.
        teacher_B (`torch.Tensor`, *optional*): Number of the teacher that scored the row.
        group_B (`torch.Tensor`, *optional*): Number of the prompt, equal for all rows sampled from it.
        reward_B (`torch.Tensor`, *optional*): Outcome reward of the row; finite wherever the row has a token.
        finished_B (`torch.Tensor`, *optional*): Whether the row ended by itself rather than at the length limit.
        looped_B (`torch.Tensor`, *optional*): Whether the end of the row repeats itself; see [`looped_tail_B`].
    """

    mask_BT: torch.Tensor
    teacher_B: torch.Tensor | None = None
    group_B: torch.Tensor | None = None
    reward_B: torch.Tensor | None = None
    finished_B: torch.Tensor | None = None
    looped_B: torch.Tensor | None = None

    def __post_init__(self):
        yes_or_no = dict.fromkeys(("mask_BT", "finished_B", "looped_B"), YES_OR_NO)
        take_tensors(self, **yes_or_no, teacher_B=WHOLE, group_B=WHOLE, reward_B=FRACTIONS)

    @property
    def alive_B(self) -> torch.Tensor:
        """Rows with at least one token that trains, `[B]`."""
        return self.mask_BT.any(dim=1)

    def only(self, keep_B: torch.Tensor) -> "Rollout":
        """The same rollout with every row outside `keep_B` emptied."""
        return replace(self, mask_BT=self.mask_BT & keep_B.unsqueeze(1))


def masked_sum_B(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """`sum_t m_t x_t` in each row, `[B]`. Values outside the mask may be anything, NaN included."""
    return torch.where(mask_BT, value_BT, 0.0).sum(dim=1)


def masked_mean_B(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """`sum_t m_t x_t / max(1, sum_t m_t)` in each row, `[B]`; 0 for an empty row."""
    return masked_sum_B(value_BT, mask_BT) / mask_BT.sum(dim=1).clamp(min=1)
