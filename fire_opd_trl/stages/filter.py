"""Stage 3: which trajectories train."""

import torch

from .rollout import Rollout
from .scope import scope_B
from .world import Context


def keep_all(score_B: torch.Tensor, rollout: Rollout, context: Context) -> torch.Tensor:
    """Every row that has a token to train on: `keep_B`."""
    return rollout.alive_B


def drop_lowest(
    score_B: torch.Tensor, rollout: Rollout, context: Context, *, fraction: float, scope: str = "batch"
) -> torch.Tensor:
    """
    Drop the trajectories with the lowest score (FiRe-OPD, "filter"): of the `N` rows of the window on all ranks that
    have a token, exactly `floor(fraction * N)`, lowest first, ties by global row order.

    A strict count rather than a quantile: a quantile of one value keeps it, a quantile with a NaN drops everything.

    Args:
        score_B (`torch.Tensor`): Score of each trajectory.
        fraction (`float`): Share to drop, in `[0, 1)`; 0 keeps all.
        scope (`str`): Rank inside the `"batch"`, inside each `"teacher"`, or inside the `"trajectory"` alone, where
            `floor(fraction * 1) = 0` and nothing is ever dropped.

    Returns:
        `torch.Tensor`: `keep_B`, a subset of the rows that have a token.
    """
    world, alive_B = context.world, rollout.alive_B
    alive_N = world.gather(alive_B)
    score_N = torch.where(alive_N, world.gather(score_B), torch.inf)
    _, group_N = world.gather(scope_B(rollout, scope, world)).unique(return_inverse=True)

    by_score_N = score_N.argsort(stable=True)
    order_N = by_score_N[group_N[by_score_N].argsort(stable=True)]  # by group, in it by score, in it by row
    size_G, alive_G = group_N.bincount(), group_N[alive_N].bincount(minlength=int(group_N.max()) + 1)
    drop_G = (fraction * alive_G.cpu().double() + 1e-9).floor().long().to(alive_G.device)  # 0.29 * 100 < 29 in binary
    place_N = torch.arange(len(order_N), device=order_N.device) - (size_G.cumsum(0) - size_G)[group_N[order_N]]
    keep_N = torch.empty_like(alive_N)
    keep_N[order_N] = place_N >= drop_G[group_N[order_N]]
    return keep_N[world.own(len(score_B))] & alive_B
