"""The report, from the template `report.md.j2`: every number comes from the results."""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.throughput.phases import PHASES
from benchmarks.throughput.report import bracketed
from benchmarks.throughput.sizes import Size
from fire_opd_trl.evaluation.templates import number, render

from .presets import SETTINGS
from .rows import figures
from .running import Outcome
from .serving import DONE


PLACES = {
    "before": "before, no model loaded",
    "built": "models loaded, engine built",
    "sampling": "engine has sampled",
    "training": "end of the step",
}


def markdown(results: dict[str, Any]) -> str:
    """
    The text of the report.

    Args:
        results (`dict`): What results.json holds.
    """
    sections = results["sections"]
    values = {
        **{name: results[name] for name in ("run", "date", "minutes", "titles", "sections")},
        "command": " ".join(results["command"]),
        "size": Size(**results["size"]),
        "versions": ", ".join(f"{name} {version}" for name, version in results["run"]["versions"].items()),
        "verdict": verdict(sections),
        "figures": figures(results),
        "states": {name: state(outcome) for name, outcome in sections.items()},
        "rates": next(iter(rows(sections, "rates")), None),
        "compared": {name: rows(sections, name) for name in ("correctness", "attention")},
        "peaks": [row for name in sections if name.startswith("memory_") for row in rows(sections, name)],
        "settings": SETTINGS,
        "phases": PHASES,
        "engine_steps": [row for row in rows(sections, "engine") if "step" in row],
        "engine_memory": next((row for row in rows(sections, "engine") if "memory" in row), None),
        "places": PLACES,
        "benches": {
            name.removeprefix("bench_"): {
                "arms": [row for row in rows(sections, name) if "arm" in row],
                "ratios": [row["ratio"] for row in rows(sections, name) if "ratio" in row],
            }
            for name in sections
            if name.startswith("bench_") and rows(sections, name)
        },
        "tests": next(iter(rows(sections, "tests")), None),
    }
    return render(Path(__file__).with_name("report.md.j2"), values, {"bracketed": bracketed, "giga": giga})


def rows(sections: dict[str, Outcome], name: str) -> list[dict[str, Any]]:
    """The rows that a section sent, also if it did not come to its end."""
    return sections[name]["rows"] if name in sections else []


def state(outcome: Outcome) -> str:
    """How a section ended, in a few words."""
    beyond = sum(not row.get("holds", True) for row in outcome["rows"])
    said = outcome["status"] + (f": {outcome['reason']}" if outcome["reason"] else "")
    return said + f"; **{beyond} beyond their bounds**" * bool(beyond)


def verdict(sections: dict[str, Outcome]) -> str:
    """How many sections ended how, and how many comparisons stayed within their bounds."""
    counts = Counter(outcome["status"] for outcome in sections.values())
    found = [row["holds"] for outcome in sections.values() for row in outcome["rows"] if "holds" in row]
    text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda one: one[0] != DONE))
    return f"sections: {text}; {sum(found)} of {len(found)} comparisons within their bounds"


def giga(value: float | None) -> str:
    """Bytes or operations in billions, or a dash; small numbers keep their digits, large ones have no exponent."""
    return number(None if value is None else value / 1e9, "{:.3g}" if (value or 0) < 1e12 else "{:.0f}")
