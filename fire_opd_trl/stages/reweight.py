"""Stage 4: how much each token of a surviving trajectory counts: mean 1 inside it, 0 outside the mask."""

import torch

from .rollout import Rollout, masked_mean_B
from .scope import scope_max_B
from .score import Scores
from .world import Context, World, global_row_B, uniform_hash


SMALLEST_MAX = 1e-6  # nats; a window of one-hot distributions has no entropy to normalise by


def even(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
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
    Where the teacher is sure and the student is not (FiRe-OPD, "reweight"):

        c_t = 1 - H_T(t) / max H_T,   u_t = H_S(t) / max H_S,
        w_t = (1 + a c_t)(1 + b u_t),   then divided by its mean inside the trajectory (Eq. 8).

    Args:
        confidence (`float`): `a`; at 0 the teacher's entropy is not needed.
        confusion (`float`): `b`; at 0 the student's entropy is not needed.
        scope (`str`): Over which tokens the maxima are taken: `"batch"`, `"teacher"` or `"trajectory"`.

    Returns:
        `torch.Tensor`: `weight_BT`.
    """
    weight_BT = even(rollout, scores, context)
    if confidence:
        assert scores.teacher_entropy_BT is not None
        sureness_BT = 1.0 - share_of_max_BT(scores.teacher_entropy_BT, rollout, scope, context.world)
        weight_BT = weight_BT * (1.0 + confidence * sureness_BT)
    if confusion:
        assert scores.student_entropy_BT is not None
        doubt_BT = share_of_max_BT(scores.student_entropy_BT, rollout, scope, context.world)
        weight_BT = weight_BT * (1.0 + confusion * doubt_BT)
    return mean_one_BT(weight_BT, rollout.mask_BT)


def shuffled_inside_rows(weight_BT: torch.Tensor, rollout: Rollout, context: Context) -> torch.Tensor:
    """
    The same weights, given to the tokens of the same trajectory in a random order: the control that keeps the budget
    and the distribution of the weights and destroys what they know.

    Returns:
        `torch.Tensor`: `weight_BT`, in each row a permutation of the row's masked weights.
    """
    mask_BT = rollout.mask_BT
    row_B = global_row_B(mask_BT.shape[0], context.world, mask_BT.device)
    number_BT = mask_BT.cumsum(dim=1)  # the token's number among the trained ones: padding never shifts the draw
    draw_BT = torch.where(mask_BT, uniform_hash(context.seed, row_B.unsqueeze(1), number_BT), 2.0)
    first_BT = (~mask_BT).to(torch.uint8).argsort(dim=1, stable=True)  # masked positions in order, then the others
    shuffled_BT = torch.empty_like(weight_BT).scatter(
        1, draw_BT.argsort(dim=1, stable=True), weight_BT.gather(1, first_BT)
    )
    return torch.where(mask_BT, shuffled_BT, 0.0)
