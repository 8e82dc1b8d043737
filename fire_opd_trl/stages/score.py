"""Stage 2: what the models say about each sampled token, and one number for each trajectory."""

from dataclasses import dataclass
from typing import Any

import torch

from .records import FRACTIONS, take_tensors
from .rollout import Rollout, masked_mean_B
from .world import Context


@dataclass(frozen=True, eq=False)
class Scores:
    """
    Log-probabilities and entropies in nats at the sampling temperature, one value for each sampled token. None of
    them carries a gradient, and values outside the mask are never read. Arrays and lists become tensors.

    Example, with two answers of at most two tokens:

    ```python
    >>> from fire_opd_trl import Scores
    >>> scores = Scores(teacher_logp_BT=[[-0.1, -0.2], [-3.0, 0.0]], student_logp_BT=[[-0.3, -0.1], [-0.5, 0.0]])
    >>> scores.teacher_logp_BT.shape
    torch.Size([2, 2])
    ```

    Args:
        teacher_logp_BT (`torch.Tensor`): `log pi_T(y_t | x, y_<t)`.
        student_logp_BT (`torch.Tensor`): `log pi_old(y_t | x, y_<t)`, where pi_old is the student that sampled, in the
            training engine.
        teacher_entropy_BT (`torch.Tensor`, *optional*): Entropy of the teacher's next-token distribution.
        student_entropy_BT (`torch.Tensor`, *optional*): Entropy of the student's next-token distribution.
        reference_logp_BT (`torch.Tensor`, *optional*): The same log-probability under a reference model.
        reverse_kl_BT (`torch.Tensor`, *optional*): KL(student || teacher) of the two next-token distributions.
    """

    teacher_logp_BT: torch.Tensor
    student_logp_BT: torch.Tensor
    teacher_entropy_BT: torch.Tensor | None = None
    student_entropy_BT: torch.Tensor | None = None
    reference_logp_BT: torch.Tensor | None = None
    reverse_kl_BT: torch.Tensor | None = None

    def __post_init__(self):
        take_tensors(self, **dict.fromkeys(vars(self), FRACTIONS))

    def only(self, signals: tuple[str, ...]) -> "Scores":
        """The same scores with these signals alone, so that a fault in any other has no effect."""
        read: dict[str, Any] = {name: value if name in signals else None for name, value in vars(self).items()}
        return Scores(**read)


def finite_B(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Rows without NaN or infinity under the mask, `[B]`."""
    return (torch.isfinite(value_BT) | ~mask_BT).all(dim=1)


def log_ratio(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """
    The on-policy distillation advantage: `a_t = log pi_T(y_t) - log pi_old(y_t)`, minus the one-sample estimate of
    KL(student || teacher). A coefficient, not a function to differentiate: its own expected gradient is zero.

    Returns:
        `torch.Tensor`: `advantage_BT`, 0 outside the mask, without gradient.
    """
    difference_BT = scores.teacher_logp_BT.detach() - scores.student_logp_BT.detach()
    return torch.where(rollout.mask_BT, difference_BT, 0.0)


def mean_teacher_logp(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """
    How likely the teacher finds a trajectory (FiRe-OPD, trajectory score): `s(y) = 1/|y| sum_t log pi_T(y_t)`.

    Returns:
        `torch.Tensor`: `score_B`.
    """
    return masked_mean_B(scores.teacher_logp_BT, rollout.mask_BT)


def mean_log_ratio(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """How much likelier the teacher finds a trajectory than the student does: the mean of `a_t`. Returns `score_B`."""
    return masked_mean_B(scores.teacher_logp_BT - scores.student_logp_BT, rollout.mask_BT)
