"""Corrects GRPO's logs, which speak of rewards that nobody gave, and of advantages that did not exist yet."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..pipeline import Rollout, Scores, Signal
from ..stages import World, masked_mean_B, metrics_by_teacher


def no_reward(prompts: list, **kwargs) -> list[float]:
    """The reward function of a run without rewards, since GRPO demands one."""
    return [0.0] * len(prompts)


def forget_rewards(metrics: dict[str, list[float]], logs: dict[str, Any]) -> None:
    """Takes GRPO's account of a reward that nobody gave out of the metrics and of the completions table."""
    for name in [name for name in metrics if "reward" in name]:
        del metrics[name]
    logs["rewards"].clear()


def named_metrics(
    teachers: Collection[str],
    signals: tuple[str, ...],
    rollout: Rollout,
    scores: Scores,
    signal: Signal,
    world: World,
) -> list[tuple[str, float]]:
    """Returns the window's metrics, and with several teachers the metrics of each teacher's rows."""
    named = list(signal.metrics.items())
    if len(teachers) > 1:
        each = metrics_by_teacher(rollout, scores, signals, signal.keep_B, len(teachers), world)
        for teacher, metrics in zip(teachers, each, strict=True):
            named += [(f"{teacher}/{name}", value) for name, value in metrics.items()]
    return named


def fill_completions_table(
    logs: dict[str, Any], world: World, rollout: Rollout, scores: Scores, signal: Signal, advantage_BT: torch.Tensor
) -> None:
    """Writes each trajectory's mean weighted advantage, teacher score and survival in place of GRPO's advantages."""
    mask_BT = rollout.mask_BT
    columns = [masked_mean_B(advantage_BT, mask_BT), masked_mean_B(scores.teacher_logp_BT, mask_BT)]
    table_N3 = world.gather(torch.stack([*columns, signal.keep_B.float()], dim=1))
    advantage_N, teacher_logp_N, keep_N = table_N3.unbind(dim=1)
    for _ in range(min(len(table_N3), len(logs["advantages"]))):  # written before there were any
        logs["advantages"].pop()
    logs["advantages"].extend(advantage_N.tolist())
    logs["extra"]["teacher_logp"].extend(round(value, 4) for value in teacher_logp_N.tolist())
    logs["extra"]["kept"].extend(keep_N.bool().tolist())


@contextmanager
def errors_name_step(step: int) -> Iterator[None]:
    """Adds the step to errors of the mathematics, which knows no steps."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"step {step}: {error}") from error


class StepSums:
    """Sums values over the tokens of an optimizer step, on all ranks, before the step is taken."""

    def __init__(self, world: World):
        self.world = world
        self.sums: dict[str, torch.Tensor] = {}
        self.shares: set[str] = set()

    def add(
        self,
        loss: torch.Tensor,
        trained_BT: torch.Tensor,
        values: dict[str, torch.Tensor],
        shares: dict[str, torch.Tensor],
    ) -> None:
        """
        The loss calls this for each micro-batch, with its loss, with values of the tokens that it trains, and with its
        shares in means over the step, which are added up alone.
        """
        self.shares = set(shares)
        sums = {name: torch.where(trained_BT, value_BT, 0.0).detach().sum() for name, value_BT in values.items()}
        sums |= {name: share.detach() for name, share in shares.items()}
        sums = {"broken": ~torch.isfinite(loss.detach()), "tokens": trained_BT.sum(), **sums}
        self.sums = {name: value.float() + self.sums.get(name, 0.0) for name, value in sums.items()}

    def total(self, step: int) -> dict[str, float]:
        """
        Returns the means over the step's tokens and starts anew. A loss that is not finite stops all ranks alike.
        """
        totals = self.world.sum(torch.stack(list(self.sums.values()))).tolist()
        total: dict[str, float] = dict(zip(self.sums, totals, strict=True))
        self.sums = {}
        if total.pop("broken"):
            raise FloatingPointError(
                f"step {step}: the loss is NaN or infinite; no weight was changed in this step. "
                "Resume from the last checkpoint with a lower learning_rate, or check the precision."
            )
        tokens = total.pop("tokens")
        return {n: v if n in self.shares else v / tokens for n, v in total.items()} if tokens else {}
