"""Stage 5: what a token's log-probabilities say about which way to move."""

import torch

from .rollout import Rollout
from .score import Scores
from .world import Context


def log_ratio(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """
    The on-policy distillation advantage: `a_t = log pi_T(y_t) - log pi_old(y_t)`, minus the one-sample estimate of
    KL(student || teacher). A coefficient, not a function to differentiate: its own expected gradient is zero.

    Returns:
        `torch.Tensor`: `advantage_BT`, 0 outside the mask, without gradient.
    """
    difference_BT = scores.teacher_logp_BT.detach() - scores.student_logp_BT.detach()
    return torch.where(rollout.mask_BT, difference_BT, 0.0)
