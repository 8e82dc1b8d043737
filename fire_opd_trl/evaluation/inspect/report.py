"""The report of one run or of two: what the page shows and the terminal prints, as plain JSON values."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ..files import write_whole
from .curves import curves_of
from .facts import differences, facts_of, teachers_of
from .figures import figures_of, plain
from .run import HOW_TO_RECORD, Records, Run, read_run


TRAJECTORIES = 200  # in a page
TOKENS = 400_000  # in a page, where nobody asks for more: about 10 MB


def report_of(
    folders: Sequence[Path], trajectories: int | None = None, steps: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """
    Returns the report of a run, or of two side by side. The figures are over all recorded trajectories.

    Args:
        folders (`list[Path]`): The folders of one run or two.
        trajectories (`int`, *optional*): How many of them are shown token by token, of all runs together; by default
            200, and fewer if they are very long.
        steps (`list[tuple[int, int]]`): The first and the last step of those that may be shown; by default all.
    """
    runs = [read_run(Path(folder)) for folder in folders]
    facts = [facts_of(run) for run in runs]
    if len(runs) == 2:
        facts = [
            [*differences(run, other), *about] for run, other, about in zip(runs, reversed(runs), facts, strict=True)
        ]
    names = names_of([run.folder for run in runs])
    return {
        "title": " and ".join(names),
        "version": __version__,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "runs": [
            {
                "name": name,
                "facts": about,
                "watchdogs": run.warnings,
                "unwatched": run.unwatched,
                "curves": curves_of(run.logs, teachers_of(run) if len(teachers_of(run)) > 1 else ()),
                "figures": figures_of(run.records, score_of(run)),
                **shown_trajectories(run.records, trajectories, steps, len(runs)),
            }
            for name, run, about in zip(names, runs, facts, strict=True)
        ],
    }


def names_of(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of paths that tell folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]).replace("//", "/") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def score_of(run: Run) -> str:
    """Returns the name of the method's score, without its arguments, as run.json has it."""
    return str(((run.about.get("method") or {}).get("stages") or {}).get("score", "")).split("(")[0]


def shown_trajectories(
    records: Records, trajectories: int | None, steps: Sequence[tuple[int, int]], runs: int
) -> dict[str, Any]:
    """Returns the trajectories that are shown token by token, and how many are left out."""
    allowed = [
        number
        for number, row in enumerate(records.rows)
        if not steps or any(first <= row["step"] <= last for first, last in steps)
    ]
    if steps and records.rows and not allowed:
        there = sorted({row["step"] for row in records.rows})
        raise ValueError(f"--steps: nothing was recorded there. Recorded are steps {in_short(there)}.")
    count = max(1, (TRAJECTORIES if trajectories is None else trajectories) // runs)
    chosen = spread(records, allowed, count)
    while trajectories is None and len(chosen) > 1 and tokens_in(records, chosen) > TOKENS // runs:
        count = min(len(chosen) - 1, len(chosen) * TOKENS // runs // tokens_in(records, chosen))
        chosen = spread(records, allowed, max(1, count))
    return {
        "trajectories": [trajectory(records, number) for number in chosen],
        "left_out": len(records.rows) - len(chosen),
    }


def in_short(steps: Sequence[int]) -> str:
    """Returns numbers as a person writes them: all of a few, the first and the last ones of many."""
    few = map(str, steps if len(steps) <= 8 else [*steps[:4], "...", *steps[-2:]])
    return ", ".join(few)


def tokens_in(records: Records, rows: Sequence[int]) -> int:
    """Returns how many tokens some trajectories have together."""
    return int(np.diff(records.starts)[list(rows)].sum())


def spread(records: Records, allowed: Sequence[int], count: int) -> list[int]:
    """
    Returns so many trajectories, spread evenly over the steps; kept and dropped ones in their proportion, and at least
    one of each, if there are any.
    """
    kept = [number for number in allowed if records.rows[number]["kept"]]
    dropped = [number for number in allowed if not records.rows[number]["kept"]]
    if len(allowed) <= count:
        return list(allowed)
    of_dropped = round(count * len(dropped) / len(allowed))
    if count > 1:
        of_dropped = min(max(of_dropped, 1 if dropped else 0), count - (1 if kept else 0))
    return sorted(every_so_often(kept, count - of_dropped) + every_so_often(dropped, of_dropped))


def every_so_often(numbers: Sequence[int], count: int) -> list[int]:
    """Returns `count` of some numbers, at equal distances."""
    count = min(count, len(numbers))
    return [numbers[(2 * place + 1) * len(numbers) // (2 * count)] for place in range(count)]


def trajectory(records: Records, number: int) -> dict[str, Any]:
    """Returns a trajectory as the page shows it: what is said of it, and lists of its tokens' texts and numbers."""
    row = records.rows[number]
    tokens = slice(records.starts[number], records.starts[number + 1])
    numbers = {
        name: values[tokens].tolist() if values is not None and records.has[name][number] else None
        for name, values in records.numbers.items()
    }
    return {
        **{name: plain([value], 5)[0] if isinstance(value, float) else value for name, value in row.items()},
        "tokens": [records.vocabulary[token] for token in records.tokens[tokens]],
        "trains": records.trains[tokens].tolist(),
        **numbers,
    }


def what_it_holds(report: dict[str, Any]) -> str:
    """Returns a line on what the page shows, for whoever has just made it."""
    shown = sum(len(run["trajectories"]) for run in report["runs"])
    there = shown + sum(run["left_out"] for run in report["runs"])
    said = sum(len(run["watchdogs"]) for run in report["runs"])
    of = f" of the {there:,} that were recorded" if there > shown else ""
    if not shown:
        curves = max(len(run["curves"]) for run in report["runs"])
        return f"{curves} curve{'s' * (curves != 1)}, and no trajectories. {HOW_TO_RECORD}"
    warnings = f", and {said or 'no'} warning{'s' * (said > 1)} of the watchdogs"
    if not said and any(run["unwatched"] for run in report["runs"]):
        warnings = ""
    noun = "trajectory" if shown == 1 else "trajectories"
    return f"{shown:,} {noun}{of}, token by token{warnings}. Open it in a browser."


def write_page(report: dict[str, Any], path: Path) -> Path:
    """Writes the page of a report, whole or not at all, and returns its file."""
    from .page import page

    write_whole(path, page(report))
    return path
