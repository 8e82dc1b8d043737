"""The results of an evaluation as plain text, for the terminal and for logs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from ..inspect.visible import visible
from ..templates import number
from . import words
from .results import Table, tables


WIDTH = 100
GAP = "  "
MANY_ROWS = 8  # from here on, there is an empty line between two tasks
FEWEST = 8  # signs of a name that is shortened


def in_terminal(results: dict) -> str:
    """Returns results as text of at most 100 columns; `fire-opd evaluate` prints it at the end."""
    found = tables(results)
    lines = []
    if len(found) > 1:
        lines += [*wrapped(words.differing(found)), ""]
    for table in found:
        lines += [*of_table(table), ""]
    if results["status"] == "partial":
        lines.append("PARTIAL: samples are missing. The same command goes on where it was.")
    return "\n".join(lines).rstrip("\n") + "\n"


def of_table(table: Table) -> Iterator[str]:
    """Yields the lines of one table: its settings, the numbers, the differences, and what is wrong with them."""
    n = table.settings["n"]
    yield from wrapped(words.settings_in_words(table.settings))
    yield ""
    head = ["model", "task", f"Avg@{n}, %", f"pass@{n}", f"maj@{n}", "cut off", "no answer", "tokens"]
    yield from columns(head, [cells(entry) for entry in table.entries], names=2)
    if any(entry["status"] == "partial" for entry in table.entries):
        yield "* partial: over the samples that there are"
    for first in dict.fromkeys(one["first"] for one in table.differences):  # not all models have all tasks
        differences = [one for one in table.differences if one["first"] == first]
        many = len({one["second"] for one in differences}) > 1
        yield ""
        yield from wrapped(
            f"Differences to {visible(first)} in points: paired over the problems, 95 % intervals"
            + (", verdict after Holm's correction" if many else "")
        )
        head = ["model", "task", "difference", "interval", "verdict"]
        rows = [
            [
                one["second"],
                one["task"],
                words.points(one["difference"]),
                words.interval(one["interval"], words.points) or "–",
                words.verdict_in_words(one),
            ]
            for one in differences
        ]
        yield from columns(head, rows, names=2, left=(4,))
    for sentence in [*words.warnings(table), *words.notes(table)]:
        yield from wrapped(sentence, "! ")


def cells(entry: dict) -> list[str]:
    """Returns the line of one model on one task; a partial one has a star."""
    summary = entry["summary"]
    star = "*" if entry["status"] == "partial" else ""
    n = str(summary["n"])
    return [
        entry["model"]["label"],
        entry["task"]["name"],
        f"{words.percent(summary['avg'])} {words.interval(summary['interval'])}".rstrip() + star,
        words.percent(summary["pass_at"].get(n)),
        words.percent(summary["maj_at_n"]),
        f"{words.percent(summary['truncated'])} %",
        f"{words.percent(summary['no_answer'])} %",
        number(summary["mean_tokens"], "{:,.0f}"),
    ]


def columns(head: list[str], rows: list[list[str]], names: int, left: Sequence[int] = ()) -> Iterator[str]:
    """Yields a table: the first columns are names, which are shortened where the lines would be too long."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    over = sum(widths) + len(GAP) * (len(widths) - 1) - WIDTH
    while over > 0:
        widest = max(range(names), key=lambda index: widths[index])
        if widths[widest] <= FEWEST:
            break
        widths[widest] -= 1
        over -= 1
    for place, row in enumerate([head, *rows]):
        if len(rows) > MANY_ROWS and place > 1 and row[1] != rows[place - 2][1]:
            yield ""  # between two tasks
        placed = [
            shortened(cell, width).ljust(width) if index < names or index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield GAP.join(placed).rstrip()


def shortened(name: str, longest: int) -> str:
    """Returns a name of at most so many signs; what is left out is in the middle, as names differ at their ends."""
    if len(name) <= longest:
        return name
    end = (longest - 1) * 2 // 3
    return f"{name[: longest - 1 - end]}…{name[len(name) - end :]}"


def wrapped(sentence: str, mark: str = "") -> list[str]:
    """Returns a sentence as lines."""
    return textwrap.wrap(visible(sentence), WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))
