"""Over which rows a statistic is taken: the whole window, the rows of one teacher, or one trajectory alone."""

import torch

from .group import over_same_B
from .rollout import Rollout
from .world import World, global_row_B


SCOPES = ("batch", "teacher", "trajectory")


def scope_B(rollout: Rollout, scope: str, world: World) -> torch.Tensor:
    """
    Number of the group in which a row is ranked and normalised, `[B]`: one group (`"batch"`, the paper's text), one
    for each teacher, or one for each trajectory, which is what the authors' released code computes at its
    micro-batch size of one.
    """
    rows, device = rollout.mask_BT.shape[0], rollout.mask_BT.device
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown. Use one of: {', '.join(SCOPES)}.")
    if scope == "trajectory":
        return global_row_B(rows, world, device)
    if scope == "teacher" and rollout.teacher_B is not None:
        return rollout.teacher_B
    return torch.zeros(rows, dtype=torch.long, device=device)


def scope_max_B(value_BT: torch.Tensor, rollout: Rollout, scope: str, world: World) -> torch.Tensor:
    """`max(0, max_{t' in scope(y)} x_t')` over the masked tokens of all ranks, `[B]`; 0 for an empty scope."""
    row_max_B = torch.where(rollout.mask_BT, value_BT, 0.0).amax(dim=1)
    return over_same_B(row_max_B, scope_B(rollout, scope, world), world, "amax").clamp(min=0.0)


def window_quantile(value_BT: torch.Tensor, mask_BT: torch.Tensor, share: float, world: World) -> torch.Tensor:
    """
    The value below which `share` of the masked tokens of all ranks lie, linear between neighbours; a scalar, 0 where
    there is no token. Every token's value travels to every rank: 4 bytes each.
    """
    sorted_N = world.gather(value_BT[mask_BT]).sort().values
    if not len(sorted_N):
        return value_BT.new_zeros(())
    place = share * (len(sorted_N) - 1)
    low, high = sorted_N[int(place)], sorted_N[min(int(place) + 1, len(sorted_N) - 1)]
    return low + (high - low) * (place - int(place))
