"""What only answers in words have to show: which of them a filter dropped, and differences over problems."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..statistics import paired_bootstrap
from .presets import Arm
from .records import Run


KINDS = ("finished", "truncated", "looped")  # the last is part of the other two


@dataclass(frozen=True)
class Dropped:
    """
    What the filter of an arm dropped, over all windows and seeds.

    Args:
        arm (`str`): Name of the arm.
        share (`dict[str, float]`): Of all answers, how many are of each kind, in `KINDS`.
        dropped (`dict[str, float | None]`): Of the answers of each kind, how many were dropped; `None` without any.
    """

    arm: str
    share: dict[str, float]
    dropped: dict[str, float | None]


def what_filters_dropped(runs: list[Run], arms: list[Arm]) -> list[Dropped]:
    """Return a row for each arm whose runs log which answers were kept; the report calls this for its table."""
    rows = []
    for arm in arms:
        windows = [entry for run in runs if run["arm"]["name"] == arm.name for entry in run["history"]]
        windows = [entry for entry in windows if entry.get("keep_ratio") is not None]
        if windows and any(entry["keep_ratio"] < 1 for entry in windows):
            rows.append(Dropped(arm.name, *shares(windows)))
    return rows


def shares(windows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Return the share of each kind, and the dropped share of it. Windows have equally many answers."""
    of_kind = {
        "finished": [1 - entry["truncated"] for entry in windows],
        "truncated": [entry["truncated"] for entry in windows],
        "looped": [entry["looped"] or 0.0 for entry in windows],
    }
    dropped: dict[str, float | None] = {}
    for kind, some in of_kind.items():
        kept = [share * entry[f"keep_ratio_{kind}"] for share, entry in zip(some, windows, strict=True) if share > 0]
        dropped[kind] = 1 - sum(kept) / sum(some) if sum(some) else None
    return {kind: fmean(some) for kind, some in of_kind.items()}, dropped


@dataclass(frozen=True)
class OverProblems:
    """
    The difference of two arms over the same held-out problems, each with its mean over the seeds that both have.

    Args:
        first, second (`str`): Names of the arms; the difference is the first less the second.
        difference (`float`): Of Avg@n.
        interval (`tuple[float, float]`): 95 %, from a bootstrap over problems. It holds for these students, not for
            others that the same methods would train: that is what the interval over seeds is for.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]


def over_problems(runs: list[Run], arms: list[Arm]) -> list[OverProblems]:
    """Return the differences of the table once more, as they spread over problems; the report calls this."""
    right: dict[str, dict[int, list[int]]] = {}
    samples = 1
    for run in runs:
        if "measured" in run:
            samples = run["measured"]["samples"]
            right.setdefault(run["arm"]["name"], {})[run["seed"]] = run["measured"]["right"]
    found = []
    for arm in arms:
        for other in dict.fromkeys((arm.against, arm.control)):
            if other in (None, arm.name) or arm.name not in right or other not in right:
                continue
            seeds = sorted(right[arm.name].keys() & right[other].keys())
            if not seeds:
                continue
            per_problem = [
                fmean((right[arm.name][seed][index] - right[other][seed][index]) / samples for seed in seeds)
                for index in range(len(right[arm.name][seeds[0]]))
            ]
            low, high, _ = paired_bootstrap(per_problem, samples * len(seeds))
            found.append(OverProblems(arm.name, other, fmean(per_problem), (low, high)))
    return found
