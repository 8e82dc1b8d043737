"""The pictures of an evaluation: the Avg@n of every model with its interval, and the differences to the first one."""

from __future__ import annotations

import base64
import io
import warnings
from typing import TYPE_CHECKING

from ..inspect.visible import visible
from ..style import COLORS, STYLE, pyplot
from .results import Table
from .terminal import shortened


if TYPE_CHECKING:
    from matplotlib.figure import Figure

DARK = "#333333"  # the first model, that all others are compared with
NARROWEST = 10.0  # points along the axis
TALL = 25  # lines, from which on the numbers of the axis stand above the picture, too
LONGEST = 26  # signs of a name
PANELS = {"average": "Avg@{n}, %, and 95 % interval", "difference": "difference to the first model, points"}


def panels_of(table: Table) -> list[str]:
    """Returns the panels that a table has: one model has no differences."""
    return list(PANELS) if any(one["difference"] is not None for one in table.differences) else ["average"]


def picture(table: Table, panel: str) -> str:
    """Returns one panel as the address of an image, which holds it: an SVG without a background."""
    written = io.StringIO()
    with pyplot().rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # whoever looks at it has another
        figure = draw(table, panel)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        pyplot().close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(written.getvalue().encode()).decode()}"


def draw(table: Table, panel: str) -> Figure:
    """Returns a figure with a row for each model of each task, under the name of the task. A partial one is hollow."""
    rows = len(table.tasks) + len(table.entries)
    figure, axes = pyplot().subplots(figsize=(4.4, 0.215 * rows + 1.0), layout="constrained")
    labels: list[str] = []
    headings: list[int] = []
    for task in table.tasks:
        if headings:
            axes.axhline(len(labels) - 0.5, color="black", lw=0.4, alpha=0.3)
        headings.append(len(labels))
        labels.append(task)
        for entry in table.of_task(task):
            difference = table.difference(task, entry["model"]["label"])
            color = COLORS[difference["verdict"]] if difference else DARK
            of = entry["summary"] if panel == "average" else difference or {"difference": None}
            share = of["avg" if panel == "average" else "difference"]
            if share is not None:
                if None not in of["interval"]:  # it need not lie evenly around the number
                    ends = [100 * end for end in of["interval"]]
                    axes.plot(ends, [len(labels)] * 2, color=color, lw=1.8, solid_capstyle="butt")
                inside = "white" if entry["status"] == "partial" else color
                axes.plot([100 * share], [len(labels)], "o", color=color, ms=5.2, markerfacecolor=inside)
            labels.append(entry["model"]["label"])
    axes.set_yticks(range(rows), [shortened(visible(label), LONGEST) for label in labels])
    axes.set_ylim(rows - 0.4, -0.6)
    for place, text in enumerate(axes.get_yticklabels()):
        text.set_parse_math(False)  # a name may hold dollars
        text.set_fontweight("bold" if place in headings else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel(PANELS[panel].format(n=table.settings["n"]))
    if panel == "difference":
        axes.axvline(0, color="black", lw=0.9)
    low, high = axes.get_xlim()
    short = max(0.0, NARROWEST - (high - low)) / 2  # small differences should look small
    axes.set_xlim(low - short, high + short)
    axes.tick_params(axis="x", labeltop=rows > TALL, top=rows > TALL)
    return figure
