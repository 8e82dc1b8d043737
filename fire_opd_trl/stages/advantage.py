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


def mixed(
    advantage_BT: torch.Tensor,
    kept_BT: torch.Tensor,
    reward_advantage_B: torch.Tensor,
    reward_coef: float,
    ratio_BT: torch.Tensor | None,
) -> torch.Tensor:
    """
    `(A_t + c A_group) r_t`: the distillation advantage, GRPO's group advantage on the survivors' tokens, and the
    importance ratio between the training and the rollout engine, where there is one.

    Returns:
        `torch.Tensor`: `advantage_BT`, 0 outside `kept_BT`.
    """
    if reward_coef:
        advantage_BT = advantage_BT + torch.where(kept_BT, reward_coef * reward_advantage_B.unsqueeze(1), 0.0)
    return advantage_BT if ratio_BT is None else torch.where(kept_BT, advantage_BT * ratio_BT, 0.0)
