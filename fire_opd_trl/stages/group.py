"""What the completions of one prompt say about each other: rewards, margins, means inside the prompt's group."""

import torch

from .rollout import Rollout
from .world import World


SMALLEST_SPREAD = 1e-6  # below it a group has no spread to divide by
NOTHING = {"sum": 0.0, "amax": -torch.inf, "amin": torch.inf}


def over_same_B(value_B: torch.Tensor, key_B: torch.Tensor, world: World, reduce: str) -> torch.Tensor:
    """Sum, maximum or minimum of a value over the rows of all ranks that have the same key, for each row, `[B]`."""
    value_N = world.gather(value_B)
    _, group_N = world.gather(key_B).unique(return_inverse=True)
    group_G = value_N.new_full((int(group_N.max()) + 1,), NOTHING[reduce]).scatter_reduce(0, group_N, value_N, reduce)
    return group_G[group_N[world.local_slice(len(value_B))]]


def over_group_B(
    value_B: torch.Tensor, member_B: torch.Tensor, rollout: Rollout, world: World, reduce: str = "sum"
) -> torch.Tensor:
    """
    Sum, maximum or minimum of a value over those rows of the same prompt, on all ranks, that are members, `[B]`; 0,
    -inf or inf for a prompt without members.

    Args:
        value_B (`torch.Tensor`): The value of each row.
        member_B (`torch.Tensor`): Rows that take part.
        reduce (`str`): `"sum"`, `"amax"` or `"amin"`.
    """
    assert rollout.group_B is not None
    return over_same_B(torch.where(member_B, value_B, NOTHING[reduce]), rollout.group_B, world, reduce)


def group_mean_B(value_B: torch.Tensor, member_B: torch.Tensor, rollout: Rollout, world: World) -> torch.Tensor:
    """Mean of a value over the members of the row's prompt, `[B]`; 0 for a prompt without members."""
    count_B = over_group_B(torch.ones_like(value_B), member_B, rollout, world)
    return over_group_B(value_B, member_B, rollout, world) / count_B.clamp(min=1)


def group_z_B(value_B: torch.Tensor, rollout: Rollout, world: World) -> torch.Tensor:
    """`(x - mean) / std` inside the prompt group, with the population's deviation, `[B]`; 0 where all are equal."""
    alive_B, exact_B = rollout.alive_B, value_B.double()  # in float32 the mean of ten times 33.3 is another number
    centred_B = exact_B - group_mean_B(exact_B, alive_B, rollout, world)
    spread_B = group_mean_B(centred_B.square(), alive_B, rollout, world).sqrt()
    z_B = torch.where(spread_B < SMALLEST_SPREAD, 0.0, centred_B / spread_B.clamp(min=SMALLEST_SPREAD))
    return z_B.to(value_B.dtype)


def correct_B(rollout: Rollout) -> torch.Tensor:
    """Rows that the verifier accepts: those with a reward above 0, `[B]`."""
    assert rollout.reward_B is not None
    return rollout.reward_B > 0


def outcome_margin_B(score_B: torch.Tensor, rollout: Rollout, world: World, statistic: str) -> torch.Tensor:
    """
    By how much the correct rows of a prompt outscore its wrong ones (Uni-OPD): the difference of their means
    (`"mean"`, the authors' recipe) or the lowest correct minus the highest wrong score (`"minmax"`, their paper).

    Returns:
        `torch.Tensor`: `margin_B`, equal for all rows of a prompt; inf where it has no correct or no wrong row.
    """
    right_B, alive_B = correct_B(rollout), rollout.alive_B
    if statistic == "minmax":
        lowest_B = over_group_B(score_B, alive_B & right_B, rollout, world, "amin")
        return lowest_B - over_group_B(score_B, alive_B & ~right_B, rollout, world, "amax")
    right_mean_B = group_mean_B(score_B, alive_B & right_B, rollout, world)
    wrong_mean_B = group_mean_B(score_B, alive_B & ~right_B, rollout, world)
    return torch.where(mixed_outcome_B(rollout, world), right_mean_B - wrong_mean_B, torch.inf)


def mixed_outcome_B(rollout: Rollout, world: World) -> torch.Tensor:
    """Rows whose prompt has both a correct and a wrong completion, `[B]`."""
    one_B = torch.ones(len(rollout.mask_BT), device=rollout.mask_BT.device)
    right_B, alive_B = correct_B(rollout), rollout.alive_B
    rights_B = over_group_B(one_B, alive_B & right_B, rollout, world)
    wrongs_B = over_group_B(one_B, alive_B & ~right_B, rollout, world)
    return (rights_B > 0) & (wrongs_B > 0)
