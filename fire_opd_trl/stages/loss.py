"""Stage 6: from advantages to the number that is differentiated."""

import torch


LOSS_TYPES = ("grpo", "dapo")
LARGEST_LOG_RATIO = 20.0  # as in the released code: keeps exp finite, and 0 * exp zero


def clipped_surrogate(
    logp_BT: torch.Tensor,
    old_logp_BT: torch.Tensor,
    advantage_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The clipped policy gradient of every token (Eq. 9): with `r_t = exp(log pi_theta(y_t) - log pi_old(y_t))`,

        l_t = -min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t).

    Beyond a log-ratio of 20 the ratio stays at exp(20) and has no gradient.

    Args:
        logp_BT (`torch.Tensor`): Current log-probabilities, with gradient.
        old_logp_BT (`torch.Tensor`): Log-probabilities under the student that sampled, without gradient.
        advantage_BT (`torch.Tensor`): Weighted advantages, without gradient.

    Returns:
        `torch.Tensor`, `torch.Tensor`: `loss_BT`, 0 outside the mask: its gradient is `-r_t A_t` times the gradient of
        `logp_BT` where the ratio is not clipped, and 0 where it is; and `clipped_BT`, true where it is.
    """
    log_ratio_BT = torch.where(mask_BT, logp_BT - old_logp_BT.detach(), 0.0)
    ratio_BT = log_ratio_BT.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    advantage_BT = torch.where(mask_BT, advantage_BT, 0.0).detach()
    bounded_BT = ratio_BT.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    loss_BT = -torch.minimum(ratio_BT * advantage_BT, bounded_BT * advantage_BT)
    clipped_BT = (bounded_BT != ratio_BT) & (bounded_BT * advantage_BT < ratio_BT * advantage_BT)
    return loss_BT, clipped_BT


def reference_kl(logp_BT: torch.Tensor, reference_logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """
    GRPO's penalty for leaving a reference model (its k3 estimate): `d_t = log pi_ref(y_t) - log pi_theta(y_t)`,
    `k_t = exp(d_t) - d_t - 1 >= 0`.

    Returns:
        `torch.Tensor`: `kl_BT`, 0 outside the mask, with gradient.
    """
    difference_BT = torch.where(mask_BT, reference_logp_BT.detach() - logp_BT, 0.0).clamp(max=LARGEST_LOG_RATIO)
    return difference_BT.exp() - difference_BT - 1.0


def row_scale(length_B: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, loss_type: str) -> torch.Tensor:
    """
    The factor of a row's summed token losses with which the sum over all micro-batches of the optimizer step and all
    ranks is the mean that the paper asks for:

        "grpo"   1 / (|y| N)   mean over the tokens of a trajectory, then over the N surviving trajectories (Eq. 9)
        "dapo"   1 / sum |y|   mean over all surviving tokens

    Args:
        length_B (`torch.Tensor`): Trained tokens of each row.
        rows (`torch.Tensor`): `N`, surviving trajectories of the optimizer step on all ranks.
        tokens (`torch.Tensor`): Their trained tokens.

    Returns:
        `torch.Tensor`: `scale_B`.
    """
    if loss_type == "grpo":
        return 1.0 / (length_B.float().clamp(min=1) * rows.float().clamp(min=1))
    if loss_type == "dapo":
        return (1.0 / tokens.float().clamp(min=1)).expand(length_B.shape)
    raise ValueError(f"loss_type={loss_type!r} is unknown. Use one of {', '.join(LOSS_TYPES)}.")


def aggregate(loss_BT: torch.Tensor, mask_BT: torch.Tensor, scale_B: torch.Tensor) -> torch.Tensor:
    """`sum_i scale_i sum_t m_it l_it`: the share of these rows in the loss of the optimizer step. A scalar."""
    row_loss_B = torch.where(mask_BT, loss_BT, 0.0).sum(dim=1)
    return (row_loss_B * scale_B.to(row_loss_B.dtype)).sum()
