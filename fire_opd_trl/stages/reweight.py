"""Stage 4: how much each token of a surviving trajectory counts; 0 outside the mask."""

from collections.abc import Callable
from typing import TypeAlias

import torch

from .group import correct_B, group_mean_B, over_group_B
from .rollout import Rollout, masked_mean_B
from .scope import scope_max_B
from .score import Scores, log_ratio, mean_teacher_logp
from .world import Context, World, global_row_B, order_by_draw, random_order_N, uniform_hash


Weigh: TypeAlias = Callable[[Rollout, Scores, Context], torch.Tensor]

SMALLEST_MAX = 1e-6  # nats; a window of one-hot distributions has no entropy to normalise by


def uniform(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """Every token counts the same: `w_t = 1`. Returns `weight_BT`."""
    return rollout.mask_BT.to(scores.teacher_logp_BT.dtype)


def share_of_max_BT(entropy_BT: torch.Tensor, rollout: Rollout, scope: str, world: World) -> torch.Tensor:
    """`H_t / max_{t' in B} H_t'` over the surviving tokens of the scope on all ranks, clamped to [0, 1], `[B, T]`."""
    entropy_BT = torch.where(rollout.mask_BT, entropy_BT, 0.0)
    max_B = scope_max_B(entropy_BT, rollout, scope, world).clamp(min=SMALLEST_MAX)
    return (entropy_BT / max_B.unsqueeze(1)).clamp(0.0, 1.0)


def mean_one_BT(weight_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """`w_t / mean_{t' in y} w_t'` (Eq. 8): a trajectory's total weight stays its length, `[B, T]`, 0 outside."""
    mean_B = masked_mean_B(weight_BT, mask_BT)
    mean_B = torch.where(mask_BT.any(dim=1), mean_B, 1.0)
    return torch.where(mask_BT, weight_BT, 0.0) / mean_B.unsqueeze(1)


def confidence_and_confusion(
    rollout: Rollout, scores: Scores, context: Context, *, confidence: float, confusion: float, scope: str = "batch"
) -> torch.Tensor:
    """
    Tokens weigh more where the teacher is sure and the student is not (FiRe-OPD, "reweight"):

        c_t = 1 - H_T(t) / max H_T,   u_t = H_S(t) / max H_S,
        w_t = (1 + a c_t)(1 + b u_t),   then divided by its mean inside the trajectory (Eq. 8).

    Args:
        confidence (`float`): `a`; at 0 the teacher's entropy is not needed.
        confusion (`float`): `b`; at 0 the student's entropy is not needed.
        scope (`str`): Over which tokens the maxima are taken: `"batch"`, `"teacher"` or `"trajectory"`.

    Returns:
        `torch.Tensor`: `weight_BT`.
    """
    weight_BT = uniform(rollout, scores, context)
    if confidence:
        assert scores.teacher_entropy_BT is not None
        sureness_BT = 1.0 - share_of_max_BT(scores.teacher_entropy_BT, rollout, scope, context.world)
        weight_BT = weight_BT * (1.0 + confidence * sureness_BT)
    if confusion:
        assert scores.student_entropy_BT is not None
        doubt_BT = share_of_max_BT(scores.student_entropy_BT, rollout, scope, context.world)
        weight_BT = weight_BT * (1.0 + confusion * doubt_BT)
    return mean_one_BT(weight_BT, rollout.mask_BT)


def likely_rows(rollout: Rollout, scores: Scores, context: Context, *, drop_fraction: float) -> torch.Tensor:
    """
    A soft filter (ours; the paper names one, Table 6, and does not define it): with the score `s_p` of the least
    likely trajectory that the hard filter would keep, and the standard deviation of the window's scores,

        w(y) = sigmoid((s(y) - s_p) / std s), divided by its mean over the window's trajectories.

    Returns:
        `torch.Tensor`: `weight_B`; 1 everywhere when nothing would be dropped.
    """
    world, alive_B = context.world, rollout.alive_B
    score_B = mean_teacher_logp(rollout, scores, context)
    score_N = world.gather(score_B)[world.gather(alive_B)].sort().values
    drop = int(drop_fraction * len(score_N) + 1e-9)
    if not drop:
        return torch.ones_like(score_B)
    spread = score_N.std(correction=0).clamp(min=SMALLEST_MAX)
    mean = ((score_N - score_N[drop]) / spread).sigmoid().mean()
    return torch.where(alive_B, ((score_B - score_N[drop]) / spread).sigmoid() / mean, 0.0)


def early_tokens(rollout: Rollout, scores: Scores, context: Context, *, strength: float) -> torch.Tensor:
    """
    Tokens before the disagreement count more (IW-OPD): `w_t = 1 + gamma (1 - F_t)` with the share of the row's
    disagreement that lies before the token, `F_t = sum_{i<t} |a_i| / (sum_i |a_i| + 1e-8)`. They are not normalised.

    Returns:
        `torch.Tensor`: `weight_BT`, in `[1, 1 + gamma]` and never rising along a row.
    """
    apart_BT = log_ratio(rollout, scores, context).abs()
    before_BT = apart_BT.cumsum(dim=1) - apart_BT
    passed_BT = before_BT / (apart_BT.sum(dim=1, keepdim=True) + 1e-8)
    return torch.where(rollout.mask_BT, 1.0 + strength * (1.0 - passed_BT), 0.0)


def surprising_or_plausible(rollout: Rollout, scores: Scores, context: Context, *, temperature: float) -> torch.Tensor:
    """
    Correct rows weigh more if they surprise the student, wrong rows if the teacher finds them plausible (SCOPE): among
    the correct rows of a prompt `w ~ PPL_S^(1/tau)`, among its wrong rows `w ~ PPL_T^(-1/tau)`, each with mean 1.

    Returns:
        `torch.Tensor`: `weight_B`.
    """
    world, mask_BT, right_B = context.world, rollout.mask_BT, correct_B(rollout)
    surprise_B = -masked_mean_B(scores.student_logp_BT, mask_BT)
    log_weight_B = torch.where(right_B, surprise_B, masked_mean_B(scores.teacher_logp_BT, mask_BT)) / temperature
    weight_B = torch.zeros_like(log_weight_B)
    for path_B in (right_B, ~right_B):
        member_B = rollout.alive_B & path_B
        top_B = over_group_B(log_weight_B, member_B, rollout, world, "amax")
        raw_B = torch.where(member_B, log_weight_B - top_B, 0.0).exp()
        mean_B = group_mean_B(raw_B, member_B, rollout, world)
        weight_B = torch.where(member_B, raw_B / mean_B.clamp(min=SMALLEST_MAX), weight_B)
    return weight_B


def deal(value: torch.Tensor, mask: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Deal the masked values, first to last, to the places that `order` names, along the last axis; 0 elsewhere."""
    first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)  # places under the mask in order, then the others
    return torch.where(mask, torch.empty_like(value).scatter(-1, order, value.gather(-1, first)), 0.0)


def shuffled_over_rows(rollout: Rollout, scores: Scores, context: Context, *, weigh: Weigh) -> torch.Tensor:
    """
    The control of a soft filter: the weights of the window's trajectories change places at random.

    Args:
        weigh (`Callable`): The weights, `(rollout, scores, context) -> weight_B`.

    Returns:
        `torch.Tensor`: `weight_B`, over all ranks a permutation of the weights of the trajectories that have a token.
    """
    world, alive_B = context.world, rollout.alive_B
    alive_N, weight_N = world.gather(alive_B), world.gather(weigh(rollout, scores, context))
    return deal(weight_N, alive_N, random_order_N(alive_N, context.seed))[world.local_slice(len(alive_B))]


def shuffled_inside_rows(rollout: Rollout, scores: Scores, context: Context, *, weigh: Weigh) -> torch.Tensor:
    """
    The control of token weights: they change places at random inside each trajectory. It keeps the budget and the
    distribution of the weights, and destroys what they know. Two weights of one method are shuffled alike.

    Args:
        weigh (`Callable`): The weights, `(rollout, scores, context) -> weight_BT`.

    Returns:
        `torch.Tensor`: `weight_BT`, in each row a permutation of the row's masked weights.
    """
    weight_BT, mask_BT = weigh(rollout, scores, context), rollout.mask_BT
    row_B = global_row_B(mask_BT.shape[0], context.world, mask_BT.device)
    number_BT = mask_BT.cumsum(dim=1)  # the token's number among the trained ones: padding never shifts the draw
    draw_BT = uniform_hash(context.seed, row_B.unsqueeze(1), number_BT)
    return deal(weight_BT, mask_BT, order_by_draw(draw_BT, mask_BT))
