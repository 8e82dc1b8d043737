"""The report: tables in Markdown, every number from the results."""

from typing import Any

from .names import ARMS
from .phases import PHASES
from .sizes import Size


NOTES = """\
All arms train the same student after the same teacher on the same prompts, whose completions are replayed instead of
sampled; one step is one window. Steps are interleaved, one of each arm in every round, in rotated order, after a
warm-up round. A ratio pairs the steps of a round: its median, in brackets the 95 % t-interval of the mean logarithm,
in braces the smallest and the largest. *Update* is all of the step that is not another phase: forward and backward,
optimizer, and for this library's arms also filter and weights. `distillation` and `iw_opd` score inside the loss:
their *teacher* is the teacher's forward alone, and the comparison with the student belongs to the update.

The rows that the filter drops are as long as those that it keeps: a fifth of the rows, evenly over the lengths, is
made unlikely on purpose; the tokens of a window count them too.

Where there is no Triton, part of what `grpo` takes is its head: it projects prompts and padding there, which it does
not on a GPU, in tiles made for Triton. `grpo_tiles` is the same with smaller tiles. Both score in micro-batches of the
size of the update's.
"""
FLOOR_NOTE = """\
The floor is a lower bound: for each product of a forward with weights its operations over all tokens but padding
(completion tokens for the head), at the best rate that its shape reaches in the same round; attention over the pairs
that a causal mask leaves, at the best rate of all; or reading the weights once at the rate of a copy, if that takes
longer. An update counts three forwards, and what AdamW reads and writes. Nothing of it is softmax, norms, or Python.
"""
MEMORY_NOTE = """\
*Above* is the peak of an arm's second step minus what was there before the step, which is weights and optimizer
states, and, from the first loss on, minus the gradients. Each arm runs in a process of its own; on a CPU it is
resident memory, and freed memory goes back to the system at once.
"""
RANK_NOTE = """\
The same window shared by so many gloo processes of one thread each. Bytes are what a rank hands in: *statistics*
while a window is scored and filtered, *slices* for the rest. Seconds of the communication include waiting for others.
"""


def markdown(results: dict[str, Any], found: dict[str, Any], picture: str | None) -> str:
    """
    The text of the report.

    Args:
        results (`dict`): The results of a run.
        found (`dict`): Their [`~benchmarks.throughput.summary.summary`].
        picture (`str`, *optional*): File name of the picture.
    """
    sections = [
        "# Benchmark",
        head(results),
        f"![time, memory, growth]({picture})" if picture else "",
        "## Targets\n\n" + targets(found),
        "## A step\n\n" + (step_table(found) if found["steps"] else "Not run."),
        "## Ratios\n\n" + (ratio_table(found["ratios"]) if found["ratios"] else "Not run."),
        "### Among this library's arms\n\n" + (ratio_table(found["within"]) if found["within"] else "Not run."),
        "### Equal completion lengths\n\n" + (ratio_table(found["equal"]) if found["equal"] else "Not run."),
        "## Padding\n\n" + (padding_table(found["padding"]) if found["padding"] else "Not run."),
        "## Memory\n\n" + (memory_table(found["memory"]) + "\n\n" + MEMORY_NOTE if found["memory"] else "Not run."),
        "## The floor\n\n" + (floor_table(results, found["floor"]) if found["floor"] else "Not run."),
        "## Growth\n\n" + (growth_table(results, found["growth"]) if found["growth"] else "Not run."),
        "## Ranks\n\n" + (rank_table(results, found) + "\n\n" + RANK_NOTE if found["ranks"] else "Not run."),
        "## What is compared\n\n" + NOTES,
        "\n".join(f"* `{name}`: {what}" for name, what in ARMS.items()),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def table(columns: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    rules = ["---" if place < text_columns else "---:" for place in range(len(columns))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rules, *rows])


def head(results: dict[str, Any]) -> str:
    """What was run, on what."""
    size, machine, commit = Size(**results["size"]), results["machine"], results["commit"]
    lengths = results["lengths"]
    mean = sum(lengths) / len(lengths)
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    state = "no commit" if commit is None else commit["hash"] + (" with changes" if commit["dirty"] else "")
    return (
        f"Preset `{results['options']['preset']}`: {size.parameters / 1e6:.3g} M parameters, a vocabulary of "
        f"{size.vocabulary}; {size.rows} rows in micro-batches of {size.batch}, prompts of {size.prompt} tokens, "
        f"completions of {mean:.1f} in the mean and at most {max(lengths)} ({max(lengths) / mean:.2f} times that). "
        f"{results['options']['repeats']} rounds, {results['options']['threads']} thread(s), {machine['dtype']}. "
        f"{where}. {versions}; {state}; {results['date']}."
    )


def bracketed(value: dict[str, Any] | None, digits: int = 2) -> str:
    """A ratio with its interval and its spread."""
    if value is None:
        return "–"
    interval = "" if value["low"] is None else f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
    spread = f" {{{value['least']:.{digits}f}–{value['most']:.{digits}f}}}" if value["n"] > 1 else ""
    return f"{value['median']:.{digits}f}{interval}{spread}"


def targets(found: dict[str, Any]) -> str:
    """Every aim with its verdict."""
    rows = [
        [
            row["key"],
            row["what"],
            bracketed(row["found"], 3),
            ("at least " if row["at_least"] else "at most ") + f"{row['bound']:g}",
            row["verdict"],
        ]
        for row in found["targets"]
    ]
    return table(["", "ratio", "measured", "target", "verdict"], rows, 2)


def step_table(found: dict[str, Any]) -> str:
    """Seconds of a step by phase."""
    rows = [
        [
            f"`{arm}`",
            f"{row['seconds']:.3g} {{{row['least']:.3g}–{row['most']:.3g}}}",
            *[f"{row['phases'][phase]:.3g}" for phase in PHASES],
            f"{row['tokens_per_second']:.0f}",
            "–" if row["kept_tokens"] is None else f"{row['kept_tokens']:.0%}",
        ]
        for arm, row in found["steps"].items()
    ]
    return table(["arm", "step, s", *[f"{phase}, s" for phase in PHASES], "window tokens/s", "tokens kept"], rows)


def ratio_table(rows: list[dict[str, Any]]) -> str:
    """Ratios of whole steps and without rollouts."""
    cells = [
        [f"`{row['above']}` / `{row['below']}`", bracketed(row["step"]), bracketed(row["without_rollout"])]
        for row in rows
    ]
    return table(["time of", "whole step", "scoring and update"], cells)


def padding_table(rows: dict[str, Any]) -> str:
    """Tokens, all of them, and the share that is padding, by what was done."""
    works = ("teacher", "student", "update")

    def cell(work: dict[str, Any] | None) -> str:
        return "–" if work is None else f"{work['tokens']} / {work['padded']} ({work['padding']:.0%})"

    cells = [[f"`{arm}`", *[cell(row.get(work)) for work in works]] for arm, row in rows.items()]
    heads = ["teacher", "student, scoring", "student, update"]
    return table(["arm", *[f"{name}: tokens / with padding" for name in heads]], cells)


def memory_table(rows: dict[str, Any]) -> str:
    """Memory of a step in MB."""
    cells = []
    for arm, row in rows.items():
        values = [row.get(key) for key in ("above", "peak", "rest", "gradients")]
        cells.append([f"`{arm}`", *["–" if value is None else f"{value / 1e6:.1f}" for value in values]])
        cells[-1].append(row["reason"] or "")
    return table(["arm", "above, MB", "peak, MB", "before the step, MB", "gradients, MB", ""], cells)


def floor_table(results: dict[str, Any], rows: dict[str, Any]) -> str:
    """Floors by phase, and how far above them an arm is; the rates of the last round."""
    phases = ("teacher", "student", "update")
    cells = [
        [
            f"`{arm}`",
            *[
                f"{row[phase]['over']:.2f} ({row[phase]['seconds']:.3g} s)" if phase in row else "–"
                for phase in phases
            ],
        ]
        for arm, row in rows.items()
    ]
    rates = results["timing"]["floor"][-1]["rates"]
    speeds = ", ".join(f"{shape} {rate / 1e9:.3g}" for shape, rate in rates["products"].items())
    said = (
        f"Rates of the last round, {rates['rows']} rows: products in GFLOP/s by shape: {speeds}; "
        f"a copy {rates['copy'] / 1e9:.3g} GB/s."
    )
    return (
        table(["arm", *[f"{phase}: time over floor (floor)" for phase in phases]], cells)
        + f"\n\n{said}\n\n{FLOOR_NOTE}"
    )


def growth_table(results: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Exponents of the time of a step, each axis doubled alone."""
    base = Size(**results["growth_size"])
    phases = ("teacher", "student", "update")
    cells = [
        [
            row["axis"].replace("_", " "),
            f"`{row['arm']}`",
            ", ".join(str(value) for value in row["values"]),
            ", ".join(f"{seconds:.3g}" for seconds in row["seconds"]),
            f"{row['exponent']:.2f}",
            *[f"{row['phases'][phase]:.2f}" if phase in row["phases"] else "–" for phase in phases],
        ]
        for row in rows
    ]
    said = (
        f"One number is doubled three times, the others stay at {base.rows} rows, completions of {base.mean_length} "
        f"in the mean, a vocabulary of {base.vocabulary}. The exponent is fitted to median times by least squares of "
        "logarithms: 1 is proportional."
    )
    columns = ["doubled", "arm", "values", "step, s", "exponent", *phases]
    return said + "\n\n" + table(columns, cells, 2)


def rank_table(results: dict[str, Any], found: dict[str, Any]) -> str:
    """Steps and communication by number of ranks."""
    cells = [
        [
            str(row["ranks"]),
            f"{row['seconds']:.3g} {{{row['least']:.3g}–{row['most']:.3g}}}",
            *[f"{row['bytes_per_row'][part]:.0f}" for part in ("statistics", "slices")],
            *[f"{row['communication_seconds'][part]:.3g}" for part in ("statistics", "slices")],
        ]
        for row in found["ranks"]
    ]
    columns = ["ranks", "step, s", "statistics, bytes/row", "slices, bytes/row", "statistics, s", "slices, s"]
    cores = results["machine"]["cores"]
    power = f"{found['rank_exponent']:.2f}"
    said = f"The time of a step goes with the number of ranks to the power {power}, on {cores} cores."
    return table(columns, cells) + "\n\n" + said
