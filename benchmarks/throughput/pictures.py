"""The picture of the benchmark: phases of a step, memory, and growth, arm by arm."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fire_opd_trl.evaluation.style import STYLE, pyplot


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito: told apart with any kind of colour vision.
PHASES = {"rollout": "#999999", "teacher": "#E69F00", "student": "#56B4E9", "update": "#0072B2"}
LABELS = {"rollout": "rollout (replayed)", "teacher": "teacher", "student": "student scoring", "update": "update"}
AXES = {"rows": "#000000", "mean_length": "#D55E00", "vocabulary": "#009E73"}
DASHES = {"fire": "-", "grpo": "--"}


def draw(results: dict[str, Any], path: Path) -> None:
    """
    Draw what was measured; a panel whose section was not run says so.

    Args:
        results (`dict`): The results of a run, with their `summary`.
        path (`Path`): Where the picture goes; the ending decides the format.
    """
    plt, found = pyplot(), results["summary"]
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(12.5, 3.9), width_ratios=[1.5, 1, 1.25], layout="constrained"
        )
        panels = ((left, draw_steps, "steps"), (middle, draw_memory, "memory"), (right, draw_growth, "growth"))
        for axes, panel, section in panels:
            if found[section]:
                panel(axes, found[section])
                axes.grid(axis="x" if panel is not draw_growth else "both", alpha=0.25)
                axes.set_axisbelow(True)
            else:
                axes.text(0.5, 0.5, f"{section}: not run", ha="center", va="center", transform=axes.transAxes)
                axes.set_axis_off()
        figure.savefig(path, dpi=150)
        plt.close(figure)


def name_lines(axes: "Axes", arms: list[str]) -> None:
    """Give each arm one line, the first on top."""
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def draw_steps(axes: "Axes", rows: dict[str, Any]) -> None:
    """Draw median seconds of a step, phase beside phase, with the smallest and the largest step."""
    # A replayed rollout takes no time that could be seen in the picture.
    visible = {phase for row in rows.values() for phase in PHASES if row["phases"][phase] > 0.01 * row["seconds"]}
    for place, row in enumerate(rows.values()):
        start = 0.0
        for phase, color in PHASES.items():
            label = LABELS[phase] if place == 0 and phase in visible else None
            axes.barh(place, row["phases"][phase], left=start, color=color, height=0.65, label=label)
            start += row["phases"][phase]
        spread = [[max(0.0, start - row["least"])], [max(0.0, row["most"] - start)]]
        axes.errorbar(start, place, xerr=spread, color="black", lw=1, capsize=2)
        text = f"{row['seconds']:.3g} s, {row['tokens_per_second']:.0f} tokens/s"
        axes.annotate(text, (max(start, row["most"]), place), (5, 0), textcoords="offset points", va="center")
    name_lines(axes, list(rows))
    axes.set_xlim(right=1.6 * max(row["most"] for row in rows.values()))
    axes.set_xlabel("seconds of a step, median; whiskers: smallest and largest")
    axes.set_title("Time")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)


def draw_memory(axes: "Axes", rows: dict[str, Any]) -> None:
    """Draw the peak of a step above weights, gradients and optimizer states."""
    for place, row in enumerate(rows.values()):
        if row["above"] is None:
            axes.text(0, place, "not measured", va="center")
            continue
        megabytes = row["above"] / 1e6
        axes.barh(place, megabytes, color="#CC79A7", height=0.65)
        axes.annotate(
            f"{megabytes:.0f}", (max(0.0, megabytes), place), (4, 0), textcoords="offset points", va="center"
        )
    name_lines(axes, list(rows))
    axes.set_xlim(left=0, right=1.15 * max([1.0, *[(row["above"] or 0) / 1e6 for row in rows.values()]]))
    axes.set_xlabel("MB above weights, gradients, optimizer")
    axes.set_title("Memory of a step")


def draw_growth(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    """Draw seconds of a step over the doublings of one number, with the fitted exponent."""
    for row in rows:
        factors = [value / row["values"][0] for value in row["values"]]
        label = f"{row['arm']}, {row['axis'].replace('_', ' ')}: {row['exponent']:.2f}"
        axes.plot(
            factors,
            row["seconds"],
            DASHES.get(row["arm"], ":"),
            color=AXES[row["axis"]],
            marker="o",
            ms=4,
            label=label,
        )
    axes.set_ylim(bottom=2 ** math.floor(math.log2(min(min(row["seconds"]) for row in rows))))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_xlabel("times the smallest")
    axes.set_ylabel("seconds of a step")
    axes.set_title("Growth, with exponents")
    axes.legend(frameon=False, fontsize=8)
