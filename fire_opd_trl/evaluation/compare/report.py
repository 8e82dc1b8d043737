"""The report of a comparison: a table, the sentences that its numbers allow, and two pictures."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median

from ..files import write_json, write_whole
from ..statistics import Estimate
from .presets import Arm
from .records import Run, one_settings
from .summary import Row, table


HEAD = (
    "arm",
    "seeds",
    "accuracy, %",
    "difference, points",
    "distinguishable",
    "greedy, %",
    "greedy difference",
    "difference to random control",
    "distinguishable",
    "s/step",
    "kept tokens",
    "mean abs. advantage",
    "response length",
)
NOTES = """\
Accuracy is exact match on the same held-out problems for all arms of a seed, sampled at temperature 1 unless the
column says greedy. Sampled, an answer of thirty tokens is right only if every draw is: this measures how sharp the
student has become as much as what it knows; greedy answers are nearly all right in the end, and the arms lie close.
`±` and brackets are 95 % t-intervals over seeds; differences are paired by seed. *distinguishable*
means different from 0 at 5 % after Holm's correction over all differences in that column of this table; *no* does not
mean equal, and `–` is for a single seed, or seeds that agree to the last digit, which give no interval. The intervals
are not corrected, so that one may leave out 0 beside a *no*; those of greedy differences have no verdict. A *random
control* follows the rule of its method in every window, as many trajectories and the same weights, but at random: what
a method gains over it, it gains by knowing something. All arms have one learning rate, and their signals differ in
scale; AdamW evens out much of that, not all. `s/step` is CPU time on one thread
relative to `opd`, without the first two steps and without measuring; for SFT it includes what the teacher writes.
Kept tokens are those with any weight; a method without policy gradient has no advantage. Lengths are tokens in the
first and the last five steps.

One small task with tiny models: which method is best here need not be the best for a language model.
"""


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
    drawn = True
    try:
        from .pictures import forest, learning_curves

        pictures = [*learning_curves(rows, folder / "learning_curves"), *forest(rows, folder / "differences")]
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        drawn = False
    write_whole(
        folder / "report.md", markdown(runs, rows, title, expected, [p for p in pictures if p.suffix == ".png"])
    )
    write_json(folder / "results.json", results(runs, rows, title, expected))
    if not drawn:
        print("no pictures: pip install fire-opd-trl[report]")
    return [folder / "report.md", folder / "results.json", *pictures]


def results(runs: list[Run], rows: list[Row], title: str, expected: int) -> dict:
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
    }


def markdown(runs: list[Run], rows: list[Row], title: str, expected: int, pictures: list[Path]) -> str:
    """The text of the report."""
    settings = one_settings(runs)
    width = settings["training"]["per_device_train_batch_size"]
    versions = "; ".join(", ".join(f"{name} {v}" for name, v in found.items()) for found in distinct_versions(runs))
    lines = [
        f"# {title}",
        "",
        f"{settings['steps']} updates of {width} completions, {settings['problems']} held-out problems, "
        f"peak learning rate {settings['training']['learning_rate']:g} for every arm. {len(runs)} runs"
        + (f"; **{expected - len(runs)} of {expected} are missing**" if len(runs) < expected else "")
        + f". {versions}.",
        "",
        *[f"* {sentence}" for sentence in sentences(rows)],
        "",
        "| " + " | ".join(HEAD) + " |",
        "| " + " | ".join("---" if column == "arm" else "---:" for column in HEAD) + " |",
        edge_line("student, untrained", runs, "before"),
        edge_line("teacher", runs, "teacher"),
        *["| " + " | ".join(cells(row)) + " |" for row in rows],
        "",
        NOTES,
        *[f"![{path.stem.replace('_', ' ')}]({path.name})\n" for path in pictures],
    ]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """One line of the table."""
    beside = f" to `{row.arm.against}`" if row.arm.against != "opd" else ""
    return [
        f"`{row.arm.name}`",
        str(len(row.seeds)),
        plus_minus(row.after),
        bracketed(row.difference) + (beside if row.difference else ""),
        said(row.differs),
        plus_minus(row.greedy),
        bracketed(row.greedy_difference),
        bracketed(row.to_control),
        said(row.beats_chance),
        f"{row.cost:.2f}" if row.cost is not None else "–",
        f"{row.kept:.0%}" if row.kept is not None else "–",
        f"{row.advantage:.3f}" if row.advantage is not None else "–",
        f"{row.length[0]:.1f} → {row.length[1]:.1f}" if row.length is not None else "–",
    ]


def edge_line(name: str, runs: list[Run], key: str) -> str:
    """The line of a model that is not trained: where the arms begin, and whom they learn from."""
    seeds = len({run["seed"] for run in runs})
    columns = [name, str(seeds), f"{100 * mean_over_seeds(runs, key):.1f}", "–", "–"]
    columns += [f"{100 * mean_over_seeds(runs, key + '_greedy'):.1f}"]
    return "| " + " | ".join(columns + ["–"] * (len(HEAD) - len(columns))) + " |"


def sentences(rows: list[Row]) -> list[str]:
    """What the numbers allow to be said, and what they do not."""
    said: list[str] = []
    for against in dict.fromkeys(row.arm.against for row in rows if row.difference is not None):
        group = [row for row in rows if row.difference is not None and row.arm.against == against]
        said += verdicts(f"Against `{against}`", [(row.arm.name, row.difference, row.differs) for row in group])
    controlled = [row for row in rows if row.to_control is not None]
    pairs = [(f"{row.arm.name}` against `{row.arm.control}", row.to_control, row.beats_chance) for row in controlled]
    said += verdicts("Against its random control", pairs) if pairs else []
    kept = {row.arm.name: row.kept for row in rows}
    uneven = [row.arm.name for row in controlled if abs((row.kept or 0) - (kept[row.arm.control or ""] or 0)) > 0.05]
    if uneven:
        said.append(
            f"`{'`, `'.join(uneven)}` and the control ended with different shares of kept tokens: the rule is the "
            "same in each window, and the students, which differ, change what it keeps."
        )
    widths = [e.half_width for e in (row.difference for row in rows) if e is not None and e.half_width is not None]
    if widths:
        said.append(
            f"The intervals of the differences are ± {100 * median(widths):.1f} points in the median: what is much "
            "smaller cannot be seen with these seeds."
        )
    elif any(row.difference is not None for row in rows):
        said.append("There are too few seeds for any interval: nothing can be said about which arm is better.")
    return said


def verdicts(beginning: str, compared: list[tuple[str, Estimate | None, bool | None]]) -> list[str]:
    """One sentence each for what is higher, lower, not distinguishable, and not testable."""
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


def said(verdict: bool | None) -> str:
    """A verdict in a table."""
    return "–" if verdict is None else "yes" if verdict else "no"


def mean_over_seeds(runs: list[Run], name: str) -> float:
    """The mean of a number that all runs of a seed share."""
    return fmean({run["seed"]: run[name] for run in runs}.values())


def distinct_versions(runs: list[Run]) -> list[dict[str, str]]:
    """The versions that made the runs; more than one set of them is worth a look."""
    return [json.loads(text) for text in sorted({json.dumps(run["versions"]) for run in runs})]
