"""Stage 3: which trajectories train."""

from collections.abc import Callable

import torch

from .group import mixed_outcome_B, outcome_margin_B
from .rollout import Rollout
from .scope import scope_B
from .world import Context, random_order_N


def keep_all(score_B: torch.Tensor, rollout: Rollout, context: Context) -> torch.Tensor:
    """Keep every row that has a token to train on: `keep_B`."""
    return rollout.alive_B


def drop_lowest(
    score_B: torch.Tensor, rollout: Rollout, context: Context, *, fraction: float, scope: str = "batch"
) -> torch.Tensor:
    """
    Drop the trajectories with the lowest score (FiRe-OPD, "filter"): of the `N` rows of the window on all ranks that
    have a token, exactly `floor(fraction * N)`, lowest first, ties by global row order.

    A strict count, not a quantile, decides what is dropped: a quantile of one value keeps it, a quantile with a NaN
    drops everything.

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
    return keep_N[world.local_slice(len(score_B))] & alive_B


def enough_margin(
    score_B: torch.Tensor, rollout: Rollout, context: Context, *, margin: float, statistic: str
) -> torch.Tensor:
    """Drop prompts whose correct rows outscore the wrong ones by less than `margin` (Uni-OPD's paper): `keep_B`."""
    return rollout.alive_B & (outcome_margin_B(score_B, rollout, context.world, statistic) >= margin)


def mixed_outcomes(score_B: torch.Tensor, rollout: Rollout, context: Context) -> torch.Tensor:
    """Drop prompts whose completions are all correct or all wrong (GRPD): `keep_B`."""
    return rollout.alive_B & mixed_outcome_B(rollout, context.world)


def as_many_at_random(
    score_B: torch.Tensor,
    rollout: Rollout,
    context: Context,
    *,
    filter: Callable[[torch.Tensor, Rollout, Context], torch.Tensor],
) -> torch.Tensor:
    """
    The control of a filter: as many trajectories of the window survive as under `filter`, but drawn at random among
    those that have a token. The draw depends on the window's seed and on the global row alone. Returns `keep_B`.
    """
    world, alive_B = context.world, rollout.alive_B
    kept = world.sum((filter(score_B, rollout, context) & alive_B).sum())
    place_N = random_order_N(world.gather(alive_B), context.seed).argsort(stable=True)
    return alive_B & (place_N < kept)[world.local_slice(len(alive_B))]
