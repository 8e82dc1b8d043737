"""GRPO's logs, corrected: what it says of rewards that nobody gave, and of advantages that did not exist yet."""

from typing import Any

import torch

from .pipeline import Rollout, Scores, Signal
from .stages import World, masked_mean_B


def no_reward(prompts: list, **kwargs) -> list[float]:
    """GRPO demands a reward; distillation has none."""
    return [0.0] * len(prompts)


def forget_rewards(metrics: dict[str, list[float]], logs: dict[str, Any]) -> None:
    """Take GRPO's account of a reward that nobody gave out of the metrics and of the completions table."""
    for name in [name for name in metrics if "reward" in name]:
        del metrics[name]
    logs["rewards"].clear()


def fill_completions_table(
    logs: dict[str, Any], world: World, rollout: Rollout, scores: Scores, signal: Signal, advantage_BT: torch.Tensor
) -> None:
    """Mean weighted advantage, teacher score and survival of each trajectory, in the place of GRPO's advantages."""
    mask_BT = rollout.mask_BT
    columns = [masked_mean_B(advantage_BT, mask_BT), masked_mean_B(scores.teacher_logp_BT, mask_BT)]
    table_N3 = world.gather(torch.stack([*columns, signal.keep_B.float()], dim=1))
    advantage_N, teacher_logp_N, keep_N = table_N3.unbind(dim=1)
    for _ in range(min(len(table_N3), len(logs["advantages"]))):  # written before there were any
        logs["advantages"].pop()
    logs["advantages"].extend(advantage_N.tolist())
    logs["extra"]["teacher_logp"].extend(round(value, 4) for value in teacher_logp_N.tolist())
    logs["extra"]["kept"].extend(keep_N.bool().tolist())
