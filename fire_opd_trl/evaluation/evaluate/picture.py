"""The picture of an evaluation: the Avg@n of every model with its interval, and the differences to the first model."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..inspect.visible import visible
from ..style import COLORS, STYLE, VERDICTS, pyplot
from .results import Table
from .terminal import shortened


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK = "#333333"  # the first model, that all others are compared with
NARROWEST = 10.0  # points along the axis
TALL = 25  # lines, from which on the numbers of the axis stand above the picture, too
LONGEST = 26  # signs of a name
PANELS = ("average", "difference")


def panels_of(table: Table) -> tuple[str, ...]:
    """Returns the panels that a table has: one model has no differences."""
    return PANELS if any(one["difference"] is not None for one in table.differences) else PANELS[:1]


def write_png(table: Table, path: Path) -> Path:
    """Writes the picture of one table, all panels side by side; `write_report` calls it."""
    with pyplot().rc_context(STYLE):
        figure = draw(table, panels_of(table))
        add_legend(figure, table)
        path.parent.mkdir(parents=True, exist_ok=True)
        quietly(figure, path, dpi=160)
    return path


def svg(table: Table, panel: str) -> str:
    """
    Returns one panel as SVG for the page, which inlines it.

    It has no background, and page.css changes its colours in a dark scheme.
    """
    with pyplot().rc_context(STYLE):
        figure = draw(table, (panel,))
        text = io.StringIO()
        quietly(figure, text, format="svg", transparent=True, metadata={"Date": None})
    found = re.search(r"<svg.*</svg>", text.getvalue(), re.DOTALL)
    assert found is not None
    says = {
        "average": f"Avg@{table.settings['n']} of each model on each task, with its 95 % interval",
        "difference": "Differences to the first model, with their 95 % intervals",
    }[panel]
    return for_the_page(found[0], f"{panel}-{table.number}", f"{says}. The tables hold the numbers.")


def draw(table: Table, panels: tuple[str, ...]) -> Figure:
    """Returns a figure with a row for each model of each task, under the name of the task."""
    plt = pyplot()
    places: list[tuple[int, dict]] = []
    labels: list[str] = []
    headings: list[int] = []
    for task in table.tasks:
        headings.append(len(labels))
        labels.append(shortened(visible(task), LONGEST))
        for entry in table.of_task(task):
            places.append((len(labels), entry))
            labels.append(shortened(visible(entry["model"]["label"]), LONGEST))
    size = (1.5 + 2.9 * len(panels), 0.215 * len(labels) + 1.0)
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, panel in zip(grid[0], panels, strict=True):
        for place, entry in places:
            {"average": draw_average, "difference": draw_difference}[panel](axes, place, entry, table)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        for number, label in enumerate(axes.get_yticklabels()):
            label.set_parse_math(False)  # a name may hold dollars
            label.set_fontweight("bold" if number in headings else "normal")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        for heading in headings[1:]:
            axes.axhline(heading - 0.5, color="black", lw=0.4, alpha=0.3)
        if panel == "average":
            axes.set_xlabel(f"Avg@{table.settings['n']}, %, and 95 % interval")
        else:
            axes.axvline(0, color="black", lw=0.9)
            axes.set_xlabel("difference to the first model, points")
        low, high = axes.get_xlim()
        short = max(0.0, NARROWEST - (high - low)) / 2  # small differences should look small
        axes.set_xlim(low - short, high + short)
        axes.tick_params(axis="x", labeltop=len(labels) > TALL, top=len(labels) > TALL)
    return figure


def add_legend(figure: Figure, table: Table) -> None:
    """Says what the colours mean; on the page, its text does."""
    from matplotlib.lines import Line2D

    meanings = {COLORS[verdict]: VERDICTS[verdict] for verdict in ("higher", "lower", "unclear")}
    used = {COLORS[one["verdict"]] for one in table.differences}
    shown = {color: meaning for color, meaning in meanings.items() if color in used}
    if shown:
        lines = [Line2D([], [], color=color, marker="o", ms=5.2, lw=1.8) for color in shown]
        figure.legend(lines, shown.values(), loc="outside upper left", ncols=3)


def draw_average(axes: Axes, place: int, entry: dict, table: Table) -> None:
    """Draws the Avg@n of one model on one task; a partial one is hollow."""
    summary = entry["summary"]
    if summary["avg"] is None:
        return
    difference = table.difference(entry["task"]["name"], entry["model"]["label"])
    color = COLORS[difference["verdict"]] if difference else DARK
    mark(axes, place, summary["avg"], summary["interval"], color, hollow=entry["status"] == "partial")


def draw_difference(axes: Axes, place: int, entry: dict, table: Table) -> None:
    """Draws the difference of one model to the first on one task."""
    one = table.difference(entry["task"]["name"], entry["model"]["label"])
    if one is None or one["difference"] is None:
        return
    color = COLORS[one["verdict"]]
    mark(axes, place, one["difference"], one["interval"], color, hollow=entry["status"] == "partial")


def mark(axes: Axes, place: int, share: float, ends: list[float | None], color: str, hollow: bool) -> None:
    """Draws a number and its interval, which need not lie evenly around it."""
    found = [100 * end for end in ends if end is not None]
    if len(found) == 2:
        axes.plot(found, [place, place], color=color, lw=1.8, solid_capstyle="butt")
    axes.plot([100 * share], [place], "o", color=color, ms=5.2, markerfacecolor="white" if hollow else color)


def quietly(figure: Figure, *arguments, **options) -> None:
    """Writes a figure, without a warning for each sign of a name that the font lacks, and closes it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(*arguments, **options)
    pyplot().close(figure)


def for_the_page(text: str, prefix: str, says: str) -> str:
    """
    Returns an SVG of matplotlib as a page can hold it: with attributes in place of styles, which the page's policy
    forbids and its style sheet could not change; with ids of its own; and with a text for those who do not see it.
    """
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' style="([^"]*)"', lambda found: attributes(found[1]), text)
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", text)
    text = re.sub(r'( id="|"#|url\(#)([mp][0-9a-f]{10})', rf"\g<1>{prefix}-\g<2>", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(says)}" ', 1)


def attributes(style: str) -> str:
    """Returns the declarations of a style as attributes. The font is that of the page."""
    pairs = (one.partition(":") for one in style.split(";") if one.strip())
    return "".join(
        f' {name.strip()}="{value.strip()}"' for name, _, value in pairs if name.strip() not in ("font-family", "font")
    )
