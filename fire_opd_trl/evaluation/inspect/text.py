"""The report in a terminal, for where no browser is near: tables, and a few trajectories with their tokens shaded."""

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .visible import shortened, visible


KEPT, DROPPED = 3, 2  # trajectories that are shown
PROMPT_LINES, ANSWER_LINES, HEAVIEST = 4, 8, 10
LONGEST = 200  # signs of a token
SHADES = (0.75, 0.9, 0.98)  # of the shown tokens; what is above one of them is shaded one step more
COLOURS = ("", "\x1b[38;5;16;48;5;223m", "\x1b[38;5;16;48;5;215m", "\x1b[38;5;16;48;5;203m")
PLAIN, BOLD, FAINT = "\x1b[0m", "\x1b[1m", "\x1b[2m"
MARKS = (("", ""), ("", ""), ("‹", "›"), ("«", "»"))
WHY = {
    "filter": "the filter ranked it too low",
    "empty": "it has no token to train on",
    "nonfinite_teacher": "the teacher's values are not finite",
}


def in_terminal(report: dict[str, Any], colours: bool = False, width: int = 80) -> str:
    """
    Returns a report as text; `fire-opd inspect --text` prints it.

    Args:
        report (`dict`): From `report_of`.
        colours (`bool`): Whether the terminal has colours; without, the heaviest tokens have marks around them.
        width (`int`): How many signs a line may have.
    """
    printer = Printer(colours, width)
    lines = [line for run in report["runs"] for line in printer.run(run)]
    if len(report["runs"]) == 2:
        lines += printer.side_by_side(report["runs"])
    return "\n".join(lines) + "\n"


class Printer:
    """Makes the lines of a report, for a width, with or without colours."""

    def __init__(self, colours: bool, width: int):
        self.colours, self.width = colours, max(width, 40)

    def run(self, run: dict[str, Any]) -> Iterator[str]:
        """Yields the lines of one run."""
        yield self.styled(visible(run["name"]), BOLD)
        yield from self.paragraph(run["about"])
        indent = min(16, max((len(label) for label, _ in run["facts"]), default=0) + 2)
        for label, text in run["facts"]:
            head = f"{label:<{indent - 2}}  " if len(label) <= indent - 2 else f"{label}{':' * (label[-1] != '?')} "
            yield from textwrap.wrap(visible(head + text), self.width, subsequent_indent=" " * indent)
        if run["trained"]:
            yield from self.section("What the watchdogs said")
            yield from self.watchdogs(run["watchdogs"], run["unwatched"])
        if run["curves"]:
            once = all(len(curve["steps"]) == 1 for curve in run["curves"])
            yield from self.section("Metrics" if once else "Metrics, first and last")
            rows = [[curve["title"], *ends_of(curve)[once:], curve["unit"]] for curve in run["curves"]]
            yield from self.table(["", "value" if once else "first", *["last"][once:], ""], rows)
        figures = {figure["id"]: figure for figure in run["figures"]}
        for id, most in (("weight_by_type", None), ("heaviest_tokens", HEAVIEST), ("advantage_by_type", None)):
            if id in figures:
                yield from self.section(figures[id]["title"])
                yield from self.bars(figures[id], most)
        if run["trajectories"]:
            yield from self.section("Trajectories")
            yield from self.trajectories(run["trajectories"], run["left_out"])
        yield ""

    # Parts

    def section(self, title: str) -> list[str]:
        """Returns the lines with which a part begins."""
        return ["", self.styled(title, BOLD)]

    def styled(self, text: str, style: str) -> str:
        """Returns a text in a style, if the terminal has any."""
        return f"{style}{text}{PLAIN}" if self.colours and text else text

    def paragraph(self, text: str, indent: str = "") -> list[str]:
        """Returns the lines of a sentence or more."""
        return textwrap.wrap(visible(text), self.width, initial_indent=indent, subsequent_indent=indent)

    def watchdogs(self, warnings: Sequence[dict[str, Any]], unwatched: str) -> Iterator[str]:
        """Yields what the watchdogs said: each one once, the last time, with how often; or why they said nothing."""
        if not warnings:
            yield from self.paragraph(unwatched or "Nothing.")
        for name in dict.fromkeys(warning["watchdog"] for warning in warnings):
            times = [warning for warning in warnings if warning["watchdog"] == name]
            last = times[-1]
            often = f", {len(times)} times from step {times[0]['step']}" if len(times) > 1 else ""
            yield from self.paragraph(f"step {last['step']}, {name}{often}: {last['says']}")
            yield from self.paragraph(f"What to do: {last['remedy']}", "  ")

    def table(self, head: list[str], rows: list[list[str]]) -> Iterator[str]:
        """Yields a table: the first and a last column without a heading on the left, numbers on the right."""
        rows = [[visible(cell) for cell in row] for row in rows]
        wide = [max(cells(row[number]) for row in [head, *rows]) for number in range(len(head))]
        wide[0] = min(wide[0], max(16, self.width - sum(wide[1:]) - 2 * len(wide)))
        for row in [head, *rows]:
            texts = [padded(row[0], wide[0])]
            texts += [padded(row[n], -wide[n] if head[n] else wide[n]) for n in range(1, len(head))]
            yield self.styled("  ".join(texts).rstrip(), FAINT) if row is head else "  ".join(texts).rstrip()

    def bars(self, figure: dict[str, Any], most: int | None) -> Iterator[str]:
        """Yields a figure of bars as a table, with the numbers of tokens."""
        if figure["kind"] != "bars":
            yield from self.paragraph(figure["note"])
            return
        head = ["", *(series["name"] for series in figure["series"]), "tokens"]
        form = "{:.1f} %" if figure["y"].endswith("%") else "{:.3f}"
        columns = [[form.format(value) for value in series["values"]] for series in figure["series"]]
        counts = [f"{count:,}" for count in figure["series"][0]["counts"]]
        rows = [list(row) for row in zip(figure["labels"], *columns, counts, strict=True)]
        yield from self.table(head, rows[:most])

    def side_by_side(self, runs: list[dict[str, Any]]) -> Iterator[str]:
        """Yields the last values of the metrics that two runs share."""
        mine, other = ({curve["key"]: curve for curve in run["curves"]} for run in runs)
        yield from self.section("Side by side: the last values")
        names = [shortened(visible(run["name"]), 18) for run in runs]
        rows = [
            [mine[key]["title"], *(ends_of(run[key])[1] for run in (mine, other)), mine[key]["unit"]]
            for key in mine
            if key in other
        ]
        yield from self.table(["", *names, ""], rows)

    # Trajectories

    def trajectories(self, rows: list[dict[str, Any]], left_out: int) -> Iterator[str]:
        """Yields the last kept trajectories, with their tokens shaded, and dropped ones of each reason."""
        kept = [row for row in rows if row["kept"]][-KEPT:]
        reasons = {row["dropped_because"]: row for row in rows if not row["kept"]}  # the last one of each
        dropped = [reasons[why] for why in dict.fromkeys((*WHY, *reasons)) if why in reasons][:DROPPED]
        name, values = shade_of(kept)
        if name:
            yield from self.paragraph(
                f"The larger a token's {name}, the redder it is."
                if self.colours
                else f"‹token› has one of the largest tenth of {name}s shown here, «token» of the largest fiftieth."
            )
        bounds = np.quantile(values, SHADES) if len(values) else np.zeros(0)
        for row in [*kept, *dropped]:
            yield ""
            yield from self.paragraph(title_of(row))
            prompt = self.wrapped((word, 0) for word in re.split(r"(?<=\s)(?=\S)", row["prompt"]))
            yield from (self.styled(line, FAINT) for line in last_of(list(prompt), PROMPT_LINES))
            levels = np.searchsorted(bounds, sizes_of(row, name) if row["kept"] else np.zeros(len(row["tokens"])))
            answer = self.wrapped(zip(row["tokens"], levels.tolist(), strict=True))
            yield from first_of(list(answer), ANSWER_LINES)
        rest = len(rows) + left_out - len(kept) - len(dropped)
        if rest:
            yield ""
            yield from self.paragraph(f"{rest:,} more were recorded: the page shows them, without --text.")

    def wrapped(self, tokens: Iterable[tuple[str, int]]) -> Iterator[str]:
        """Yields the lines of shaded tokens; a line also ends where the text has a line end."""
        line, room = "", self.width
        for token, level in tokens:
            more = f"… ({len(token):,} signs)" if len(token) > LONGEST else ""
            text = visible(token[:LONGEST]) + more
            before, after = ("", "") if self.colours else MARKS[level]
            for piece in pieces_of(before + text + after, self.width):
                if cells(piece) > room:
                    yield line
                    line, room = "", self.width
                line += self.styled(piece, COLOURS[level]) if COLOURS[level] else piece
                room -= cells(piece)
            if text.endswith("⏎"):
                yield line
                line, room = "", self.width
        if line:
            yield line


def shade_of(rows: list[dict[str, Any]]) -> tuple[str, np.ndarray]:
    """Returns what tokens are shaded by, and its values: their weights, or where these are equal their advantages."""
    for name in ("weight", "advantage"):
        found = np.concatenate([sizes_of(row, name)[np.array(row["trains"], bool)] for row in rows] or [np.zeros(0)])
        if len(found) and found.max() > found.min():
            return name, found
    return "", np.zeros(0)


def sizes_of(row: dict[str, Any], name: str) -> np.ndarray:
    """Returns how large a number of each token of a trajectory is; 0 where it is not finite or not known."""
    numbers = row.get(name) or [0.0] * len(row["tokens"])
    return np.abs(np.nan_to_num(np.array(numbers, float), posinf=0, neginf=0))


def title_of(row: dict[str, Any]) -> str:
    """Returns the first line about a trajectory: whether it was kept, and why not."""
    ended = "finished" if row["finished"] else "truncated" if row["truncated"] else "not finished"
    parts = [
        "kept" if row["kept"] else f"DROPPED, since {WHY.get(row['dropped_because'], row['dropped_because'])}",
        "" if row["score"] is None else f"score {row['score']:.4g}",
        "" if row["threshold"] is None else f"cut {row['threshold']:.4g}",
        f"{len(row['tokens']):,} token{'s' * (len(row['tokens']) != 1)}",
        f"{row['trains'].count(False):,} of them by a tool" if {*row["trains"]} == {True, False} else "",
        ended,
        "looped" if row["looped"] else "",
        "" if row["reward"] is None else f"reward {row['reward']:g}",
        "" if row["teacher"] == "teacher" else f"teacher {row['teacher']}",
    ]
    return f"step {row['step']}, row {row['row']}: {', '.join(filter(None, parts))}"


def ends_of(curve: dict[str, Any]) -> list[str]:
    """Returns the first and the last value of a curve."""
    values = [value for value in curve["values"] if value is not None]
    return [f"{values[place]:.4g}" for place in (0, -1)]


# Signs


def cells(text: str) -> int:
    """Returns how wide a terminal shows a text: many Asian signs and emoji take two places, marks none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def padded(text: str, width: int) -> str:
    """Returns a text of so many places, cut or filled on the right; on the left for a negative width."""
    while cells(text) > abs(width):
        text = f"{text[:-2]}…"
    space = " " * (abs(width) - cells(text))
    return space + text if width < 0 else text + space


def pieces_of(text: str, width: int) -> Iterator[str]:
    """Yields a text in pieces that fit into a line."""
    while cells(text) > width:
        piece = text[:width] if cells(text[:width]) <= width else text[: width // 2]
        yield piece
        text = text[len(piece) :]
    yield text


def first_of(lines: list[str], most: int) -> list[str]:
    """Returns the first lines of many, and how many more there are."""
    return lines if len(lines) <= most else [*lines[: most - 1], f"... {len(lines) - most + 1} more lines"]


def last_of(lines: list[str], most: int) -> list[str]:
    """Returns the last lines of many, and how many stand before: of a chat's prompt, the question comes last."""
    return lines if len(lines) <= most else [f"... {len(lines) - most + 1} lines before", *lines[1 - most :]]
