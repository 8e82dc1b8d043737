"""Stage 5: what a token's log-probabilities say about which way to move."""

import math

import torch

from .group import SMALLEST_SPREAD, correct_B, group_z_B, outcome_margin_B
from .rollout import Rollout, masked_mean_B
from .score import Scores, log_ratio
from .world import Context


STATISTICS = ("mean", "minmax")
DIRECTIONS = ("both", "correct_up", "incorrect_down")


def no_policy_gradient(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """No policy gradient, as `advantage=None` says more shortly and more cheaply. Returns `advantage_BT`, all 0."""
    return torch.zeros_like(scores.teacher_logp_BT)


def extrapolated(rollout: Rollout, scores: Scores, context: Context, *, extrapolation: float) -> torch.Tensor:
    """
    An advantage that leads beyond the teacher, away from a reference model (ExOPD): `A_t = a_t + (lambda - 1)(log pi_T
    - log pi_ref)`, which is `lambda log pi_T + (1 - lambda) log pi_ref - log pi_old`.

    Returns:
        `torch.Tensor`: `advantage_BT`.
    """
    assert scores.reference_logp_BT is not None
    beyond_BT = scores.teacher_logp_BT - scores.reference_logp_BT
    return log_ratio(rollout, scores, context) + torch.where(rollout.mask_BT, (extrapolation - 1) * beyond_BT, 0.0)


def floored(rollout: Rollout, scores: Scores, context: Context, *, floor: float) -> torch.Tensor:
    """A log-ratio that a single token cannot blow up (REOPOLD): `max(a_t, floor)`. Returns `advantage_BT`."""
    return torch.where(rollout.mask_BT, log_ratio(rollout, scores, context).clamp(min=floor), 0.0)


def power_difference(rollout: Rollout, scores: Scores, context: Context, *, power: float) -> torch.Tensor:
    """A bounded signal (PowerOPD): `A_t = pi_T(y_t)^alpha - pi_old(y_t)^alpha`, in [-1, 1]. Returns `advantage_BT`."""
    difference_BT = (power * scores.teacher_logp_BT).exp() - (power * scores.student_logp_BT).exp()
    return torch.where(rollout.mask_BT, difference_BT, 0.0)


def margin_shifted(
    rollout: Rollout, scores: Scores, context: Context, *, margin: float, statistic: str, direction: str
) -> torch.Tensor:
    """
    Correct rows move above wrong ones (Uni-OPD): where the margin of a prompt (see `outcome_margin_B`, over the rows'
    mean `a_t`) falls short of the wanted one by `s`, every token of its correct rows gains `s / 2`, and every token of
    its wrong rows loses `s / 2`.

    Args:
        margin (`float`): The margin wanted, in nats a token.
        statistic (`str`): `"mean"` or `"minmax"`.
        direction (`str`): With `"correct_up"` or `"incorrect_down"` only those rows move, by all of `s`; with `"both"`
            each side moves by half of it.

    Returns:
        `torch.Tensor`: `advantage_BT`.
    """
    advantage_BT = log_ratio(rollout, scores, context)
    mean_B = masked_mean_B(advantage_BT, rollout.mask_BT)
    short_B = (margin - outcome_margin_B(mean_B, rollout, context.world, statistic)).clamp(min=0.0)
    up, down = {"both": (0.5, 0.5), "correct_up": (1.0, 0.0), "incorrect_down": (0.0, 1.0)}[direction]
    shift_B = torch.where(correct_B(rollout), up * short_B, -down * short_B)
    return torch.where(rollout.mask_BT, advantage_BT + shift_B.unsqueeze(1), 0.0)


def group_calibrated(
    rollout: Rollout, scores: Scores, context: Context, *, strength: float, largest: float
) -> torch.Tensor:
    """
    The outcome that the teacher did not foresee goes to the tokens that it liked best (GC-OPD): with the row's mean
    `s_i` of `a_t` and its deviation `sigma_i`, and z-scores inside the prompt group,

        rho_i = z(R_i) - z(s_i),   c_t = 1 + tanh((a_t - s_i) / (2 sigma_i)),   A_t = a_t + beta c_t rho_i.

    Returns:
        `torch.Tensor`: `advantage_BT`, clamped to `[-largest, largest]`.
    """
    assert rollout.reward_B is not None
    mask_BT = rollout.mask_BT
    advantage_BT = log_ratio(rollout, scores, context)
    mean_B = masked_mean_B(advantage_BT, mask_BT)
    reward_B = torch.where(rollout.alive_B, rollout.reward_B.to(mean_B.dtype), 0.0)
    surprise_B = group_z_B(reward_B, rollout, context.world) - group_z_B(mean_B, rollout, context.world)
    exact_BT = advantage_BT.double()  # a row of equal values has deviation 0, which float32 misses
    centred_BT = torch.where(mask_BT, exact_BT - masked_mean_B(exact_BT, mask_BT).unsqueeze(1), 0.0)
    spread_B = masked_mean_B(centred_BT.square(), mask_BT).sqrt().clamp(min=SMALLEST_SPREAD)
    share_BT = (1.0 + torch.tanh(centred_BT / spread_B.unsqueeze(1) / 2)).to(advantage_BT.dtype)
    advantage_BT = (advantage_BT + strength * share_BT * surprise_B.unsqueeze(1)).clamp(-largest, largest)
    return torch.where(mask_BT, advantage_BT, 0.0)


def imitate_correct(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """
    Correct rows gain likelihood, the others are distilled (SCOPE): `A_t = 1` on the former, `a_t` on the latter.

    Returns:
        `torch.Tensor`: `advantage_BT`.
    """
    advantage_BT = log_ratio(rollout, scores, context)
    return torch.where(rollout.mask_BT & correct_B(rollout).unsqueeze(1), 1.0, advantage_BT)


def combined(
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


def mixture_floor(share: float) -> float:
    """`log(lambda / (1 - lambda))`, REOPOLD's floor of the log-ratio: -1.386 at 0.2, -inf at 0."""
    return math.log(share / (1 - share)) if share else -math.inf
