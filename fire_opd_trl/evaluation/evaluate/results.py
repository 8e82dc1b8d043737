"""results.json: the numbers of an evaluation with everything that makes them, and the tables that they may share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json
from .summary import by_problem, compare_all, majority_answer, summarize


if TYPE_CHECKING:
    from .problems import Problem, Task
    from .samples import Sample


SCHEMA = "fire-opd-evaluation/1"  # docs/results_schema.md says what each key means


@dataclass(frozen=True)
class Table:
    """
    Numbers that may stand side by side: one backend, one way to sample, and for each task equal data and prompts.

    Attributes:
        number (`int`): As entries and differences name it, from 1.
        settings (`dict`): What all entries share; see [`settings_of`]. `prompt_style` says it for each task.
        entries (`list[dict]`): Ordered by task, then by model.
        differences (`list[dict]`): Of these entries, ordered likewise.
    """

    number: int
    settings: dict[str, Any]
    entries: list[dict]
    differences: list[dict]

    @property
    def models(self) -> list[str]:
        return models_of(self.entries)

    @property
    def tasks(self) -> list[str]:
        return tasks_of(self.entries)

    def of_task(self, task: str) -> list[dict]:
        """Returns the entries of one task, in the order of the models."""
        return [entry for entry in self.entries if entry["task"]["name"] == task]

    def difference(self, task: str, second: str) -> dict | None:
        """Returns the difference of one model to the first on one task; `None` for the first itself."""
        return next((one for one in self.differences if (one["task"], one["second"]) == (task, second)), None)


def models_of(entries: list[dict]) -> list[str]:
    """Returns the labels of the models, in the order in which they were asked for."""
    return list(dict.fromkeys(entry["model"]["label"] for entry in entries))


def tasks_of(entries: list[dict]) -> list[str]:
    """Returns the names of the tasks, in the order in which they were asked for."""
    return list(dict.fromkeys(entry["task"]["name"] for entry in entries))


# Made


def entry(facts: dict, task: Task, samples: Sequence[Sample]) -> dict:
    """
    Returns what results.json says of one model on one task, for [`build`].

    Args:
        facts (`dict`):
            What makes the numbers: `model`, `prompt`, `backend`, `sampling`, `grader` and `versions` as
            docs/results_schema.md has them, and the `limit` of `task`. `run` takes it from the log.
        task ([`Task`]): The task as it was loaded; its problems say the order of the rows and the golds.
        samples (`list[Sample]`): All samples of this model on this task that there are.
    """
    summary, rows = summarize(samples, facts["sampling"]["n"], len(task.problems)), by_problem(samples)
    return {
        "table": 0,  # `build` numbers the tables
        "status": "partial" if summary.missing else "complete",
        "model": facts["model"],
        "task": {
            **{name: getattr(task, name) for name in ("name", "kind", "answer", "source", "sha256")},
            "problems": len(task.problems),
            "limit": facts["task"]["limit"],
        },
        **{name: facts[name] for name in ("prompt", "backend", "sampling", "grader", "versions")},
        "summary": plain(asdict(summary)),
        "rows": [row(problem, rows.get(problem.id, [])) for problem in task.problems],
    }


def row(problem: Problem, samples: Sequence[Sample]) -> dict:
    """Returns what results.json says of one problem."""
    tokens = [sample.tokens for sample in samples]
    return {
        "id": problem.id,
        "n": len(samples),
        "right": sum(sample.right for sample in samples),
        "truncated": sum(sample.stop == "length" for sample in samples),
        "no_answer": sum(sample.verdict == "no answer" for sample in samples),
        "ungraded": sum(sample.verdict in ("timeout", "died") for sample in samples),
        "mean_tokens": sum(tokens) / len(tokens) if tokens else None,
        "majority": majority_answer(samples),
        "gold": list(problem.gold),
    }


def plain(value: Any) -> Any:
    """Returns a number, or several, as JSON has them: what is no number is null, and keys are text."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def build(
    entries: Sequence[dict], *, earlier: dict | None = None, command: str | None = None, times: dict | None = None
) -> dict:
    """
    Returns the results of an evaluation, for `run` to write.

    Args:
        entries (`list[dict]`): From [`entry`], by model, then by task, in the order in which the user asked.
        earlier (`dict`, *optional*):
            What results.json held before. Its entries stay where they are; those that were measured again, with equal
            settings, are replaced.
        command (`str`, *optional*): The command that makes these entries again, for the page.
        times (`dict`, *optional*): Everything that differs between two equal runs; nothing else may.
    """
    made = [{**one, "command": command} for one in entries]
    together = [*(earlier["entries"] if earlier else []), *made]
    refuse_changed(one["model"] for one in together)
    merged: dict[tuple, dict] = {}
    for one in together:
        label, task = one["model"]["label"], one["task"]["name"]
        merged[label, task, frozen(settings_of(one)), frozen(data_of(one))] = one
    numbered = number_tables(list(merged.values()))
    built = {
        "schema": SCHEMA,
        "command": command,
        "status": "partial" if any(one["status"] == "partial" for one in numbered) else "complete",
        "entries": numbered,
        "differences": [],
        "times": {**(earlier["times"] if earlier else {}), **(times or {})},
    }
    built["differences"] = [one for table in tables(built) for task in table.tasks for one in compared(table, task)]
    return built


def refuse_changed(models: Iterable[dict]) -> None:
    """Refuses two models of one label. `run` calls this also before a model is loaded."""
    hashes: dict[str, dict] = {}
    for model in models:
        label, now = model["label"], model["hashes"]
        was = hashes.setdefault(label, now)
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        if names:
            changed = "; ".join(f"{name} was {was.get(name)}, and is {now.get(name)}" for name in names)
            raise ValueError(
                f"The model {label!r} of results.json is not the one that is measured now: {changed}. Take another "
                "--output_dir for it, or evaluate all its tasks again with --overwrite."
            )


# Tables


def settings_of(entry: dict) -> dict[str, Any]:
    """Returns the settings that two numbers must share to stand in one table; the seed may differ."""
    return {
        "backend": entry["backend"]["name"],
        "thinking": entry["prompt"]["thinking"],
        **{name: entry["sampling"][name] for name in ("n", "temperature", "top_p", "top_k", "max_new_tokens")},
    }


def data_of(entry: dict) -> list:
    """Returns what two numbers of a task must share beside the settings: its data and prompts, and who grades."""
    task = [entry["task"][name] for name in ("sha256", "problems", "kind", "answer")]
    return [*task, entry["prompt"]["style"], entry["grader"]]


def frozen(settings: Any) -> str:
    """Returns settings as a key."""
    return json.dumps(settings, sort_keys=True)


def number_tables(entries: list[dict]) -> list[dict]:
    """Returns entries with the number of their table. Other data under the name of a task make another table."""
    variants: dict[tuple[str, str], dict[str, int]] = {}  # of the data of a task with some settings
    numbers: dict[tuple[str, int], int] = {}
    numbered = []
    for one in entries:
        settings, data = frozen(settings_of(one)), frozen(data_of(one))
        known = variants.setdefault((settings, one["task"]["name"]), {})
        variant = known.setdefault(data, len(known))
        numbered.append({**one, "table": numbers.setdefault((settings, variant), len(numbers) + 1)})
    return numbered


def tables(results: dict) -> list[Table]:
    """Returns the tables of results, in which tasks and models are ordered as each came first."""
    models, tasks = models_of(results["entries"]), tasks_of(results["entries"])
    of_table: dict[int, list[dict]] = {}
    for one in sorted(
        results["entries"], key=lambda one: (tasks.index(one["task"]["name"]), models.index(one["model"]["label"]))
    ):
        of_table.setdefault(one["table"], []).append(one)
    return [
        Table(
            number,
            {**settings_of(found[0]), "prompt_style": styles_of(found)},
            found,
            [one for one in results["differences"] if one["table"] == number],
        )
        for number, found in sorted(of_table.items())
    ]


def styles_of(entries: list[dict]) -> str:
    """Returns the prompt style of entries, or where tasks have styles of their own, that of each."""
    tasks: dict[str, list[str]] = {}
    for one in entries:
        tasks.setdefault(one["prompt"]["style"], []).append(one["task"]["name"])
    if len(tasks) == 1:
        return next(iter(tasks))
    return " and ".join(f"{style} for {', '.join(dict.fromkeys(names))}" for style, names in tasks.items())


def compared(table: Table, task: str) -> list[dict]:
    """
    Returns the differences to the first model on one task. They need no more of a sample than the rows count, so that
    a model of an earlier call is compared without its texts.
    """
    counts = {
        entry["model"]["label"]: {row["id"]: (row["right"], row["n"]) for row in entry["rows"] if row["n"]}
        for entry in table.of_task(task)
    }
    known = {"table": table.number, "task": task}
    return [{**known, **plain(asdict(one)), "verdict": one.verdict} for one in compare_all(counts)]


# Files


def write(results: dict, path: Path) -> None:
    """Writes results.json, whole or not at all; `run` calls it after every task."""
    write_json(path, results)


def read(path: Path) -> dict:
    """Returns what a results.json holds. Raises `ValueError` where it is of another version or no results at all."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no results.json: it cannot be read as JSON ({error}).") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has the schema {schema!r}, and this version of fire_opd_trl reads {SCHEMA!r}. Read it with the "
            "version that wrote it, or evaluate into another --output_dir."
        )
    try:
        build([], earlier=results)  # which reads all that is compared
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} says {SCHEMA!r}, but its entries cannot be read ({type(error).__name__}: {error}). It was "
            "changed by hand: evaluate again."
        ) from error
    return results
