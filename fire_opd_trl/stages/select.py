"""Stage 4 with hard weights: which tokens of a surviving trajectory train at all; the others have weight 0."""

import torch

from .group import correct_B
from .reweight import Weigh, uniform
from .rollout import Rollout
from .scope import window_quantile
from .score import Scores, log_ratio
from .world import Context, World


def top_share_BT(value_BT: torch.Tensor, mask_BT: torch.Tensor, share: float) -> torch.Tensor:
    """
    The `K = max(1, floor(share T))` highest values of each row, ties by position: `T / K` there, 0 elsewhere, so that
    a trajectory's total weight stays its length. `weight_BT`.
    """
    length_B1 = mask_BT.sum(dim=1, keepdim=True)
    count_B1 = (share * length_B1.double() + 1e-9).floor().long().clamp(min=1)
    ranked_BT = torch.where(mask_BT, value_BT, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place_BT = ranked_BT.argsort(dim=1)
    kept_BT = mask_BT & (place_BT < count_B1)
    return torch.where(kept_BT, (length_B1 / count_B1).to(value_BT.dtype), 0.0)


def highest_weights(rollout: Rollout, scores: Scores, context: Context, *, weigh: Weigh, keep: float) -> torch.Tensor:
    """
    A hard reweighting (ours; the paper names one, Table 6, and does not define it): it keeps the share `keep` of a
    trajectory's tokens, those with the highest soft weight. Returns `weight_BT`.
    """
    return top_share_BT(weigh(rollout, scores, context), rollout.mask_BT, keep)


def unit_range_BT(value_BT: torch.Tensor, mask_BT: torch.Tensor, quantile: float, world: World) -> torch.Tensor:
    """The window's values clipped at a quantile, then shifted and scaled to [0, 1] over all ranks, `[B, T]`."""
    top = window_quantile(value_BT, mask_BT, quantile, world)
    value_BT = value_BT.clamp(max=top)
    low = -world.max(torch.where(mask_BT, -value_BT, -torch.inf).max())
    return torch.where(mask_BT & (top > low), (value_BT - low) / (top - low), 0.0)


def unsure_or_far(
    rollout: Rollout, scores: Scores, context: Context, *, keep: float, clip_quantile: float
) -> torch.Tensor:
    """
    Tokens train where the student is unsure, or sure and wrong (TIP, Eq. 8): with the student's entropy `h_t` and its
    KL to the teacher `d_t`, each clipped at a quantile of the window and scaled to [0, 1], the score of a token is
    `s_t = h_t + d_t - h_t d_t`; the top share of each trajectory trains.

    Returns:
        `torch.Tensor`: `weight_BT`.
    """
    assert scores.student_entropy_BT is not None and scores.reverse_kl_BT is not None
    mask_BT, world = rollout.mask_BT, context.world
    unsure_BT = unit_range_BT(scores.student_entropy_BT, mask_BT, clip_quantile, world)
    far_BT = unit_range_BT(scores.reverse_kl_BT, mask_BT, clip_quantile, world)
    return top_share_BT(unsure_BT + far_BT - unsure_BT * far_BT, mask_BT, keep)


def explore_then_refine(
    rollout: Rollout, scores: Scores, context: Context, *, floor: float, keep: float, switch: float
) -> torch.Tensor:
    """
    The tokens whose log-ratio is above the floor train first; after the share `switch` of training those with the
    highest student entropy do (REOPOLD): `1[a_t >= floor]`, then `1[H_S(t) >= its (1 - keep)-quantile in the window]`.

    Returns:
        `torch.Tensor`: `weight_BT` of mean 1 over the window's tokens, 0 on those left out.
    """
    mask_BT, world = rollout.mask_BT, context.world
    if context.progress < switch:
        chosen_BT = mask_BT & (log_ratio(rollout, scores, context) >= floor)
    else:
        assert scores.student_entropy_BT is not None
        least = window_quantile(scores.student_entropy_BT, mask_BT, 1 - keep, world)
        chosen_BT = mask_BT & (scores.student_entropy_BT >= least)
    tokens, chosen = world.sum(torch.stack([mask_BT.sum(), chosen_BT.sum()])).tolist()
    return torch.where(chosen_BT, tokens / max(chosen, 1), 0.0).to(scores.teacher_logp_BT.dtype)


def agreeing_with_verifier(rollout: Rollout, scores: Scores, context: Context, *, conflict: float) -> torch.Tensor:
    """
    Tokens count where teacher and verifier agree (OPDVR): in a correct row those that the teacher pulls up, in a wrong
    row those that it pushes down. The others get the weight `conflict`.

    Returns:
        `torch.Tensor`: `weight_BT`, not normalised.
    """
    right_B1 = correct_B(rollout).unsqueeze(1)
    advantage_BT = log_ratio(rollout, scores, context)
    agrees_BT = torch.where(right_B1, advantage_BT > 0, advantage_BT < 0)
    return torch.where(agrees_BT, 1.0, conflict) * uniform(rollout, scores, context)
