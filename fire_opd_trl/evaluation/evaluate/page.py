"""The page of `fire-opd evaluate`: one HTML file with all that it shows, which runs no script and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..files import write_whole
from ..inspect.page import policy
from ..inspect.visible import visible
from ..style import VERDICTS
from ..templates import number
from . import words
from .picture import panels_of, svg, write_png
from .results import Table, tables, write


if TYPE_CHECKING:
    from .problems import Problem, Task
    from .samples import Sample

HERE = Path(__file__).parent
STYLES = (HERE.parent / "inspect" / "page.css", HERE / "page.css")
MOST_PROBLEMS = 100  # of a task, in the table of problems; results.json has all
EXAMPLES = 3  # problems of a task whose samples are shown
HEAD, TAIL = 1500, 800  # characters of a sample that are shown: its end has the answer
Samples = Mapping[tuple[str, str], Sequence["Sample"]]


def write_report(
    results: dict, folder: Path, samples: Samples | None = None, tasks: Sequence[Task] = ()
) -> list[Path]:
    """
    Writes results.json, results.html and the pictures into a folder; `run` calls it when an evaluation ends.

    Args:
        results (`dict`): From `results.build`.
        folder (`Path`): Where the files go.
        samples (`dict`, *optional*): The samples that are at hand, by label of the model and name of the task. Some
            of their texts are shown.
        tasks (`list[Task]`): The tasks that are at hand: their texts are shown beside samples.

    Returns:
        `list[Path]`: The files.
    """
    write(results, folder / "results.json")
    found = tables(results)
    names = ["results.png"] if len(found) == 1 else [f"results-{table.number}.png" for table in found]
    for old in [folder / "results.png", *folder.glob("results-[0-9]*.png")]:  # there were more or fewer tables
        if old.name not in names:
            old.unlink(missing_ok=True)
    pictures = [write_png(table, folder / name) for table, name in zip(found, names, strict=True)]
    write_whole(folder / "results.html", page(results, samples or {}, tasks))
    return [folder / "results.json", folder / "results.html", *pictures]


def page(results: dict, samples: Samples, tasks: Sequence[Task] = ()) -> str:
    """Returns the HTML of results; the arguments are those of [`write_report`]."""
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(
        number=number,
        percent=words.percent,
        points=words.points,
        interval=words.interval,
        verdict=words.verdict_in_words,
        shown=shown,
        text=text,
        short=short,
    )
    found = tables(results)
    problems = {task.name: {problem.id: problem for problem in task.problems} for task in tasks}
    html = environment.from_string((HERE / "page.html.j2").read_text(encoding="utf-8")).render(
        results=results,
        title=title(results),
        why_several=words.differing(found) if found else "",
        sections=[section(table, samples, problems) for table in found],
        made=made_alike(results["entries"]),
        colours=VERDICTS,
        words=words,
        policy=policy([], style),
        style=Markup(style),
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is in no file


def title(results: dict) -> str:
    """Returns the title of the page: which models on which tasks, or how many."""
    models = list(dict.fromkeys(entry["model"]["label"] for entry in results["entries"]))
    tasks = list(dict.fromkeys(entry["task"]["name"] for entry in results["entries"]))
    if not models:
        return "Nothing was evaluated"
    ours = words.listed(models) if len(models) <= 2 else f"{len(models)} models"
    return f"{ours} on {words.listed(tasks) if len(tasks) <= 3 else f'{len(tasks)} tasks'}"


def section(table: Table, samples: Samples, problems: Mapping[str, Mapping[str, Problem]]) -> dict:
    """Returns what the template shows of one table."""
    return {
        "table": table,
        "heading": words.settings_in_words(table.settings),
        "said": words.what_can_be_said(table),
        "unsaid": words.what_cannot_be_said(table),
        "warnings": words.warnings(table),
        "notes": words.notes(table),
        "ks": sorted({int(k) for entry in table.entries for k in entry["summary"]["pass_at"]} - {1}),
        "panels": [Markup(svg(table, panel)) for panel in panels_of(table)],
        "tasks": [of_task(table, task, samples, problems.get(task, {})) for task in table.tasks],
    }


def made_alike(entries: list[dict]) -> list[list[dict]]:
    """Returns entries in groups that differ in the task alone, so that the page says once what they share."""
    groups: dict[str, list[dict]] = {}
    for entry in entries:
        shared = [entry[name] for name in ("table", "model", "backend", "sampling", "versions")]
        groups.setdefault(json.dumps([shared, entry["prompt"]["style"]]), []).append(entry)
    return list(groups.values())


# Problems


@dataclass(frozen=True)
class Line:
    """What all models made of one problem; `rows` are those of results.json, in the order of the models."""

    rows: list[dict]

    @property
    def shares(self) -> list[float]:
        """The shares of right samples, of the models that have any sample."""
        return [row["right"] / row["n"] for row in self.rows if row["n"]]

    @property
    def spread(self) -> float:
        """How far the best and the worst model lie apart."""
        return max(self.shares, default=0.0) - min(self.shares, default=0.0)


def of_task(table: Table, task: str, samples: Samples, problems: Mapping[str, Problem]) -> dict:
    """Returns what the template shows of the problems of one task: those first on which the models differ most."""
    entries = table.of_task(task)
    by_id = [{row["id"]: row for row in entry["rows"]} for entry in entries]
    lines = [Line([rows[id] for rows in by_id]) for id in by_id[0] if all(id in rows for rows in by_id)]
    ordered = sorted(lines, key=lambda line: (-line.spread, sum(line.shares)))  # stable: then in the task's order
    return {
        "name": task,
        "labels": [entry["model"]["label"] for entry in entries],
        "count": len(lines),
        "lines": ordered[:MOST_PROBLEMS],
        "solved": solved(entries, lines),
        "examples": examples(entries, ordered, samples, problems),
    }


def solved(entries: list[dict], lines: list[Line]) -> list[str]:
    """Returns who solves which share of the problems at least once, and what one model solves and the first never."""
    sentences = []
    for index, entry in enumerate(entries):
        label, rows = entry["model"]["label"], [line.rows[index] for line in lines]
        ever, always = sum(row["right"] > 0 for row in rows), sum(0 < row["n"] == row["right"] for row in rows)
        words_of = f"{label} solves {ever} of {len(rows)} problems at least once, and {always} in every sample"
        if index:
            ours = [line.rows[index]["right"] > 0 for line in lines]
            theirs = [line.rows[0]["right"] > 0 for line in lines]
            gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
            lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
            words_of += f"; {gained} that {entries[0]['model']['label']} never solves, and {lost} the other way round"
        sentences.append(f"{words_of}.")
    return sentences


def examples(
    entries: list[dict], ordered: list[Line], samples: Samples, problems: Mapping[str, Problem]
) -> list[dict]:
    """
    Returns some samples in their words: of the problems on which the models differ most, a right one of the better
    and a wrong one of the worse; and the answers that the grader could not judge.
    """
    at_hand = [(entry, samples.get((entry["model"]["label"], entry["task"]["name"]), ())) for entry in entries]
    at_hand = [(entry, of_entry) for entry, of_entry in at_hand if belong(entry, of_entry)]
    found = []
    for line in ordered[:EXAMPLES] if at_hand else []:
        id, middle = line.rows[0]["id"], sum(line.shares) / max(len(line.shares), 1)
        chosen = []
        for entry, of_entry in at_hand:
            ours = [sample for sample in of_entry if sample.problem == id and sample.stop != "error"]
            better = sum(sample.right for sample in ours) > middle * len(ours)
            typical = [sample for sample in ours if sample.right == better]
            chosen += [(entry["model"]["label"], sample) for sample in (typical or ours)[:1]]
        found.append({"id": id, "problem": problems.get(id), "samples": chosen, "why": ""})
    for entry, of_entry in at_hand:
        lost = [sample for sample in of_entry if sample.verdict in ("timeout", "died")]
        for sample in lost[:EXAMPLES]:
            why = f"The grader could not judge this answer ({sample.verdict}): it counts as wrong."
            one = {"id": sample.problem, "problem": problems.get(sample.problem), "why": why}
            found.append({**one, "samples": [(entry["model"]["label"], sample)]})
    return found


def belong(entry: dict, samples: Sequence[Sample]) -> bool:
    """Returns whether samples are those that an entry counts; those of other settings have other counts, mostly."""
    right = sum(sample.right for sample in samples)
    return bool(samples) and right == sum(row["right"] for row in entry["rows"])


# Texts


def shown(name: str) -> str:
    """Returns a name of a user or of a model with its signs made visible, for one line."""
    return visible(str(name))


def short(hash: str | None) -> str:
    """Returns the beginning of a sha256, which tells it from others; what is none stays as it is."""
    is_hash = hash is not None and len(hash) == 64 and not set(hash) - set("0123456789abcdef")
    return "none" if hash is None else hash[:12] if is_hash else visible(hash)


def text(written: str) -> str:
    """Returns a text of a model, in its lines: what is not seen is named, and the middle of a long one left out."""
    if len(written) > HEAD + TAIL + 100:
        left_out = len(written) - HEAD - TAIL
        return f"{text(written[:HEAD])}\n[… {left_out:,} characters are left out here …]\n{text(written[-TAIL:])}"
    return "\n".join(visible(line.replace("\t", "    ")) for line in written.split("\n"))
