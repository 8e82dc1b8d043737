"""The targets of the trainer, and whether it reached them: every number is read from the results of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fire_opd_trl.preflight.plan.cost import Work, floors

from .ratios import Ratio, phase_seconds, ratio, step_seconds, without_rollout
from .sizes import Size


Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """
    One ratio that the trainer is to reach.

    Args:
        name (`str`): Its name in the report.
        what (`str`): The ratio that is measured, in words.
        bound (`float`): The number that the ratio is to reach or not to exceed.
        at_least (`bool`): Whether the ratio is to reach it.
        measure (`Callable`): Takes the results, and returns the ratio, or `None` where it was not run.
    """

    name: str
    what: str
    bound: float
    at_least: bool
    measure: Callable[[Results], Ratio | None]

    def verdict(self, found: Ratio | None) -> str:
        """Say whether the target was met, and whether the interval of the ratio holds the bound."""
        if found is None:
            return "not run"
        met = found.median >= self.bound if self.at_least else found.median <= self.bound
        open_ = found.low is not None and found.high is not None and found.low < self.bound < found.high
        return ("met" if met else "missed") + (", but the interval holds the bound" if open_ else "")


def times_of(section: str, above: str, below: str, seconds: Callable[[list], list[float]]):
    """Make the measurement of a target: the times of one arm over those of another in the same rounds."""

    def measure(results: Results) -> Ratio | None:
        rounds = results.get(section) or {}
        return ratio(seconds(rounds[above]), seconds(rounds[below])) if {above, below} <= rounds.keys() else None

    return measure


def memory_over(theirs: str) -> Callable[[Results], Ratio | None]:
    """Make the measurement of a target: the memory of `fire` above what stays, over that of another arm."""

    def measure(results: Results) -> Ratio | None:
        rounds = results.get("memory") or {}
        found = [rounds[name][0]["memory"]["above"] for name in ("fire", theirs) if name in rounds]
        return ratio([found[0]], [found[1]]) if len(found) == 2 and None not in found and min(found) > 0 else None

    return measure


def floors_by_round(results: Results, arm: str) -> list[dict[str, float]]:
    """The floors of an arm's phases in every round, at the rates of that round."""
    size, timing = Size(**results["size"]), results["timing"]
    return [
        floors(size, {name: Work(**work) for name, work in answer["work"].items()}, rates["rates"])
        for answer, rates in zip(timing[arm], timing["floor"], strict=True)
    ]


def scoring_over_floor(results: Results) -> Ratio | None:
    """The measurement of a target: seconds of scoring by `fire`, teacher and student, over their floor."""
    timing = results.get("timing") or {}
    if "fire" not in timing:
        return None
    floor = [found["teacher"] + found["student"] for found in floors_by_round(results, "fire")]
    return ratio(phase_seconds(timing["fire"], "teacher", "student"), floor)


TARGETS = (
    Target(
        "beside GRPO",
        "scoring and update, `grpo` over `fire`",
        3.0,
        True,
        times_of("timing", "grpo", "fire", without_rollout),
    ),
    Target(
        "beside DistillationTrainer",
        "whole step, rollouts replayed, `distillation` over `fire`",
        3.5,
        True,
        times_of("timing", "distillation", "fire", step_seconds),
    ),
    Target(
        "equal lengths",
        "equal lengths, whole step, `opd_entropies` over `grpo`",
        1.03,
        False,
        times_of("equal", "opd_entropies", "grpo", step_seconds),
    ),
    Target(
        "memory",
        "memory above weights, gradients and optimizer, `fire` over `distillation`",
        0.5,
        False,
        memory_over("distillation"),
    ),
    Target(
        "cost of the weights",
        "whole step, `fire_keep_all` over `opd_entropies`",
        1.02,
        False,
        times_of("timing", "fire_keep_all", "opd_entropies", step_seconds),
    ),
    Target(
        "gain of the filter",
        "whole step, `fire` over `opd`",
        1.0,
        False,
        times_of("timing", "fire", "opd", step_seconds),
    ),
    # The same beside TRL's trainers whose head has the tiles that this library sets where there is no Triton.
    Target(
        "beside GRPO, tiles",
        "scoring and update, `grpo_tiles` over `fire`",
        3.0,
        True,
        times_of("timing", "grpo_tiles", "fire", without_rollout),
    ),
    Target(
        "beside DistillationTrainer, tiles",
        "whole step, `distillation_tiles` over `fire`",
        3.5,
        True,
        times_of("timing", "distillation_tiles", "fire", step_seconds),
    ),
    Target(
        "equal lengths, tiles",
        "equal lengths, whole step, `opd_entropies` over `grpo_tiles`",
        1.03,
        False,
        times_of("equal", "opd_entropies", "grpo_tiles", step_seconds),
    ),
    Target("memory, tiles", "memory, `fire` over `distillation_tiles`", 0.5, False, memory_over("distillation_tiles")),
    Target(
        "scoring over its floor", "scoring of `fire` over the floor of its products", 1.5, False, scoring_over_floor
    ),
)
