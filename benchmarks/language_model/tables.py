"""The tables of docs/language_model/README.md, from results.json: no number in them is typed."""

import re
from collections.abc import Callable, Sequence
from typing import Any


MARKED = re.compile(r"(<!-- table: ([\w ]+?)(?:, of the run (\w+))? -->\n).*?(\n?<!-- end -->)", re.DOTALL)
FEWEST = 10  # answers: of fewer, the standard error of a mean is itself a guess


def filled_in(text: str, results: dict[str, Any]) -> str:
    """
    Returns a page with each of its tables written anew: all between `<!-- table: NAME, of the run RUN -->` and
    `<!-- end -->`. A table that is of no single run has no name of one.
    """

    def anew(found: re.Match) -> str:
        part = results["runs"].get(found[3]) if found[3] else results
        return found[1] + (TABLES[found[2]](part) if part else "(not run)") + "\n<!-- end -->"

    return MARKED.sub(anew, text)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: float | None, form: str = ".2f") -> str:
    """Returns a number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def between(estimate: Sequence[float | None], form: str = ".2f", answers: int = FEWEST) -> str:
    """Returns `1.23 [1.20, 1.26]`: a mean with its 95 % interval, without one if it is over too few answers."""
    mean, low, high = estimate
    interval = "" if low is None or answers < FEWEST else f" [{number(low, form)}, {number(high, form)}]"
    return number(mean, form) + interval


def percent(estimate: Sequence[float | None], answers: int = FEWEST) -> str:
    """Returns `12.3 [11.0, 13.6]`: a share with its interval, in %, as far as shares go."""
    return between([None if value is None else 100 * min(max(value, 0.0), 1.0) for value in estimate], ".1f", answers)


def shown(token: str) -> str:
    """Returns a token as code in a table, with its spaces and line breaks to be seen."""
    text = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣").replace("|", "∣").replace("`", "ˋ")
    return f"`{text}`"


def run_table(run: dict[str, Any]) -> str:
    """How a run went, in means of some windows."""
    logs = run["logs"]
    columns = {
        "reward": ("reward", ".2f"), "KL to the teacher": ("fire/reverse_kl", ".3f"), "entropy": ("entropy", ".2f"),
        "length": ("completions/mean_length", ".0f"), "cut": ("completions/clipped_ratio", ".0%"),
        "looped": ("fire/looped_ratio", ".0%"), "effective share of tokens": ("fire/weight_ess", ".3f"),
        "gap at the end token": ("fire/terminal_gap", ".2f"),
    }  # fmt: skip
    size = min(6, len(logs))
    parts = [logs[begin : begin + size] for begin in range(0, len(logs), size)]

    def mean(part: list[dict[str, Any]], key: str) -> float | None:
        values = [log[key] for log in part if key in log]
        return sum(values) / len(values) if values else None

    rows = [
        [
            f"{part[0]['step']} to {part[-1]['step']}",
            *(number(mean(part, key), form) for key, form in columns.values()),
        ]
        for part in parts
    ]
    return table(["windows", *columns], rows)


def accuracy_table(results: dict[str, Any]) -> str:
    """What each model answers right."""
    models, names = (
        results["accuracy"],
        {"student": "student before", "trained": "student after", "teacher": "teacher"},
    )
    if not models:
        return "(not run)"
    tasks = sorted({task for shares in models.values() for task in shares})
    rows = [
        [name, *(f"{percent(models[model][task]['right'])} of {models[model][task]['problems']}" for task in tasks)]
        for model, name in names.items()
        if model in models
    ]
    return table(["right answers, %, one sample each", *(f"`{task}`" for task in tasks)], rows)


def type_table(run: dict[str, Any]) -> str:
    """The paper's Figure 5 with counts: which types of token are heavy."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "tokens": lambda one: f"{one['tokens']:,}",
        "% of all": lambda one: number(100 * one["of all"], ".1f"),
        "mean weight": lambda one: between(one["weight"], answers=one["answers"]),
        "% of them heavy": lambda one: percent(one["heavy"], one["answers"]),
        "by place alone": lambda one: number(100 * one["heavy by place alone"], ".1f"),
        "by student entropy": lambda one: number(100 * one["top tenth by"]["student_entropy"], ".1f"),
        "student entropy": lambda one: number(one["student entropy"]),
        "teacher entropy": lambda one: number(one["teacher entropy"]),
        "% of all weight": lambda one: number(100 * one["of all weight"], ".1f"),
        "% of all abs. advantage": lambda one: number(100 * one["of all advantage"], ".1f"),
    }
    rows = [[name, *(cell(one) for cell in columns.values())] for name, one in run["types"].items()]
    return table(["type of token", *columns], rows)


def start_table(run: dict[str, Any]) -> str:
    """The same for the places where it is decided what comes next."""
    rows = [
        [
            name,
            f"{one['tokens']:,}",
            number(100 * one["of all"], ".1f"),
            between(one["weight"], answers=one["answers"]),
            percent(one["heavy"], one["answers"]),
            number(100 * one["top tenth by"]["student_entropy"], ".1f"),
            number(100 * one["of all weight"], ".1f"),
        ]
        for name, one in run["sentence_starts"].items()
    ]
    head = ["tokens", "number", "% of all", "mean weight", "% of them heavy", "by student entropy", "% of all weight"]
    return table(head, rows)


def claim_table(results: dict[str, Any]) -> str:
    """The paper's claim in short: how often connectives and the starts of sentences are heavy."""
    runs = {name: results["runs"][name] for name in ("untouched", "good") if name in results["runs"]}
    rows = []
    for kind, key, group in (
        ("connectives", "types", "connective or decision word"),
        ("first tokens of sentences or lines", "sentence_starts", "first of a sentence or line"),
    ):
        groups = [run[key][group] for run in runs.values()]
        rows += [
            [kind, *(f"{percent(one['heavy'])} of {one['tokens']}" for one in groups)],
            ["the same, by place alone", *(number(100 * one["heavy by place alone"], ".1f") for one in groups)],
            [
                "the same, in the top tenth by student entropy",
                *(number(100 * one["top tenth by"]["student_entropy"], ".1f") for one in groups),
            ],
        ]
    return table(["% of them heavy", *(f"`{name}`" for name in runs)], rows)


def place_table(run: dict[str, Any]) -> str:
    """The weights over the course of an answer."""
    rows = [
        [
            one["tenth"],
            f"{one['tokens']:,}",
            between(one["weight"]),
            number(100 * one["heavy"], ".1f"),
            number(one["student entropy"]),
        ]
        for one in run["places"]
    ]
    return table(["tenth of the answer", "tokens", "mean weight", "% of them heavy", "student entropy"], rows)


def token_table(run: dict[str, Any]) -> str:
    """The frequent tokens with the largest mean weights."""
    rows = [
        [
            rank,
            shown(one["token"]),
            one["type"],
            one["tokens"],
            one["answers"],
            between(one["weight"], answers=one["answers"]),
            number(100 * one["heavy"], ".0f"),
        ]
        for rank, one in enumerate(run["tokens"], 1)
    ]
    return table(["", "token", "type", "times", "answers", "mean weight", "% of them heavy"], rows)


def filter_table(run: dict[str, Any]) -> str:
    """What the filter keeps."""
    rows = [[name, one["answers"], one["kept"], percent(one["share"])] for name, one in run["filter"].items()]
    return table(["answers", "all", "kept", "kept, %"], rows)


def watchdog_table(results: dict[str, Any]) -> str:
    """Which watchdog said what, in the good run and in those made sick."""

    def said(lines: list[dict[str, Any]]) -> str:
        heard = [
            f"`{line['watchdog']}` at {line['step']} ({number(line['value'])}, limit {line['limit']:.2g})"
            for line in lines
        ]
        return ", ".join(heard) or "none"

    names = {"good": "nothing", "untouched": "the student has not learned to end its answers"}
    rows = [
        [
            name,
            names[name],
            one["logs"][-1]["step"],
            "none" if name == "good" else "`truncated`",
            said(one["watchdogs"]),
        ]
        for name, one in results["runs"].items()
        if name in names
    ]
    rows += [
        [
            name,
            one["what"],
            one["steps"] or "–",
            ", ".join(f"`{dog}`" for dog in one["expected"]),
            said(one["watchdogs"]) if one["steps"] else "not run",
        ]
        for name, one in results["sick"].items()
    ]
    return table(["run", "what is wrong", "windows", "looked for", "fired, at which window"], rows)


def cost_table(run: dict[str, Any]) -> str:
    """What metrics and records cost in a step."""
    if not run["costs"]:
        return "(not measured)"
    rows = [
        [name, number(1000 * one["seconds"], ".1f"), number(100 * one["share"], ".4f")]
        for name, one in run["costs"]["parts"].items()
    ]
    whole = [f"the step (mean of {run['costs']['steps']})", number(1000 * run["costs"]["step"], ",.0f"), "100"]
    return table(["part of a step", "ms", "% of the step"], [*rows, whole])


def factor_table(run: dict[str, Any]) -> str:
    """What the two factors of a weight are like."""
    of, places = run["factors"], ("5 %", "25 %", "median", "75 %", "95 %")
    rows = [
        [name, *(number(value) for value in of[key][:5])]
        for name, key in (
            ("teacher's confidence c", "confidence"),
            ("student's confusion u", "confusion"),
            ("weight w", "weight"),
        )
    ]
    return table(["quantile over tokens", *places], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": run_table,
    "accuracy": accuracy_table,
    "types": type_table,
    "sentence starts": start_table,
    "claim": claim_table,
    "places": place_table,
    "tokens": token_table,
    "filter": filter_table,
    "watchdogs": watchdog_table,
    "costs": cost_table,
    "factors": factor_table,
}
