"""What the trainer is to reach, and whether it did: every number is read from the results of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .floor import floors
from .phases import Work
from .ratios import Ratio, phase_seconds, ratio, step_seconds, without_rollout
from .sizes import Size


Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """
    One aim.

    Args:
        key (`str`): Its letter.
        what (`str`): What is measured.
        bound (`float`): What the ratio is to be.
        at_least (`bool`): Whether that is a lower bound.
        measured (`Callable`): Results -> the ratio, or `None` where it was not run.
    """

    key: str
    what: str
    bound: float
    at_least: bool
    measured: Callable[[Results], Ratio | None]

    def verdict(self, found: Ratio | None) -> str:
        """In words; an interval on both sides of the bound is said."""
        if found is None:
            return "not run"
        met = found.median >= self.bound if self.at_least else found.median <= self.bound
        open_ = found.low is not None and found.high is not None and found.low < self.bound < found.high
        return ("met" if met else "missed") + (", but the interval holds the bound" if open_ else "")


def compared(section: str, above: str, below: str, seconds: Callable[[list], list[float]]):
    """A measurement: the times of one arm over those of another in the same rounds."""

    def measured(results: Results) -> Ratio | None:
        rounds = results.get(section) or {}
        return ratio(seconds(rounds[above]), seconds(rounds[below])) if {above, below} <= rounds.keys() else None

    return measured


def memory_over(theirs: str) -> Callable[[Results], Ratio | None]:
    """Memory of `fire` above what stays, over that of another arm."""

    def measured(results: Results) -> Ratio | None:
        rounds = results.get("memory") or {}
        found = [rounds[name][0]["memory"]["above"] for name in ("fire", theirs) if name in rounds]
        return ratio([found[0]], [found[1]]) if len(found) == 2 and None not in found and min(found) > 0 else None

    return measured


def floors_by_round(results: Results, arm: str) -> list[dict[str, float]]:
    """The floors of an arm's phases in every round, at the rates of that round."""
    size, timing = Size(**results["size"]), results["timing"]
    return [
        floors(size, {name: Work(**work) for name, work in answer["work"].items()}, rates["rates"])
        for answer, rates in zip(timing[arm], timing["floor"], strict=True)
    ]


def scoring_over_floor(results: Results) -> Ratio | None:
    """Seconds of scoring by `fire`, teacher and student, over their floor."""
    timing = results.get("timing") or {}
    if "fire" not in timing:
        return None
    floor = [found["teacher"] + found["student"] for found in floors_by_round(results, "fire")]
    return ratio(phase_seconds(timing["fire"], "teacher", "student"), floor)


TARGETS = (
    Target(
        "a",
        "scoring and update, `grpo` over `fire`",
        3.0,
        True,
        compared("timing", "grpo", "fire", without_rollout),
    ),
    Target(
        "b",
        "whole step, rollouts replayed, `distillation` over `fire`",
        3.5,
        True,
        compared("timing", "distillation", "fire", step_seconds),
    ),
    Target(
        "c",
        "equal lengths, whole step, `opd_entropies` over `grpo`",
        1.03,
        False,
        compared("equal", "opd_entropies", "grpo", step_seconds),
    ),
    Target(
        "d",
        "memory above weights, gradients and optimizer, `fire` over `distillation`",
        0.5,
        False,
        memory_over("distillation"),
    ),
    Target(
        "e",
        "whole step, `fire_keep_all` over `opd_entropies`",
        1.02,
        False,
        compared("timing", "fire_keep_all", "opd_entropies", step_seconds),
    ),
    Target("f", "whole step, `fire` over `opd`", 1.0, False, compared("timing", "fire", "opd", step_seconds)),
    # The same beside TRL's trainers with tiles of the size that this library sets where there is no Triton.
    Target(
        "a, tiles",
        "scoring and update, `grpo_tiles` over `fire`",
        3.0,
        True,
        compared("timing", "grpo_tiles", "fire", without_rollout),
    ),
    Target(
        "b, tiles",
        "whole step, `distillation_tiles` over `fire`",
        3.5,
        True,
        compared("timing", "distillation_tiles", "fire", step_seconds),
    ),
    Target(
        "c, tiles",
        "equal lengths, whole step, `opd_entropies` over `grpo_tiles`",
        1.03,
        False,
        compared("equal", "opd_entropies", "grpo_tiles", step_seconds),
    ),
    Target("d, tiles", "memory, `fire` over `distillation_tiles`", 0.5, False, memory_over("distillation_tiles")),
    Target("g", "scoring of `fire` over the floor of its products", 1.5, False, scoring_over_floor),
)
