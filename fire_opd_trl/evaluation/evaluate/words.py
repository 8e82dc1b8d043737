"""What the numbers of an evaluation say, and what they do not say, in sentences: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..templates import number
from .results import Table


FEW_PROBLEMS = 50  # below, the intervals are wide and rest on an approximation
OFTEN_CUT = 0.05  # of the samples: more may hide an ability that longer answers would show
MOSTLY_WITHOUT = 0.5  # of the samples have no answer and were not cut: then the prompt's form decides the number
MOST_SENTENCES = 6  # about single differences; beyond, they are gathered
MOST_NAMES = 3  # in one sentence
KINDS = {"higher": "above", "lower": "below"}
VERDICTS = {**KINDS, "unclear": "not distinguishable", "none": "no interval"}


@dataclass(frozen=True)
class Grid:
    """
    A table in cells, as the page and the terminal show it.

    Attributes:
        title (`str`): What stands above it.
        head (`list[str]`): The names of its columns: first the model and the task.
        names (`int`): How many columns, from the left, are names.
        lines (`list`): Each has a kind, which is the status of a number or the verdict of a difference, and its cells.
    """

    title: str
    head: list[str]
    names: int
    lines: list[tuple[str, list[str]]]


def grids(table: Table, ks: Iterable[int]) -> list[Grid]:
    """Returns the numbers of a table, with pass@k for some k, and the differences if there are any."""
    n = table.settings["n"]
    passes = [f"pass@{k}" for k in ks]
    head = ["model", "task", f"Avg@{n}, %", "95 % interval", *passes, f"maj@{n}", "cut off", "no answer", "tokens"]
    found = [Grid("Accuracy", head, 2, [(entry["status"], numbers(entry, ks)) for entry in table.entries])]
    if table.differences:
        many = len({one["second"] for one in table.differences}) > 1
        title = "Differences in points, paired over the problems" + ("; verdicts after Holm's correction" * many)
        head = ["model", "task", "against", "difference", "95 % interval", "verdict"]
        found.append(Grid(title, head, 3, [(one["verdict"], compared(one, table)) for one in table.differences]))
    return found


def numbers(entry: dict, ks: Iterable[int]) -> list[str]:
    """Returns the cells of one model on one task."""
    of = entry["summary"]
    return [
        entry["model"]["label"],
        entry["task"]["name"],
        percent(of["avg"]),
        interval(of["interval"]) or "–",
        *(percent(of["pass_at"].get(str(k))) for k in ks),
        percent(of["maj_at_n"]),
        *("–" if of[name] is None else f"{percent(of[name])} %" for name in ("truncated", "no_answer")),
        number(of["mean_tokens"], "{:,.0f}"),
    ]


def compared(one: dict, table: Table) -> list[str]:
    """Returns the cells of a difference; one over some of the problems says so."""
    p = one["p_holm"] if one["p_holm"] is not None else one["p"]
    verdict = VERDICTS[one["verdict"]]
    if p is not None:
        verdict += ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    entry = table.of_task(one["task"])[0]
    if one["problems"] != entry["task"]["problems"]:
        verdict += f", {over(one['problems'], entry)}"
    ends = interval(one["interval"], points) or "–"
    return [one["second"], one["task"], one["first"], points(one["difference"]), ends, verdict]


def percent(share: float | None) -> str:
    """Returns a share as a number of percent, or a dash."""
    return number(share, "{:.1%}").rstrip("%")


def points(share: float | None) -> str:
    """Returns a difference of shares as points with their sign, or a dash."""
    text = number(share, "{:+.1%}").rstrip("%")
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(ends: list[float | None], form=percent) -> str:
    """Returns the two ends of an interval, or nothing where there is none."""
    return "" if len(ends) != 2 or None in ends else f"[{form(ends[0])}, {form(ends[1])}]"


def settings_in_words(settings: dict[str, Any]) -> str:
    """Returns the heading of a table: what all its numbers share."""
    n, top_k = settings["n"], settings["top_k"]
    return (
        f"{settings['backend']}, prompt style {settings['prompt_style']}, "
        f"thinking {'on' if settings['thinking'] else 'off'}; {counted(n, 'sample')} a problem at "
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, "
        f"top-k {'off' if top_k is None else top_k}, at most {settings['max_new_tokens']:,} new tokens"
    )


def differing(tables: list[Table]) -> str:
    """Returns why there are several tables, or nothing where there is one."""
    if len(tables) < 2:
        return ""
    what = [in_words(name) for name in names_that_differ(tables)] or ["data or grader"]
    return f"There are {len(tables)} tables, since numbers with another {listed(what, 'or')} may not be compared."


def heading(table: Table, tables: list[Table]) -> str:
    """Returns what stands above one of several tables: its number, and what tells it from the others."""
    what = ", ".join(f"{in_words(name)} {table.settings[name]}" for name in names_that_differ(tables))
    return f"Table {table.number}: {what}" if what else f"Table {table.number}"


def names_that_differ(tables: list[Table]) -> list[str]:
    """Returns the settings that keep tables apart. Two tasks may have prompt styles of their own; one task may not."""
    styles = {(one["task"]["name"], one["prompt"]["style"]) for table in tables for one in table.entries}
    differ = [name for name in tables[0].settings if len({str(table.settings[name]) for table in tables}) > 1]
    return [name for name in differ if name != "prompt_style" or len(styles) > len({task for task, _ in styles})]


def in_words(name: str) -> str:
    """Returns the name of a setting in a sentence."""
    words = {"max_new_tokens": "limit of new tokens", "prompt_style": "prompt style", "n": "number of samples"}
    return words.get(name, name.replace("_", "-"))


def listed(words: list[str], last: str = "and") -> str:
    """Returns words with commas, and with `and` or another word before the last."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def counted(count: int, word: str) -> str:
    """Returns a number of things."""
    return f"{count} {word}{'s' * (count != 1)}"


def size(problems: int, *entries: dict) -> str:
    """Returns how many problems and samples a number of some entries is over."""
    of, n = over(problems, entries[0]), counted(entries[0]["sampling"]["n"], "sample")
    return f"{of} × {'up to ' * any(one['status'] == 'partial' for one in entries)}{n}"


def over(problems: int, entry: dict) -> str:
    """Returns a number of problems, and of how many they are if not of all."""
    asked = counted(entry["task"]["problems"], "problem")
    return asked if problems == entry["task"]["problems"] else f"{problems} of {asked}"


def name_of(entry: dict) -> str:
    """Returns which model and which task a number is of."""
    return f"{entry['model']['label']} on {entry['task']['name']}"


def what_can_be_said(table: Table) -> list[str]:
    """Returns the sentences that the numbers of a table allow, the clearest first."""
    if not table.differences:
        return [of_one_model(entry) for entry in table.entries]
    clear = [one for one in table.differences if one["verdict"] in KINDS]
    rest = [one for one in table.differences if one["verdict"] not in KINDS]
    if len(table.differences) <= MOST_SENTENCES:
        return [of_difference(table, one) for one in [*clear, *rest]]
    pairs = dict.fromkeys((one["first"], one["second"]) for one in table.differences)
    return [gathered(table, first, second) for first, second in pairs]


def of_one_model(entry: dict) -> str:
    """Returns the sentence about a model that nothing is compared with."""
    summary, ends = entry["summary"], interval(entry["summary"]["interval"])
    asked = size(summary["problems"], entry)
    return (
        f"{entry['model']['label']} answers {percent(summary['avg'])} % of {entry['task']['name']} rightly "
        f"(Avg@{summary['n']}), {f'95 % interval {ends}' if ends else 'without an interval'}, {asked}."
    )


def of_difference(table: Table, one: dict) -> str:
    """Returns the sentence about one difference."""
    first, second, task = one["first"], one["second"], one["task"]
    asked = size(one["problems"], *(of for of in table.of_task(task) if of["model"]["label"] in (first, second)))
    if one["difference"] is None:
        return f"{first} and {second} have no problem of {task} in common: nothing can be said."
    far = f"{abs(100 * one['difference']):.1f} points"
    side = "above" if one["difference"] >= 0 else "below"
    ends = interval(one["interval"], points)
    if one["verdict"] in KINDS:
        return f"{second} is {far} {side} {first} on {task}, 95 % interval {ends}, {asked}."
    if one["verdict"] == "none":
        return f"{second} is {far} {side} {first} on {task}, without an interval: {asked} are too few."
    apart = f"{second} is {far} {side}" if far != "0.0 points" else "they are 0.0 points apart"
    return f"{second} and {first} are not distinguishable on {task}: {apart}, 95 % interval {ends}, {asked}."


def gathered(table: Table, first: str, second: str) -> str:
    """Returns one sentence about all differences of one model to another."""
    ours = [one for one in table.differences if (one["first"], one["second"]) == (first, second)]
    parts = []
    for verdict, words in (
        *((kind, f"distinguishably {word}") for kind, word in KINDS.items()),
        ("unclear", "not distinguishable"),
        ("none", "no interval"),
    ):
        tasks = [f"{one['task']} ({points(one['difference'])})" for one in ours if one["verdict"] == verdict]
        if tasks:
            parts.append(f"{words} on {listed(tasks)}")
    return f"{second} against {first}: {'; '.join(parts)}."


def what_cannot_be_said(table: Table) -> list[str]:
    """Returns what a reader might conclude from a table, and should not."""
    sentences = []
    if not table.differences:
        sentences.append("One model alone says nothing about progress: evaluate the model that it came from, too.")
    unclear = [one for one in table.differences if one["verdict"] == "unclear"]
    if unclear:
        width, task = max((one["interval"][1] - one["interval"][0], one["task"]) for one in unclear)
        sentences.append(
            f"“Not distinguishable” does not mean equal: on {task}, a difference of less than about "
            f"{100 * width / 2:.1f} points cannot be seen with these problems and samples."
        )
    sentences.append(
        "The intervals say how far the numbers would move with other problems of the same kind and other samples. "
        "They say nothing about another seed of the training, which may give a better or a worse model."
    )
    small = [task for task in table.tasks if table.of_task(task)[0]["task"]["problems"] < FEW_PROBLEMS]
    if small:
        which = listed(small) if len(small) <= MOST_NAMES else f"{len(small)} of {len(table.tasks)} tasks"
        sentences.append(
            f"{which} {'has' if len(small) == 1 else 'have'} fewer than {FEW_PROBLEMS} problems: an interval from so "
            "few is wide, and more samples of each problem hardly help; more problems do."
        )
    cut = [entry for entry in table.entries if (entry["summary"]["truncated"] or 0) > OFTEN_CUT]
    if cut:
        most = sorted(cut, key=lambda one: -one["summary"]["truncated"])[:MOST_NAMES]
        names = [f"{name_of(one)} {100 * one['summary']['truncated']:.0f} %" for one in most]
        sentences.append(
            f"Many samples were cut off at {table.settings['max_new_tokens']:,} tokens; without an answer before that "
            f"they count as wrong. {'Cut off' if len(most) == len(cut) else 'Most often cut off'}: {listed(names)}. A "
            "higher limit may change the numbers and their order."
        )
    return sentences


def warnings(table: Table) -> list[str]:
    """Returns what is wrong with a table's numbers: samples that are missing, without an answer, or not graded."""
    sentences = []
    for entry in table.entries:
        summary, name = entry["summary"], name_of(entry)
        asked = entry["task"]["problems"] * entry["sampling"]["n"]
        if entry["status"] == "partial":
            over_others = f", and all its numbers are over the others ({over(summary['problems'], entry)})"
            some = over_others if summary["missing"] < asked else ""
            sentences.append(f"{name} is partial: {summary['missing']} of {asked} samples are missing{some}.")
        if (summary["no_answer"] or 0) - (summary["truncated"] or 0) >= MOSTLY_WITHOUT:
            sentences.append(
                f"{name}: {percent(summary['no_answer'])} % of the samples have no answer in the form that the task "
                "asks for, and count as wrong. Look at some samples, and at --prompt_style."
            )
        for count, what in (
            (summary["timeouts"], "took the grader longer than its limit"),
            (summary["deaths"], "killed the grader"),
        ):
            if count:
                sentences.append(
                    f"{name}: {counted(count, 'answer')} of {asked} {what}, and count{'s' * (count == 1)} as wrong."
                )
    return sentences


def notes(table: Table) -> list[str]:
    """Returns what differs inside a table, although its numbers may be compared."""
    known = [
        {
            "seed differs": one["sampling"]["seed"],
            "dtype differs": one["backend"]["dtype"],
            "device differs": one["backend"]["device"],
            "versions of the backend differ": one["backend"]["versions"],
            "versions of the packages differ": one["versions"],
        }
        for one in table.entries
    ]
    return [f"The {what} within this table." for what in known[0] if any(one[what] != known[0][what] for one in known)]
