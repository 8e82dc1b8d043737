"""The page of `fire-opd evaluate`: one HTML file with all that it shows, which runs no script and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from ..files import write_whole
from ..inspect.page import policy
from ..inspect.visible import visible
from ..templates import render
from . import words
from .picture import PANELS, panels_of, picture
from .results import Table, models_of, tables, tasks_of, write


if TYPE_CHECKING:
    from .problems import Problem, Task
    from .samples import Sample

HERE = Path(__file__).parent
STYLES = (HERE.parent / "inspect" / "page.css", HERE / "page.css")
MOST_PROBLEMS = 100  # of a task, in the table of problems; results.json has all
EXAMPLES = 3  # problems of a task whose samples are shown
HEAD, TAIL = 1500, 800  # characters of a sample that are shown: its end has the answer
Samples = Mapping[tuple[str, str], Sequence["Sample"]]


def write_report(results: dict, folder: Path, samples: Samples | None = None, tasks: Sequence[Task] = ()) -> None:
    """
    Writes results.json and results.html into a folder; `run` calls it after every task.

    Args:
        results (`dict`): From `results.build`.
        folder (`Path`): Where the files go.
        samples (`dict`, *optional*): The samples that are at hand, by label of the model and name of the task. Some
            of their texts are shown.
        tasks (`list[Task]`): The tasks that are at hand: their texts are shown beside samples.
    """
    write(results, folder / "results.json")
    write_whole(folder / "results.html", page(results, samples or {}, tasks))


def page(results: dict, samples: Samples, tasks: Sequence[Task] = ()) -> str:
    """Returns the HTML of results; the arguments are those of [`write_report`]."""
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    problems = {task.name: {problem.id: problem for problem in task.problems} for task in tasks}
    values = {
        "results": results,
        "title": title(results["entries"]),
        "tables": tables(results),
        "panels": lambda table: [
            (PANELS[one].format(n=table.settings["n"]), picture(table, one)) for one in panels_of(table)
        ],
        "grids": lambda table: words.grids(table, passes(table)),
        "problems_of": lambda table: [of_task(table, task, samples, problems.get(task, {})) for task in table.tasks],
        "made": made_alike(results["entries"]),
        "commands": list(dict.fromkeys(one["command"] for one in results["entries"] if one.get("command"))),
        "python": [words.name_of(one) for one in results["entries"] if not one.get("command")],
        "cannot": said_once(tables(results)),
        "words": words,
        "policy": policy([], style),
        "style": Markup(style),
    }
    html = render(HERE / "page.html.j2", values, {"shown": visible, "text": text, "short": short})
    return html.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is in no file


def passes(table: Table) -> list[int]:
    """Returns the k of all pass@k that the page shows; pass@1 is Avg@n."""
    return sorted({int(k) for entry in table.entries for k in entry["summary"]["pass_at"]} - {1})


def title(entries: list[dict]) -> str:
    """Returns the title of the page: which models on which tasks, or how many."""
    models, tasks = models_of(entries), tasks_of(entries)
    if not models:
        return "Nothing was evaluated"
    ours = words.listed(models) if len(models) <= 2 else f"{len(models)} models"
    return f"{ours} on {words.listed(tasks) if len(tasks) <= 3 else f'{len(tasks)} tasks'}"


def said_once(tables: list[Table]) -> dict[int, list[str]]:
    """Returns what cannot be said, by number of the table, without what stands at an earlier one."""
    numbers: dict[str, int] = {}
    for table in tables:
        for sentence in words.what_cannot_be_said(table):
            numbers.setdefault(sentence, table.number)
    return {table.number: [one for one, at in numbers.items() if at == table.number] for table in tables}


def made_alike(entries: list[dict]) -> list[list[dict]]:
    """Returns entries in groups that differ in the task and its prompts alone: the page says once what they share."""
    groups: dict[str, list[dict]] = {}
    for entry in entries:
        shared = [entry[name] for name in ("table", "model", "backend", "sampling", "versions")]
        groups.setdefault(json.dumps(shared), []).append(entry)
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
        rows = [line.rows[index] for line in lines if line.rows[index]["n"]]
        if not rows:
            continue
        ever, always = sum(row["right"] > 0 for row in rows), sum(row["right"] == row["n"] for row in rows)
        sentence = (
            f"{entry['model']['label']} solves {ever} of {len(rows)} problems at least once, and {always} in "
            "every sample"
        )
        pairs = [(line.rows[0], line.rows[index]) for line in lines]
        both = [(was["right"] > 0, now["right"] > 0) for was, now in pairs if was["n"] and now["n"]]
        if index and both:
            gained, lost = both.count((False, True)), both.count((True, False))
            sentence += f"; {gained} that {entries[0]['model']['label']} never solves, and {lost} the other way round"
        sentences.append(f"{sentence}.")
    return sentences


def examples(
    entries: list[dict], ordered: list[Line], samples: Samples, problems: Mapping[str, Problem]
) -> list[dict]:
    """
    Returns some samples in their words: of the problems on which the models differ most, a right one of the better
    and a wrong one of the worse; and the answers that the grader could not judge.
    """
    at_hand = []
    for entry in entries:
        given = [
            sample for sample in samples.get((entry["model"]["label"], entry["task"]["name"]), ()) if not sample.failed
        ]
        if given and sum(sample.right for sample in given) == sum(row["right"] for row in entry["rows"]):
            at_hand.append((entry["model"]["label"], given))  # those of other settings have other counts, mostly
    found = []
    for line in ordered[:EXAMPLES] if at_hand else []:
        id, middle = line.rows[0]["id"], sum(line.shares) / max(len(line.shares), 1)
        chosen = []
        for label, given in at_hand:
            ours = [sample for sample in given if sample.problem == id]
            better = sum(sample.right for sample in ours) > middle * len(ours)
            typical = [sample for sample in ours if sample.right == better]
            chosen += [(label, sample) for sample in (typical or ours)[:1]]
        found.append({"id": id, "problem": problems.get(id), "samples": chosen, "why": ""})
    for label, given in at_hand:
        for sample in [sample for sample in given if sample.verdict in ("timeout", "died")][:EXAMPLES]:
            why = f"The grader could not judge this answer ({sample.verdict}): it counts as wrong."
            one = {"id": sample.problem, "problem": problems.get(sample.problem), "why": why}
            found.append({**one, "samples": [(label, sample)]})
    return found


# Texts


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
