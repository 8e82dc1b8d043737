"""The pictures of a comparison: learning curves with their bands, and differences with their intervals."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..style import BLUE, COLORS, GREY, ORANGE, STYLE, VERDICTS, pyplot
from .summary import Row


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_learning_curves(rows: list[Row], path: Path) -> list[Path]:
    """
    Draw one panel for each method: its held-out accuracy over updates with a 95 % band, the arm that it is compared
    with, and its random control.

    Args:
        rows (`list[Row]`): The table.
        path (`Path`): Where the pictures go, without the ending.

    Returns:
        `list[Path]`: The PNG and the SVG.
    """
    plt = pyplot()
    by_name = {row.arm.name: row for row in rows}
    panels = [row for row in rows if not row.arm.is_control and row.arm.against != row.arm.name] or rows
    square = math.ceil(math.sqrt(len(panels)))
    columns = min((square, min(square + 1, 5, len(panels))), key=lambda columns: -len(panels) % columns)
    lines = math.ceil(len(panels) / columns)
    with plt.rc_context(STYLE):
        size = (max(4.5, 2.35 * columns + 0.6), 1.95 * lines + (0.9 if columns > 2 else 1.3))
        figure, grid = plt.subplots(
            lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        handles = {}
        for axes, row in zip(grid.flat, panels, strict=False):
            against, control = by_name.get(row.arm.against), by_name.get(row.arm.control or "")
            if against is not None and against is not row:
                handles["compared with: opd, or as named"] = draw_curve(axes, against, GREY, "-", 0.22)
            if control is not None:
                handles["its random control"] = draw_curve(axes, control, ORANGE, (0, (4, 1.5)), 0.15)
            handles["method of the panel"] = draw_curve(axes, row, BLUE, "-", 0.22)
            axes.set_title(row.arm.name, color="black", fontweight="bold", pad=4)
            if row.arm.against != "opd":
                axes.annotate(
                    f"grey: {row.arm.against}", (0.97, 0.05), xycoords="axes fraction", ha="right", color="#555555"
                )
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
            axes.grid(axis="y", alpha=0.25)
        for number, axes in enumerate(grid.flat):
            axes.set_visible(number < len(panels))
            if number + columns >= len(panels):  # nothing below it
                axes.xaxis.set_tick_params(labelbottom=True)
        means = [share for row in by_name.values() if row.curve for share in row.curve[1]]
        grid[0, 0].set_ylim(
            max(0.0, min(means) - 0.08), min(1.0, max(means) + 0.08)
        )  # two seeds make bands of any size
        figure.supxlabel("update", fontsize=10)
        figure.supylabel("held-out exact match, %", fontsize=10)
        order = ("method of the panel", "compared with: opd, or as named", "its random control")
        shown = [name for name in order if name in handles]
        beside = 3 if columns > 2 else 1  # entries of the legend; three of them are as wide as three panels
        figure.legend([handles[name] for name in shown], shown, loc="outside upper left", ncols=beside, fontsize=9.5)
        return save(figure, path)


def draw_curve(axes: "Axes", row: Row, color: str, style, alpha: float):
    """Draw the mean and the band of one arm, and return the line for the legend."""
    steps, mean, low, high = row.curve
    axes.fill_between(steps, low, high, color=color, alpha=alpha, lw=0)
    (line,) = axes.plot(steps, mean, color=color, ls=style, lw=1.6)
    return line


def draw_differences(rows: list[Row], path: Path) -> list[Path]:
    """
    Draw, for every arm, its difference to the arm that it is compared with, its 95 % interval, and what a step costs.

    Args:
        rows (`list[Row]`): The table.
        path (`Path`): Where the pictures go, without the ending.

    Returns:
        `list[Path]`: The PNG and the SVG.
    """
    plt = pyplot()
    from matplotlib.lines import Line2D

    ordered = methods_with_controls([row for row in rows if row.difference is not None])
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1,
            2,
            figsize=(8.2, 0.27 * len(ordered) + 1.7),
            sharey=True,
            width_ratios=[3.2, 1],
            layout="constrained",
        )
        handles = {}
        for place, row in enumerate(ordered):
            assert row.difference is not None
            color, meaning = COLORS[verdict(row)], VERDICTS[verdict(row)]
            hollow = {"markerfacecolor": "white"} if row.arm.is_control else {}
            width = 100 * row.difference.half_width if row.difference.half_width is not None else None
            mark = {"fmt": "o", "color": color, "ms": 5.5, "capsize": 2.5, "lw": 1.5, **hollow}
            left.errorbar(100 * row.difference.mean, place, xerr=width, **mark)
            handles[meaning] = Line2D([], [], color=color, marker="o", ms=5.5, lw=1.5)
            if row.arm.is_control:
                handles["random control"] = Line2D(
                    [], [], color=GREY, marker="o", ms=5.5, lw=0, markerfacecolor="white"
                )
            if row.cost is not None:
                right.plot(row.cost, place, "o", color="#333333", ms=4.5, **hollow)
        left.set_yticks(range(len(ordered)), [label(row) for row in ordered])
        left.set_ylim(len(ordered) - 0.4, -0.6)
        left.axvline(0, color="black", lw=0.8)
        left.set_xlabel("difference in held-out exact match, points\n95 % interval, paired by seed")
        right.axvline(1, color="black", lw=0.8)
        right.set_xlim(left=0, right=1.08 * max([1.0, *[row.cost for row in ordered if row.cost is not None]]))
        right.set_xlabel("CPU time of an update\nrelative to opd")
        for axes in (left, right):
            axes.grid(axis="both", alpha=0.25)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        names = [name for name in (*VERDICTS.values(), "random control") if name in handles]
        figure.legend([handles[name] for name in names], names, loc="outside upper left", ncols=2, fontsize=9.5)
        return save(figure, path)


def methods_with_controls(rows: list[Row]) -> list[Row]:
    """Methods by falling difference, each followed by its random controls."""

    def height(row: Row) -> float:
        assert row.difference is not None
        return -row.difference.mean

    methods = sorted((row for row in rows if not row.arm.is_control), key=height)
    controls = [row for row in rows if row.arm.is_control]
    ordered: list[Row] = []
    for row in methods:
        named = row.arm.name.split(":")[0]
        its = [c for c in controls if c.arm.name == row.arm.control or c.arm.name.split(":")[0] == row.arm.name]
        its = its if row.arm.name == named else [c for c in its if c.arm.name == row.arm.control]
        ordered += [row, *its]
        controls = [control for control in controls if control not in its]
    return [*ordered, *controls]


def verdict(row: Row) -> str:
    """The verdict on a difference, as a key of `VERDICTS`."""
    assert row.difference is not None
    if row.differs is None:
        return "none"
    return "unclear" if not row.differs else "higher" if row.difference.mean > 0 else "lower"


def label(row: Row) -> str:
    """The name of an arm, and what it is compared with if that is not `opd`."""
    return row.arm.name + (f"  (to {row.arm.against})" if row.arm.against != "opd" else "")


def save(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG, and close it."""
    paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(paths[0], dpi=160)
    figure.savefig(paths[1], metadata={"Date": None})
    pyplot().close(figure)
    return paths
