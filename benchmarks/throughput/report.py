"""The report, from the template `report.md.j2`: every number comes from the results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fire_opd_trl.evaluation.templates import number, render

from .names import ARMS
from .phases import PARTS, PHASES
from .sizes import Size
from .summary import SCORED_PHASES


def markdown(results: dict[str, Any], found: dict[str, Any], picture: str | None) -> str:
    """
    The text of the report.

    Args:
        results (`dict`): The results of a run.
        found (`dict`): Their summary, from [`~benchmarks.throughput.summary.summarize`].
        picture (`str`, *optional*): File name of the picture.
    """
    lengths = results["lengths"]
    values = {
        **{name: results[name] for name in ("options", "machine", "commit", "date")},
        **found,
        "size": Size(**results["size"]),
        "growth_size": Size(**results["growth_size"]),
        "mean_length": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "rates": results["timing"]["floor"][-1]["rates"] if found["floor"] else None,
        "picture": picture,
        "phases": PHASES,
        "scored_phases": SCORED_PHASES,
        "parts": PARTS,
        "arms": ARMS,
    }
    filters: dict[str, Callable[..., str]] = {"bracketed": bracketed, "spread": spread, "megabytes": megabytes}
    return render(Path(__file__).with_name("report.md.j2"), values, filters)


def bracketed(value: dict[str, Any] | None, digits: int = 2) -> str:
    """A ratio with its interval in brackets and its smallest and largest value in braces."""
    if value is None:
        return "–"
    form = f"{{:.{digits}f}}"
    text = form.format(value["median"])
    if value["low"] is not None:
        text += f" [{form.format(value['low'])}, {form.format(value['high'])}]"
    if value["n"] > 1:
        text += f" {{{form.format(value['least'])}–{form.format(value['most'])}}}"
    return text


def spread(row: dict[str, Any]) -> str:
    """Seconds of a step with the smallest and the largest in braces."""
    return f"{row['seconds']:.3g} {{{row['least']:.3g}–{row['most']:.3g}}}"


def megabytes(value: int | None) -> str:
    """A number of bytes in MB, or a dash."""
    return number(None if value is None else value / 1e6, "{:.1f}")
