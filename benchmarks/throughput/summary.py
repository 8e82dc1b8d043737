"""From the answers of the workers to the numbers of the tables: medians, ratios, shares, exponents."""

from dataclasses import asdict
from statistics import median
from typing import Any

from .names import ARMS, OURS, SCORING, THEIRS
from .phases import PARTS, PHASES
from .ratios import exponent, phase_seconds, ratio, step_seconds, without_rollout
from .sizes import Size
from .targets import TARGETS, Results, Target, floors_by_round


SCORED_PHASES = ("teacher", "student", "update")  # those in which tokens pass through a model


def summarize(results: Results) -> dict[str, Any]:
    """All numbers that the tables and the picture show; sections that were not run are `None`."""
    timing, equal, memory = (results.get(name) for name in ("timing", "equal", "memory"))
    return {
        "targets": [target_row(target, results) for target in TARGETS],
        "steps": steps(timing, Size(**results["size"]).useful_tokens) if timing else None,
        "ratios": pairs(timing, [(theirs, ours) for ours in OURS for theirs in THEIRS]) if timing else None,
        "within": pairs(timing, [*((ours, "opd") for ours in OURS if ours != "opd"), ("fire", "fire_keep_all")])
        if timing
        else None,
        "equal": pairs(equal, [(ours, theirs) for ours in OURS for theirs in THEIRS]) if equal else None,
        "padding": {arm: padding(rounds) for arm, rounds in timing.items() if arm in ARMS} if timing else None,
        "floor": floor_rows(results) if timing else None,
        "memory": {arm: answers[0]["memory"] for arm, answers in memory.items()} if memory else None,
        "growth": [row for axis in results["growth"] for row in growth_rows(axis, results["growth"][axis])]
        if results.get("growth")
        else None,
        "ranks": [rank_row(point) for point in results["ranks"]] if results.get("ranks") else None,
        "rank_exponent": rank_exponent(results["ranks"]) if results.get("ranks") else None,
    }


def target_row(target: Target, results: Results) -> dict[str, Any]:
    """One target beside the ratio that was measured."""
    found = target.measure(results)
    return {
        "name": target.name,
        "what": target.what,
        "bound": target.bound,
        "at_least": target.at_least,
        "found": asdict(found) if found else None,
        "verdict": target.verdict(found),
    }


def steps(timing: dict[str, Any], useful_tokens: int) -> dict[str, Any]:
    """Median seconds of every arm by phase, and useful tokens a second."""
    rows = {}
    for arm in (arm for arm in ARMS if arm in timing):
        seconds = step_seconds(timing[arm])
        rows[arm] = {
            "seconds": median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "phases": {phase: median(phase_seconds(timing[arm], phase)) for phase in PHASES},
            "tokens_per_second": useful_tokens / median(seconds),
            "kept_tokens": timing[arm][-1].get("kept_tokens"),
        }
    return rows


def pairs(rounds: dict[str, Any], wanted: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Ratios of one arm to another, of whole steps and without rollouts."""
    return [
        {
            "above": above,
            "below": below,
            "step": asdict(ratio(step_seconds(rounds[above]), step_seconds(rounds[below]))),
            "without_rollout": asdict(ratio(without_rollout(rounds[above]), without_rollout(rounds[below]))),
        }
        for above, below in wanted
        if {above, below} <= rounds.keys()
    ]


def padding(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The last step's tokens by what was done, and the share of them that is padding."""
    work = rounds[-1]["work"]
    return {name: {**one, "padding": 1 - one["tokens"] / one["padded"]} for name, one in work.items()}


def floor_rows(results: Results) -> dict[str, Any]:
    """For every arm that scores before its update, by phase: the floor, and the time over it, medians of rounds."""
    rows: dict[str, Any] = {}
    for arm in (arm for arm in SCORING if arm in results["timing"]):
        bounds, rounds = floors_by_round(results, arm), results["timing"][arm]
        rows[arm] = {
            phase: {
                "seconds": median(bound[phase] for bound in bounds),
                "over": ratio(phase_seconds(rounds, phase), [bound[phase] for bound in bounds]).median,
            }
            for phase in SCORED_PHASES
            if phase in bounds[0]
        }
    return rows


def growth_rows(axis: str, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponents of one axis, for every arm that grew."""
    values = [point["value"] for point in points]
    rows = []
    for arm in points[0]["rounds"]:
        seconds = [median(step_seconds(point["rounds"][arm])) for point in points]
        phases = {
            phase: [median(phase_seconds(point["rounds"][arm], phase)) for point in points] for phase in SCORED_PHASES
        }
        rows.append(
            {
                "axis": axis,
                "arm": arm,
                "values": values,
                "seconds": seconds,
                "exponent": exponent(values, seconds),
                "phases": {phase: exponent(values, taken) for phase, taken in phases.items() if min(taken) > 0},
            }
        )
    return rows


def rank_row(point: dict[str, Any]) -> dict[str, Any]:
    """One number of ranks: seconds of a step on the slowest rank, bytes that a rank hands in for each of its rows."""
    slowest = [max(answer["seconds"] for answer in step) for step in point["steps"]]
    steps, rows = point["steps"], point["rows_of_a_rank"]
    return {
        "ranks": point["ranks"],
        "seconds": median(slowest),
        "least": min(slowest),
        "most": max(slowest),
        "bytes_per_row": {
            part: median(max(answer["communication"][part]["bytes"] for answer in step) for step in steps) / rows
            for part in PARTS
        },
        "communication_seconds": {
            part: median(max(answer["communication"][part]["seconds"] for answer in step) for step in point["steps"])
            for part in PARTS
        },
    }


def rank_exponent(points: list[dict[str, Any]]) -> float:
    """The exponent of the time of a step over the number of ranks: -1 if twice the ranks take half the time."""
    rows = [rank_row(point) for point in points]
    return exponent([row["ranks"] for row in rows], [row["seconds"] for row in rows])
