"""results.json: the numbers of an evaluation with everything that makes them, and the tables that they may share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json
from ..statistics import LEVEL


if TYPE_CHECKING:
    from .problems import Task
    from .samples import Sample
    from .summary import Difference, Summary


SCHEMA = "fire-opd-evaluation/1"
STATES = ("complete", "partial")
# What results.json holds; docs/results_schema.md says what each key means. A leaf is a type, or several; `[x]` is a
# list of any length, and `{str: x}` has any keys. There may be more keys than these.
NUMBER, TEXT = (int, float), (str, type(None))
MAYBE = (int, float, type(None))
INTERVAL = [MAYBE]
ROW = {
    "id": str,
    "n": int,
    "right": int,
    "truncated": int,
    "no_answer": int,
    "ungraded": int,
    "mean_tokens": MAYBE,
    "majority": TEXT,
    "gold": [str],
}
SUMMARY = {
    "problems": int,
    "n": int,
    "avg": MAYBE,
    "stderr": MAYBE,
    "interval": INTERVAL,
    "pass_at": {str: MAYBE},
    "pass_at_stderr": {str: MAYBE},
    "maj_at_n": MAYBE,
    "maj_stderr": MAYBE,
    "truncated": MAYBE,
    "no_answer": MAYBE,
    "timeouts": int,
    "deaths": int,
    "unparsed": int,
    "mean_tokens": MAYBE,
    "tokens_stderr": MAYBE,
    "missing": int,
}
ENTRY = {
    "table": int,
    "status": str,
    "model": {"label": str, "path": str, "hashes": {str: TEXT}},
    "task": {
        "name": str,
        "kind": str,
        "answer": str,
        "source": str,
        "sha256": str,
        "problems": int,
        "limit": (int, type(None)),
    },
    "prompt": {"style": str, "thinking": bool, "example": str},
    "backend": {"name": str, "versions": {str: str}, "dtype": str, "device": str},
    "sampling": {
        "n": int,
        "temperature": NUMBER,
        "top_p": NUMBER,
        "top_k": (int, type(None)),
        "max_new_tokens": int,
        "seed": int,
    },
    "grader": {"name": str, "version": TEXT, "limit": MAYBE},
    "versions": {str: str},
    "summary": SUMMARY,
    "rows": [ROW],
}
DIFFERENCE = {
    "table": int,
    "task": str,
    "first": str,
    "second": str,
    "difference": MAYBE,
    "interval": INTERVAL,
    "p": MAYBE,
    "p_holm": MAYBE,
    "problems": int,
    "verdict": str,
}
RESULTS = {
    "schema": str,
    "command": TEXT,
    "status": str,
    "entries": [ENTRY],
    "differences": [DIFFERENCE],
    "times": dict,
}
VERDICTS = ("higher", "lower", "unclear", "none")  # of `second` against `first`; the keys of evaluation/style.py


@dataclass(frozen=True)
class Table:
    """
    Numbers that may stand side by side: one backend, one prompt style, one way to sample, and equal data by name.

    Attributes:
        number (`int`): As entries and differences name it, from 1.
        settings (`dict`): What all entries share; see [`settings_of`].
        entries (`list[dict]`): Ordered by task, then by model.
        differences (`list[dict]`): Of these entries, ordered likewise.
    """

    number: int
    settings: dict[str, Any]
    entries: list[dict]
    differences: list[dict]

    @property
    def models(self) -> list[str]:
        """The labels of the models, in the order in which they were asked for."""
        return list(dict.fromkeys(entry["model"]["label"] for entry in self.entries))

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order in which they were asked for."""
        return list(dict.fromkeys(entry["task"]["name"] for entry in self.entries))

    def of_task(self, task: str) -> list[dict]:
        """Returns the entries of one task, in the order of the models."""
        return [entry for entry in self.entries if entry["task"]["name"] == task]

    def difference(self, task: str, second: str) -> dict | None:
        """Returns the difference of one model to the first on one task; `None` for the first itself."""
        first = self.of_task(task)[0]["model"]["label"]
        found = (
            one for one in self.differences if (one["task"], one["first"], one["second"]) == (task, first, second)
        )
        return next(found, None)


# Made


def entry(
    *,
    model: dict,
    task: Task,
    limit: int | None,
    prompt: dict,
    backend: dict,
    sampling: dict,
    grader: dict,
    versions: dict[str, str],
    samples: Sequence[Sample],
    summary: Summary,
) -> dict:
    """
    Returns what results.json says of one model on one task, for [`build`].

    Args:
        model (`dict`): `label`, `path` as the user typed it, `hashes` by name (weights, config, chat template, ...).
        task ([`Task`]): The task as it was loaded; its problems say the order of the rows and the golds.
        limit (`int`, *optional*): The `--limit` that shortened the task.
        prompt (`dict`): `style`, `thinking`, and one rendered `example`.
        backend (`dict`): `name`, `versions`, `dtype`, `device` (its kind, not its number).
        sampling (`dict`): `n`, `temperature`, `top_p`, `top_k` (`None` is off), `max_new_tokens`, `seed`.
        grader (`dict`): `name`, `version`, `limit` in seconds, and what else decides what is right.
        versions (`dict`): Versions of the packages that take part.
        samples (`list[Sample]`): All samples of this model on this task that there are.
        summary ([`Summary`]): Their summary.
    """
    from .summary import majority_answer

    by_problem: dict[str, list[Sample]] = {problem.id: [] for problem in task.problems}
    for sample in samples:
        if sample.stop != "error":
            by_problem[sample.problem].append(sample)
    rows = [row(problem.id, problem.gold, by_problem[problem.id], majority_answer) for problem in task.problems]
    missing = sampling["n"] * len(rows) - sum(one["n"] for one in rows)  # also of problems without any sample
    return {
        "table": 0,  # `build` numbers the tables
        "status": "partial" if missing else "complete",
        "model": {"label": model["label"], "path": str(model["path"]), "hashes": dict(model["hashes"])},
        "task": {
            "name": task.name,
            "kind": task.kind,
            "answer": task.answer,
            "source": str(task.source),
            "sha256": task.sha256,
            "problems": len(task.problems),
            "limit": limit,
        },
        "prompt": dict(prompt),
        "backend": dict(backend),
        "sampling": dict(sampling),
        "grader": dict(grader),
        "versions": dict(sorted(versions.items())),
        "summary": {**{name: plain(getattr(summary, name)) for name in SUMMARY}, "missing": missing},
        "rows": rows,
    }


def row(problem: str, gold: Iterable[str], samples: Sequence[Sample], majority) -> dict:
    """Returns what results.json says of one problem."""
    tokens = [sample.tokens for sample in samples]
    return {
        "id": problem,
        "n": len(samples),
        "right": sum(sample.right for sample in samples),
        "truncated": sum(sample.stop == "length" for sample in samples),
        "no_answer": sum(sample.verdict == "no answer" for sample in samples),
        "ungraded": sum(sample.verdict in ("timeout", "died") for sample in samples),
        "mean_tokens": sum(tokens) / len(tokens) if tokens else None,
        "majority": majority(samples),
        "gold": list(gold),
    }


def plain(value: Any) -> Any:
    """Returns a number, or several, as JSON has them: what is no number is null, and keys are text."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "item"):  # numpy's
        value = value.item()
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
        command (`str`, *optional*): The command that makes the whole again, for the page.
        times (`dict`, *optional*): Everything that differs between two equal runs; nothing else may.
    """
    merged: dict[tuple, dict] = {}
    for one in [*(earlier["entries"] if earlier else []), *entries]:
        same_label = (other for other in merged.values() if other["model"]["label"] == one["model"]["label"])
        known = next(same_label, one)
        if known["model"]["hashes"] != one["model"]["hashes"]:
            raise ValueError(
                f"The model {one['model']['label']!r} of results.json is not the one that was measured now: "
                f"{changed(known['model'], one['model'])}. Take another --output_dir for it."
            )
        merged[one["model"]["label"], one["task"]["name"], frozen(settings_of(one)), data_of(one)] = one
    numbered = number_tables(list(merged.values()))
    return {
        "schema": SCHEMA,
        "command": command,
        "status": "partial" if any(one["status"] == "partial" for one in numbered) else "complete",
        "entries": numbered,
        "differences": [
            difference
            for table in grouped(numbered, [])
            for task in table.tasks
            for difference in compared(table, task)
        ],
        "times": {**(earlier["times"] if earlier else {}), **(times or {})},
    }


def changed(old: dict, new: dict) -> str:
    """Returns what differs between two records of a model, in words."""
    was, now = old["hashes"], new["hashes"]
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return "; ".join(f"{name} was {was.get(name)}, and is {now.get(name)}" for name in names)


# Tables


def settings_of(entry: dict) -> dict[str, Any]:
    """Returns the settings that two numbers must share to stand in one table; the seed may differ."""
    return {
        "backend": entry["backend"]["name"],
        "prompt_style": entry["prompt"]["style"],
        "thinking": entry["prompt"]["thinking"],
        **{name: entry["sampling"][name] for name in ("n", "temperature", "top_p", "top_k", "max_new_tokens")},
    }


def data_of(entry: dict) -> tuple:
    """Returns what two numbers of a task must share beside the settings: its data, and who grades the answers."""
    task = entry["task"]
    return task["sha256"], task["problems"], task["kind"], task["answer"], frozen(entry["grader"])


def frozen(settings: dict[str, Any]) -> str:
    """Returns settings as a key."""
    return json.dumps(settings, sort_keys=True)


def number_tables(entries: list[dict]) -> list[dict]:
    """Returns entries with the number of their table. Other data under the name of a task make another table."""
    data: dict[tuple, list[tuple]] = {}  # of a task with some settings
    numbers: dict[tuple[str, int], int] = {}
    numbered = []
    for one in entries:
        known = data.setdefault((frozen(settings_of(one)), one["task"]["name"]), [])
        if data_of(one) not in known:
            known.append(data_of(one))
        table = (frozen(settings_of(one)), known.index(data_of(one)))
        numbered.append({**one, "table": numbers.setdefault(table, len(numbers) + 1)})
    return numbered


def grouped(entries: list[dict], differences: list[dict]) -> list[Table]:
    """Returns numbered entries as tables, ordered by task and by model as each came first."""
    models = list(dict.fromkeys(entry["model"]["label"] for entry in entries))
    tasks = list(dict.fromkeys(entry["task"]["name"] for entry in entries))
    ordered = sorted(entries, key=lambda one: (tasks.index(one["task"]["name"]), models.index(one["model"]["label"])))
    return [
        Table(
            number,
            settings_of(next(one for one in ordered if one["table"] == number)),
            [one for one in ordered if one["table"] == number],
            [one for one in differences if one["table"] == number],
        )
        for number in sorted({one["table"] for one in entries})
    ]


def tables(results: dict) -> list[Table]:
    """Returns the tables of results; the page and the terminal show them one after the other."""
    return grouped(results["entries"], results["differences"])


# Differences


def compared(table: Table, task: str) -> list[dict]:
    """Returns the differences to the first model on one task; `build` makes them anew whenever a model is added."""
    from .summary import compare_all

    entries = table.of_task(task)
    if len(entries) < 2:
        return []
    found = compare_all({entry["model"]["label"]: counted(entry) for entry in entries})
    return [
        {
            "table": table.number,
            "task": task,
            **{name: plain(getattr(one, name)) for name in DIFFERENCE if name not in ("table", "task", "verdict")},
            "verdict": verdict(one),
        }
        for one in found
    ]


def verdict(difference: Difference) -> str:
    """Returns which of `VERDICTS` a difference has: of the second model, seen from the first."""
    p = plain(difference.p_holm)
    if p is None or None in plain(difference.interval):
        return "none"
    return "unclear" if p > LEVEL else "higher" if difference.difference > 0 else "lower"


def counted(entry: dict) -> list[Sample]:
    """
    Returns as many right and wrong samples of each problem as the rows count. Differences need no more of a sample,
    so that a model of an earlier call is compared without its texts.
    """
    from .samples import Sample

    return [
        Sample(
            task=entry["task"]["name"],
            problem=row["id"],
            sample=number,
            seed=0,
            text="",
            answer=None,
            verdict="right" if number <= row["right"] else "wrong",
            stop="stop",
            tokens=0,
            seconds=None,
        )
        for row in entry["rows"]
        for number in range(1, row["n"] + 1)
    ]


# Files


def write(results: dict, path: Path) -> None:
    """Writes results.json, whole or not at all; `run` calls it after every task."""
    wrong = next(faults(results, RESULTS), None)
    if wrong:  # of whoever made an entry; nobody could read it again
        raise TypeError(f"These results are not of {SCHEMA}: {wrong}.")
    write_json(path, results)


def read(path: Path) -> dict:
    """Returns what a results.json holds. Raises `ValueError` where it is of another version or no results at all."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no results.json: it cannot be read as JSON ({error}).") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has the schema {schema!r}, and this version of fire_opd_trl reads {SCHEMA!r}. Read it with the "
            "version that wrote it, or evaluate into another --output_dir."
        )
    wrong = next(faults(results, RESULTS), None)
    if wrong:
        raise ValueError(f"{path} says {SCHEMA!r}, but {wrong}. It was changed by hand or cut off: evaluate again.")
    return results


def faults(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Yields what is wrong with a value, one sentence without a full stop each; nothing if it has the shape."""
    at = where.lstrip(".") or "the whole"
    if isinstance(shape, dict) and list(shape) == [str]:
        if not isinstance(value, dict):
            yield f"{at} is {value!r}, and should be an object"
        else:
            for key, one in value.items():
                yield from faults(one, shape[str], f"{where}.{key}")
    elif isinstance(shape, dict):
        missing = [key for key in shape if not isinstance(value, dict) or key not in value]
        if missing:
            yield f"{at} lacks {', '.join(missing)}"
        else:
            for key, one in shape.items():
                yield from faults(value[key], one, f"{where}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{at} is {value!r}, and should be a list"
        else:
            for number, one in enumerate(value):
                yield from faults(one, shape[0], f"{where}[{number}]")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        names = [kind.__name__ for kind in (shape if isinstance(shape, tuple) else (shape,))]
        yield f"{at} is {value!r}, and should be of type {' or '.join(names)}"
