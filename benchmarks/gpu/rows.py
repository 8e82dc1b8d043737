"""From the results of `make gpu` to rows of docs/results.md, which say "not run" until a GPU has run them."""

from collections.abc import Callable
from typing import Any

from benchmarks.throughput.report import bracketed

from .serving import DONE


Rows = list[dict[str, Any]]
Results = dict[str, Any]


def figures(results: Results) -> dict[str, str]:
    """
    The figures that the results have for rows of docs/results.md, by the row's first column.

    Args:
        results (`dict`): What results.json holds.
    """
    found = {}
    for what, (names, figure) in ROWS.items():
        sections = {name: rows_of(results, name) for name in results["sections"] if name.startswith(names)}
        if text := figure({name: rows for name, rows in sections.items() if rows}):
            found[what] = text
    return found


def filled(results: Results) -> list[str]:
    """All rows as Markdown: those that the results fill, and those that stay "not run"."""
    where = results["run"]["card"] or f"**rehearsal, no GPU**: {results['run']['cpu']}"
    found = figures(results)
    return [
        f"| {what} | {found[what]} | us, {where}, [`make gpu`](gpu/report.md), {results['date']} |"
        if what in found
        else f"| {what} | not run | – |"
        for what in ROWS
    ]


def rows_of(results: Results, name: str) -> Rows:
    """The rows of a section that ran to its end."""
    section = results["sections"][name]
    return section["rows"] if section["status"] == DONE else []


def speed(sections: dict[str, Rows]) -> str | None:
    """Whole steps of TRL's trainers over ours, at each size."""
    parts = []
    for name, rows in sections.items():
        ratios = {(one["above"], one["below"]): one for one in (row["ratio"] for row in rows if "ratio" in row)}
        whole, sampled = ratios.get(("distillation", "opd_full")), ratios.get(("grpo", "fire"))
        if whole and sampled:
            parts.append(
                f"{bracketed(whole['step'])} and {bracketed(sampled['without_rollout'])} times as fast "
                f"({name.removeprefix('bench_')})"
            )
    return ", ".join(parts) or None


def memory(sections: dict[str, Rows]) -> str | None:
    """The largest phase of each setting, measured over planned."""
    parts = []
    for rows in sections.values():
        for row in rows:
            if row["planned"]:
                measured, planned = max(row["phases"].values()), max(row["planned"].values())
                parts.append(f"{row['setting']} {measured / 1e9:.1f} GB, {measured / planned:.2f} of the plan")
    return "; ".join(parts) or None


def agreement(sections: dict[str, Rows]) -> str | None:
    """How many comparisons stayed within their bounds, and what was not compared."""
    rows = [row for rows in sections.values() for row in rows]
    compared = [row for row in rows if "skipped" not in row]
    if not compared:
        return None
    within = sum(row["holds"] for row in compared)
    left = sorted({row["setting"] for row in rows if "skipped" in row})
    return (
        f"{within} of {len(compared)} comparisons within their bounds"
        + f"; not compared: {', '.join(left)}" * bool(left)
    )


def engine(sections: dict[str, Rows]) -> str | None:
    """Memory awake and asleep, and the gap between engine and trainer."""
    for rows in sections.values():
        steps, ends = [row for row in rows if "step" in row], [row for row in rows if "memory" in row]
        if not steps or not ends:
            continue
        used, gap = ends[-1]["memory"], max(row["fire/sampling_gap"] for row in steps)
        asleep = "" if ends[-1]["sleeps"] else " (no sleep mode here)"
        return (
            f"{used['sampling'] / 1e9:.1f} GB while sampling, {used['training'] / 1e9:.1f} GB after the step{asleep}; "
            f"log-probabilities differ by {gap:.2g} in mean"
        )
    return None


# The first column of a row, from which sections it is filled, and how.
ROWS: dict[str, tuple[str | tuple[str, ...], Callable[[dict[str, Rows]], str | None]]] = {
    "speed on a GPU: whole step beside TRL's `DistillationTrainer`, scoring and update beside its `GRPOTrainer`": (
        "bench_",
        speed,
    ),
    "peak memory on a GPU, measured beside `fire-opd plan`": ("memory_", memory),
    "bfloat16 and Triton beside float32, on a GPU": ("correctness", agreement),
    "eager, sdpa and flash attention, padded and packed, on a GPU": ("attention", agreement),
    "vLLM in the trainer's process, asleep while training": ("engine", engine),
}
