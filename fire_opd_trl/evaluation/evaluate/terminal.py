"""The results of an evaluation as plain text, for the terminal and for logs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ..inspect.visible import visible
from . import words
from .results import tables


WIDTH = 100
GAP = "  "
MANY_ROWS = 8  # from here on, there is an empty line between two tasks
FEWEST = 8  # signs of a name that is shortened


def in_terminal(results: dict) -> str:
    """Returns results as text of at most 100 columns; `fire-opd evaluate` prints it at the end."""
    found = tables(results)
    parts = [wrapped(words.differing(found))]
    for table in found:
        parts.append(wrapped(words.settings_in_words(table.settings)))
        parts += [[*wrapped(grid.title), *columns(grid)] for grid in words.grids(table, [table.settings["n"]])]
        wrong = [*words.warnings(table), *words.notes(table)]
        parts.append([line for sentence in wrong for line in wrapped(sentence, "! ")])
    if results["status"] == "partial":
        parts.append(["PARTIAL: samples are missing. The same command goes on where it was."])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def columns(grid: words.Grid) -> Iterator[str]:
    """Yields the lines of a table: names are shortened if there is no room, and a partial number has a star."""
    rows = [[visible(cell) for cell in cells] for _, cells in grid.lines]
    for (kind, _), row in zip(grid.lines, rows, strict=True):
        row[2] += "*" if kind == "partial" else ""
    widths = [max(len(cell) for cell in column) for column in zip(grid.head, *rows, strict=True)]
    while sum(widths) + len(GAP) * (len(widths) - 1) > WIDTH and max(widths[: grid.names]) > FEWEST:
        widths[widths.index(max(widths[: grid.names]))] -= 1
    task = None
    for row in [grid.head, *rows]:
        if len(rows) > MANY_ROWS and task not in (None, grid.head[1], row[1]):
            yield ""  # between two tasks
        task = row[1]
        placed = [
            shortened(cell, width).ljust(width) if index < grid.names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield GAP.join(placed).rstrip()
    if any(kind == "partial" for kind, _ in grid.lines):
        yield "* partial: over the samples that there are"


def shortened(name: str, longest: int) -> str:
    """Returns a name of at most so many signs; what is left out is in the middle, as names differ at their ends."""
    if len(name) <= longest:
        return name
    end = (longest - 1) * 2 // 3
    return f"{name[: longest - 1 - end]}…{name[len(name) - end :]}"


def wrapped(sentence: str, mark: str = "") -> list[str]:
    """Returns a sentence as lines."""
    return textwrap.wrap(visible(sentence), WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))
