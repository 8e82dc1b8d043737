"""A comparison as a table: one row for each arm, made from its runs and from those that it is compared with."""

from dataclasses import dataclass
from statistics import fmean

from ..statistics import LEVEL, Estimate, band, estimate, holm, paired
from .presets import Arm
from .records import Run


@dataclass
class Row:
    """
    The runs of an arm in numbers. Accuracies and differences are shares, not percent.

    Args:
        arm ([`Arm`]): The arm.
        seeds (`list[int]`): The seeds that it has.
        after, greedy ([`Estimate`]): Held-out accuracy, sampled at temperature 1 and greedy.
        difference ([`Estimate`], *optional*): To `arm.against`, paired by seed.
        greedy_difference ([`Estimate`], *optional*): The same for the greedy accuracy.
        differs (`bool`, *optional*): Whether `difference` is distinguishable from 0, after Holm over the table.
        to_control ([`Estimate`], *optional*): Difference to `arm.control`, paired by seed.
        beats_chance (`bool`, *optional*): Whether `to_control` is distinguishable from 0, after Holm over the table.
        cost (`float`, *optional*): CPU time of a step over that of `opd`, mean over the seeds that both have.
        kept, advantage (`float`, *optional*): Share of tokens that are kept; mean |advantage|.
        length (`tuple[float, float]`, *optional*): Mean response length in the first and in the last steps.
        curve (`tuple`): Steps, and mean, low and high of the held-out accuracy at each.
    """

    arm: Arm
    seeds: list[int]
    after: Estimate
    greedy: Estimate
    difference: Estimate | None
    greedy_difference: Estimate | None
    to_control: Estimate | None
    cost: float | None
    kept: float | None
    advantage: float | None
    length: tuple[float, float] | None
    curve: tuple[list[int], list[float], list[float], list[float]]
    differs: bool | None = None
    beats_chance: bool | None = None


def table(runs: list[Run], arms: list[Arm]) -> list[Row]:
    """
    The rows of all arms that have runs, in the order of `arms`.

    Args:
        runs (`list[dict]`): Runs of one comparison.
        arms (`list[Arm]`): Its arms.

    Returns:
        `list[Row]`: With both verdicts, each adjusted over all comparisons of its kind in this table.
    """
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"]["name"], {})[run["seed"]] = run
    rows = [row_of(arm, by_arm) for arm in arms if arm.name in by_arm]
    for verdict, name in (("differs", "difference"), ("beats_chance", "to_control")):
        estimates = {row.arm.name: getattr(row, name) for row in rows}
        adjusted = holm({arm: e.p for arm, e in estimates.items() if e is not None and e.p is not None})
        for row in rows:
            if row.arm.name in adjusted:
                setattr(row, verdict, adjusted[row.arm.name] <= LEVEL)
    return rows


def row_of(arm: Arm, by_arm: dict[str, dict[int, Run]]) -> Row:
    """The row of one arm, without the verdicts, which need the whole table."""
    runs = by_arm[arm.name]

    def values(name: str | None, key: str) -> dict[int, float]:
        return {seed: run[key] for seed, run in by_arm.get(name or "", {}).items()}

    def mean(key: str) -> float | None:
        found = [run[key] for run in runs.values() if run[key] is not None]
        return fmean(found) if found else None

    ours, opd = values(arm.name, "cpu_seconds_per_step"), values("opd", "cpu_seconds_per_step")
    ratios = [ours[seed] / opd[seed] for seed in ours.keys() & opd.keys()]
    lengths = [run["response_length"] for run in runs.values() if run["response_length"] is not None]
    after = values(arm.name, "after")
    return Row(
        arm=arm,
        seeds=sorted(runs),
        after=estimate(list(after.values())),
        greedy=estimate(list(values(arm.name, "after_greedy").values())),
        difference=paired(after, values(arm.against, "after")) if arm.against != arm.name else None,
        greedy_difference=(
            paired(values(arm.name, "after_greedy"), values(arm.against, "after_greedy"))
            if arm.against != arm.name
            else None
        ),
        to_control=paired(after, values(arm.control, "after")),
        cost=fmean(ratios) if ratios else None,
        kept=mean("kept_token_ratio"),
        advantage=mean("advantage_abs") or None,  # 0 where there is no policy gradient
        length=(fmean(first for first, _ in lengths), fmean(last for _, last in lengths)) if lengths else None,
        curve=(
            [step for step, _ in next(iter(runs.values()))["curve"]],
            *band([[share for _, share in run["curve"]] for run in runs.values()]),
        ),
    )
