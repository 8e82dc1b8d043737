"""The report of a comparison: the sentences that its numbers allow, a table (`report.md.j2`), and two pictures."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median

from ..files import write_json, write_whole
from ..statistics import Estimate
from ..templates import render
from .answers import over_problems, what_filters_dropped
from .presets import Arm
from .records import Run, one_settings
from .summary import Row, table


def write_report(runs: list[Run], arms: list[Arm], folder: Path, title: str, expected: int) -> list[Path]:
    """
    Write `report.md`, `results.json` and the pictures of a comparison.

    Args:
        runs (`list[dict]`): The finished runs.
        arms (`list[Arm]`): The arms, in the order of the table.
        folder (`Path`): Where the report goes.
        title (`str`): What was compared.
        expected (`int`): How many runs there would be if all had finished.

    Returns:
        `list[Path]`: The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(runs, arms)
    pictures: list[Path] = []
    try:
        from .pictures import draw_differences, draw_learning_curves

        pictures += draw_learning_curves(rows, folder / "learning_curves")
        pictures += draw_differences(rows, folder / "differences")
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        print("no pictures: pip install fire-opd-trl[report]")
    shown = [path for path in pictures if path.suffix == ".png"]
    words: dict[str, list] = {"dropped": what_filters_dropped(runs, arms), "over_problems": over_problems(runs, arms)}
    write_whole(folder / "report.md", markdown(runs, rows, words, title, expected, shown))
    write_json(folder / "results.json", results(runs, rows, words, title, expected))
    return [folder / "report.md", folder / "results.json", *pictures]


def results(runs: list[Run], rows: list[Row], words: dict[str, list], title: str, expected: int) -> dict:
    """The table as JSON; accuracies and differences are shares."""
    return {
        "title": title,
        "settings": one_settings(runs),
        "versions": distinct_versions(runs),
        "runs": len(runs),
        "expected_runs": expected,
        **{name: mean_over_seeds(runs, name) for name in ("before", "before_greedy", "teacher", "teacher_greedy")},
        "rows": [asdict(row) for row in rows],
        "accuracy_by_seed": {
            row.arm.name: {run["seed"]: run["after"] for run in runs if run["arm"]["name"] == row.arm.name}
            for row in rows
        },
        **{name: [asdict(one) for one in found] for name, found in words.items() if found},
    }


def markdown(
    runs: list[Run], rows: list[Row], words: dict[str, list], title: str, expected: int, pictures: list[Path]
) -> str:
    """The text of the report, for [`write_report`]; the arguments are described there."""
    versions = [", ".join(f"{name} {v}" for name, v in found.items()) for found in distinct_versions(runs)]
    seeds = len({run["seed"] for run in runs})
    values = {
        "title": title,
        "settings": one_settings(runs),
        "samples": runs[0].get("measured", {}).get("samples"),
        "runs": len(runs),
        "expected": expected,
        "versions": "; ".join(versions),
        "sentences": sentences(rows),
        "untrained": [
            {
                "name": name,
                "seeds": seeds,
                "accuracy": mean_over_seeds(runs, key),
                "greedy": mean_over_seeds(runs, f"{key}_greedy"),
            }
            for name, key in (("student, untrained", "before"), ("teacher", "teacher"))
        ],
        "rows": rows,
        **words,
        "answers": [{"arm": row.arm.name, **mean_answers(runs, row.arm.name)} for row in rows],
        "pictures": pictures,
    }
    filters: dict[str, Callable[..., str]] = {"plus_minus": plus_minus, "bracketed": bracketed, "yes_or_no": yes_or_no}
    return render(Path(__file__).with_name("report.md.j2"), values, filters)


def sentences(rows: list[Row]) -> list[str]:
    """Sentences on what the numbers show, and on what they cannot show."""
    found: list[str] = []
    for against in dict.fromkeys(row.arm.against for row in rows if row.difference is not None):
        group = [row for row in rows if row.difference is not None and row.arm.against == against]
        found += verdicts(f"Against `{against}`", [(row.arm.name, row.difference, row.differs) for row in group])
    controlled = [row for row in rows if row.to_control is not None]
    pairs = [(f"{row.arm.name}` against `{row.arm.control}", row.to_control, row.beats_chance) for row in controlled]
    found += verdicts("Against its random control", pairs) if pairs else []
    kept = {row.arm.name: row.kept for row in rows}
    uneven = [row.arm.name for row in controlled if abs((row.kept or 0) - (kept[row.arm.control or ""] or 0)) > 0.05]
    if uneven:
        found.append(
            f"`{'`, `'.join(uneven)}` and the control ended with different shares of kept tokens: the rule is the "
            "same in each window, and the students, which differ, change what it keeps."
        )
    widths = [e.half_width for e in (row.difference for row in rows) if e is not None and e.half_width is not None]
    if widths:
        found.append(
            f"The intervals of the differences are ± {100 * median(widths):.1f} points in the median: what is much "
            "smaller cannot be seen with these seeds."
        )
    elif any(row.difference is not None for row in rows):
        found.append("There are too few seeds for any interval: nothing can be said about which arm is better.")
    return found


def verdicts(beginning: str, compared: list[tuple[str, Estimate | None, bool | None]]) -> list[str]:
    """One sentence for each kind of verdict that occurs: higher, lower, not distinguishable, without an interval."""
    kinds: dict[str, list[str]] = {}
    for name, difference, differs in compared:
        assert difference is not None
        kind = (
            "no interval can be given for"
            if differs is None
            else "not distinguishable"
            if not differs
            else "distinguishably higher"
            if difference.mean > 0
            else "distinguishably lower"
        )
        kinds.setdefault(kind, []).append(f"`{name}` ({100 * difference.mean:+.1f})")
    order = ("distinguishably higher", "distinguishably lower", "not distinguishable", "no interval can be given for")
    return [f"{beginning}, {kind}: {', '.join(kinds[kind])}." for kind in order if kind in kinds]


def plus_minus(value: Estimate) -> str:
    """An accuracy in percent with its interval."""
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.half_width:.1f}" if value.half_width is not None else "")


def bracketed(value: Estimate | None) -> str:
    """A difference in points with its interval."""
    if value is None:
        return "–"
    if value.half_width is None:
        return f"{100 * value.mean:+.1f}"
    low, high = value.mean - value.half_width, value.mean + value.half_width
    return f"{100 * value.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def yes_or_no(verdict: bool | None) -> str:
    """A verdict, in a cell of the table."""
    return "–" if verdict is None else "yes" if verdict else "no"


def mean_answers(runs: list[Run], arm: str) -> dict[str, float]:
    """How the answers of an arm's students ended, on held-out problems, mean over seeds; empty where nobody counts."""
    found = [run["measured"] for run in runs if run["arm"]["name"] == arm and "measured" in run]
    return {key: fmean(one[key] for one in found) for key in ("truncated", "no_answer", "tokens") if found}


def mean_over_seeds(runs: list[Run], name: str) -> float:
    """The mean of a number that all runs of a seed share."""
    return fmean({run["seed"]: run[name] for run in runs}.values())


def distinct_versions(runs: list[Run]) -> list[dict[str, str]]:
    """Every set of versions that made some of the runs; a reader should look twice if there is more than one."""
    return [json.loads(text) for text in sorted({json.dumps(run["versions"]) for run in runs})]
