"""The page of what was measured beside what is planned."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from fire_opd_trl.preflight.plan.memory import PHASES, memory, peak

from .published import published
from .settings import SETTINGS


ROOT = Path(__file__).parents[2]
PAGE, RESULTS, TEXT = ROOT / "docs" / "plan_measured.md", Path(__file__).with_name("results.json"), "page.md"
ALONE = {False: "nothing", True: "nothing-zero3"}  # what tells what a process takes for itself


class Measured(TypedDict):
    """
    What was measured of a setting.

    Args:
        first (`bool`): Whether it was the first setting of its process.
        peaks (`dict`): Bytes by phase, above what the process had before its models were loaded.
    """

    first: bool
    peaks: dict[str, int]


@dataclass(frozen=True)
class Row:
    """
    A setting, planned and measured, in bytes.

    Args:
        name, what (`str`): The setting.
        planned (`dict`): By phase.
        measured (`dict`): By phase, without what a process takes for itself.
    """

    name: str
    what: str
    planned: dict[str, float]
    measured: dict[str, float]

    @property
    def ratio(self) -> float:
        """Planned to measured, of the phase that takes most in each."""
        return max(self.planned.values()) / max(self.measured.values())


def read_results() -> dict[str, Measured]:
    """Returns what was measured so far, by setting."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def planned(name: str) -> dict[str, float]:
    """Returns what is planned for each phase of a setting."""
    with tempfile.TemporaryDirectory() as folder:
        return {phase: peak(parts) for phase, parts in memory(SETTINGS[name].planned(Path(folder))).items()}


def alone(results: dict[str, Measured], zero3: bool) -> float:
    """
    Returns what a process takes for itself in its first setting: by how much one with models of 1 MB grows above what
    is planned. In a later setting its libraries, threads and buffers are there.
    """
    name = ALONE[zero3]
    return max(results[name]["peaks"][phase] for phase in PHASES) - max(planned(name).values())


def rows(results: dict[str, Measured]) -> list[Row]:
    """Returns the settings that were measured, but those that tell what a process takes for itself."""
    own = {zero3: alone(results, zero3) for zero3, name in ALONE.items() if name in results}
    found = []
    for name, seen in results.items():
        setting = SETTINGS[name]
        less = own[setting.zero3] if seen["first"] else 0.0
        measured = {phase: seen["peaks"][phase] - less for phase in PHASES}
        if name not in ALONE.values():
            found.append(Row(name, setting.what, planned(name), measured))
    return found


def page(results: dict[str, Measured]) -> str:
    """Returns docs/plan_measured.md."""
    found = rows(results)
    peaks = ["| setting | what it is | planned, MB | measured, MB | ratio |", "| --- | --- | --- | --- | --- |"]
    phases = [f"| setting | {' | '.join(PHASES)} |", f"| --- |{' --- |' * len(PHASES)}"]
    for row in found:
        size, seen = max(row.planned.values()), max(row.measured.values())
        peaks.append(f"| {row.name} | {row.what} | {size / 1e6:.0f} | {seen / 1e6:.0f} | {row.ratio:.2f} |")
        cells = [f"{row.planned[phase] / 1e6:.0f} / {row.measured[phase] / 1e6:.0f}" for phase in PHASES]
        phases.append(f"| {row.name} | {' | '.join(cells)} |")
    own = {zero3: f"{alone(results, zero3) / 1e6:.0f}" for zero3, name in ALONE.items() if name in results}
    ratios = [row.ratio for row in found]
    text = Path(__file__).with_name(TEXT).read_text(encoding="utf-8")
    for name, value in {
        "count": str(len(found)),
        "least": f"{min(ratios):.2f}",
        "most": f"{max(ratios):.2f}",
        "alone": own[False],
        "alone_zero3": own.get(True, "?"),
        "peaks": "\n".join(peaks),
        "phases": "\n".join(phases),
        "published": published(),
    }.items():
        text = text.replace(f"{{{name}}}", value)
    return text
