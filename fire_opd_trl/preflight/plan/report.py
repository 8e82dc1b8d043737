"""A plan as a screen, as markdown, and for machines."""

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from .fit import (
    SCALES,
    Plan,
    changed_settings,
    cheapest,
    fitted,
    largest_budget,
    largest_rows,
    placed,
    placement_of,
    scaled,
)
from .hardware import Assumptions
from .seconds import PHASES


WIDTH = 100
HEADS = ("rollout", "teacher", "student", "update")  # of the columns, for PHASES
GB = 1e9


def gb(count: float) -> str:
    """Bytes in GB, 10^9 bytes."""
    return "-" if not count else f"{count / GB:.1f}" if count >= GB / 10 else f"{count / GB:.3f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if not math.isfinite(seconds):
        return "never"
    unit, name = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    return f"{seconds / unit:.1f} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"


def title(plan: Plan) -> str:
    """What is planned, in a line."""
    run = plan.run
    teachers = ", ".join(teacher.shape.name.split("/")[-1] for teacher in run.teachers.values())
    engine = "rollouts by transformers"
    if run.engine is not None:
        engine = f"vLLM on {run.engine.gpus} others" if run.engine.gpus else "vLLM on the same cards"
    sharding = SHARDINGS[run.sharding] if run.gpus > 1 else "one process"
    return (
        f"{run.student.name.split('/')[-1]} from {teachers or 'no teacher'}, {run.gpus} x {plan.hardware.name}, "
        f"{sharding}, {engine}"
    )


SHARDINGS = {"none": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}


def verdict(plan: Plan) -> str:
    """Returns the plan in one line, which preflight prints under its table."""
    where = f"{plan.run.gpus} x {plan.hardware.name}"
    most = f"{gb(plan.peak)} of {gb(plan.room)} GB in the phase '{plan.peak_phase}'"
    if not plan.fits:
        if plan.peak <= plan.room:
            most = f"the engine's share, {plan.run.engine.memory:g} of a card, does not hold its weights"  # type: ignore
        said = f"Does not fit on {where}: {most}. `fire-opd plan --fit`, with the same arguments, proposes settings."
        return " ".join([said, *too_long(plan)])
    longest = max(plan.costs, key=lambda phase: plan.costs[phase].seconds)
    whole = f"; {plan.steps} steps {duration(3600 * plan.hours)}" if plan.steps and plan.hours is not None else ""
    said = f"Fits on {where}: {most}. A step takes about {duration(plan.step_seconds)}, most of it '{longest}'{whole}."
    return " ".join([said, *too_long(plan), "Computed: `fire-opd plan` says how."])


def too_long(plan: Plan) -> list[str]:
    """Sentences of the verdict: what cannot have the longest row of this plan, and what to do."""
    run, engine, said = plan.run, plan.run.engine, []
    models = [run.student, *(teacher.shape for teacher in run.teachers.values())]
    least = min(models, key=lambda shape: shape.context)
    guessed = any(assumed.option == "--longest_prompt" for assumed in run.assumed)  # which warns of nothing
    longest = run.completion_longest if guessed else run.longest
    if longest > least.context:
        said.append(f"{least.name} reads only {least.context} tokens: lower max_completion_length.")
    # TRL does not start a server, which has a length of its own.
    if engine is not None and engine.mode == "colocate" and 0 < engine.length < longest:
        said.append(
            f"vLLM ends a row after {engine.length} tokens, its prompt among them: raise vllm_max_model_length, or "
            "lower max_completion_length."
        )
    return said


def table(rows: Sequence[Sequence[str]], markdown: bool) -> list[str]:
    """Rows as aligned columns, the first of them to the left; the first row is the head."""
    if markdown:
        head, *rest = rows
        rule = "| --- |" + " ---: |" * (len(head) - 1)
        return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in rest)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def memory_rows(plan: Plan) -> list[list[str]]:
    """Memory of a card by component and phase, in GB."""
    components = list(dict.fromkeys(name for parts in plan.memory.values() for name in parts))
    rows = [["memory of a card, GB", *HEADS]]
    for name in components:
        amounts = [plan.memory[phase].get(name, 0) for phase in PHASES]
        if max(amounts) >= GB / 200 or max(amounts) >= plan.peak / 100:
            rows.append([name, *map(gb, amounts)])
    rows.append(["sum", *(gb(plan.peaks[phase]) for phase in PHASES)])
    return rows


def time_rows(plan: Plan) -> list[list[str]]:
    """Seconds of a step by phase, and what takes them."""
    costs = [plan.costs[phase] for phase in PHASES]
    whole = plan.step_seconds
    return [
        ["time of a step", *HEADS, "step"],
        ["takes", *(duration(cost.seconds) for cost in costs), duration(whole)],
        ["share", *(f"{cost.seconds / whole:.0%}" if math.isfinite(whole) else "-" for cost in costs), ""],
        ["operations", *(duration(cost.compute) for cost in costs), ""],
        ["memory traffic", *(duration(cost.memory) for cost in costs), ""],
        ["links", *(duration(cost.links) for cost in costs), ""],
        ["most of it", *(cost.dominant for cost in costs), ""],
    ]


def placement_rows(plan: Plan) -> list[list[str]]:
    """The placements of the teacher, with what they need and take."""
    plans = placed(plan)
    best = cheapest(plans, placement_of(plan.run))
    rows = [["teacher's weights", "peak, GB", "scoring", "step", "fits"]]
    for kind, other in plans.items():
        now = " (as planned)" if kind == placement_of(plan.run) else ""
        fits = ("yes, cheapest" if kind == best else "yes") if other.fits else "no"
        scoring = duration(other.costs["teacher scoring"].seconds)
        rows.append([kind + now, gb(other.peak), scoring, duration(other.step_seconds), fits])
    return rows


def scale_rows(plan: Plan, scales: Iterable[int] = SCALES) -> list[list[str]]:
    """The same window on other numbers of cards."""
    rows = [["cards", "micro-batch", "peak, GB", *HEADS, "step", "card-h / 100 steps", "fits"]]
    for gpus in scales:
        other = scaled(plan, gpus)
        if other is None:
            rows.append([str(gpus), *["-"] * 8, "-"])
            continue
        run, hours = other.run, other.cards * other.step_seconds / 36
        rows.append(
            [
                str(gpus),
                f"{run.rows} x {run.accumulation}",
                gb(other.peak),
                *(duration(other.costs[phase].seconds) for phase in PHASES),
                duration(other.step_seconds),
                f"{hours:.0f}" if math.isfinite(hours) else "-",
                "yes" if other.fits else "no",
            ]
        )
    return rows


def why_not_scaled(plan: Plan, gpus: int) -> str:
    """Why a window has no plan on so many cards."""
    engine = plan.run.engine
    if engine is not None and not engine.gpus and gpus % engine.tensor_parallel:
        return f"they cannot be divided into engines of {engine.tensor_parallel} cards"
    return f"{plan.run.rows * plan.run.accumulation * plan.run.gpus} completions cannot be divided by {gpus}"


def whys(plan: Plan) -> list[str]:
    """Sentences below the table of other numbers of cards: why some of them have no plan."""
    return [f"{gpus} cards: {why_not_scaled(plan, gpus)}." for gpus in SCALES if scaled(plan, gpus) is None]


def window_line(plan: Plan) -> str:
    """The window in a sentence."""
    run = plan.run
    rows = run.rows * run.steps_per_generation * run.gpus
    return (
        f"A window: {rows} completions of {run.completion_mean:.0f} tokens in the mean, "
        f"{run.completion_longest} at most, behind prompts of {run.prompt_mean:.0f} "
        f"({run.prompt_longest} at most)."
    )


def left_out(plan: Plan) -> list[str]:
    """Sentences below the window: what this plan does not count of its models, and what to do."""
    run, said = plan.run, []
    if any(shape.sees_images for shape in (run.student, *(teacher.shape for teacher in run.teachers.values()))):
        said.append(
            "Images are not planned: add the tokens of an image to --mean_prompt and --longest_prompt. What the "
            "vision towers keep and take is missing."
        )
    # A model that teaches itself needs a prompt that says more: where the dataset has none, nothing could be learned.
    if run.teacher_prompts or any(teacher.shape.name == run.student.name for teacher in run.teachers.values()):
        said.append(
            "The teacher's own prompts (teacher_prompt_column) are planned as long as the student's: where they are "
            "longer, its scoring takes longer and needs more memory."
        )
    if run.eager:
        said.append(
            "The scores of eager attention are in the memory of a card, and not in the time: attn_implementation sdpa "
            "needs less of both."
        )
    return said


def whole_line(plan: Plan) -> str:
    """The whole run in a sentence."""
    steps = plan.steps or 100
    taken = steps * plan.step_seconds
    if not math.isfinite(taken):
        return f"{steps} steps: never."
    hours = taken * plan.cards / 3600
    money = f", {hours * plan.price:,.0f} at {plan.price:g} a card-hour" if plan.price else ""
    more = "" if plan.steps else " (--steps for the whole)"
    return f"{steps} steps: {duration(taken)}, {card_hours(hours)}{money}{more}."


def card_hours(hours: float) -> str:
    """Card-hours, with a decimal where there are few."""
    return f"{hours:.1f} card-hours" if hours < 10 else f"{hours:.0f} card-hours"


def assumption_rows(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    """Option, value, meaning, source in a word and in full, of all that was assumed."""
    rows = [(a.option, f"{a.value:g}", f"{a.name}, tokens", "an assumption", a.why) for a in plan.run.assumed]
    for f in fields(Assumptions):
        value, default = getattr(plan.assumptions, f.name), f.default
        word, source = f.metadata["word"], f.metadata["source"]
        if value != default:
            word = "measured" if plan.hardware.measured else "given"
            source = f"{word}, in place of {default:g}"
        rows.append((f"--{f.name}", f"{value:g}", f.metadata["help"], word, source))
    return rows


def text(plan: Plan, sources: bool = False, fit: bool = False) -> str:
    """Returns the screen."""
    lines = [*wrapped(title(plan)), *wrapped(window_line(plan))]
    lines += [line for said in left_out(plan) for line in wrapped(said)]
    lines += ["Computed from configurations: nothing was run, no weights were loaded. GB are 10^9 bytes.", ""]
    lines += table(memory_rows(plan), markdown=False)
    lines += [f"A card has {gb(plan.hardware.memory)} GB, of which this plan may use {gb(plan.room)}.", ""]
    lines += table(time_rows(plan), markdown=False)
    lines += [whole_line(plan), ""]
    rows, budget = largest_rows(plan), largest_budget(plan)
    lines += [
        f"Largest that fits, each alone: per_device_train_batch_size {rows or 'none'}; scoring_token_budget "
        f"{budget or 'none'}.",
        "",
    ]
    if placed(plan):
        lines += [*table(placement_rows(plan), markdown=False), ""]
    lines += [*table(scale_rows(plan), markdown=False), *whys(plan), ""]
    lines += assumption_lines(plan, sources)
    lines += ["", *wrapped(verdict(plan))]
    if fit:
        lines += ["", proposal(plan)]
    return "\n".join(lines)


def wrapped(line: str, indent: str = "") -> list[str]:
    """A sentence in lines of the screen's width."""
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def assumption_lines(plan: Plan, sources: bool) -> list[str]:
    """What was assumed: its option, its value, its meaning and its source, the latter in full with `sources`."""
    rows = assumption_rows(plan)
    left = max(len(f"{option} {value}") for option, value, *_ in rows)
    middle = max(len(meaning) for _, _, meaning, *_ in rows)
    lines = ["Assumed, and how to change it:" + ("" if sources else " (--sources has the addresses)")]
    for option, value, meaning, word, source in rows:
        head = f"{option} {value}".ljust(left) + "  " + meaning
        lines.append(head if sources else f"{head.ljust(left + 2 + middle)}  {word}")
        lines += (
            [f"    {line}" for line in textwrap.wrap(source, WIDTH - 4, break_on_hyphens=False)] if sources else []
        )
    cards = f"--hardware {plan.hardware.name}: {plan.hardware.source}"
    return [*lines, *wrapped(cards, " " * 4)] if sources else lines


def proposal(plan: Plan) -> str:
    """Returns the settings of the fastest plan that fits, as YAML that can stand in a recipe."""
    best = fitted(plan)
    if best is None:
        return (
            "# Nothing fits on these cards that has the same mathematics. Take more cards, a shorter "
            "max_completion_length, or use_peft."
        )
    changes = changed_settings(plan.run, best.run)
    if not changes:
        return f"# These settings are the fastest that fit: a step of {duration(best.step_seconds)}."
    was = f"in place of {duration(plan.step_seconds)}" if plan.fits else "where the plan above does not fit"
    lines = [f"# a step of {duration(best.step_seconds)} {was}, {gb(best.peak)} of {gb(best.room)} GB (computed)"]
    return "\n".join([*lines, *(f"{name}: {json.dumps(value)}" for name, value in changes.items())])


def markdown(plan: Plan, fit: bool = False) -> str:
    """Returns the plan as sections of a page."""
    lines = [" ".join([f"**{title(plan)}.**", window_line(plan), *left_out(plan)]), ""]
    for rows in (memory_rows(plan), time_rows(plan), placement_rows(plan) if placed(plan) else [], scale_rows(plan)):
        if rows:
            lines += [*table(rows, markdown=True), ""]
    lines += [" ".join([*whys(plan), whole_line(plan), verdict(plan)])]
    if fit:
        lines += ["", "```yaml", proposal(plan), "```"]
    return "\n".join(lines)


def machine(plan: Plan, fit: bool = False) -> str:
    """Returns the plan as JSON, in bytes and seconds."""
    found: dict[str, Any] = {
        "title": title(plan),
        "verdict": verdict(plan),
        "fits": plan.fits,
        "too_long": too_long(plan),
        "memory_bytes": plan.memory,
        "peak_bytes": plan.peak,
        "room_bytes": plan.room,
        "seconds": {
            phase: {"seconds": cost.seconds, "dominant": cost.dominant, **asdict(cost)}
            for phase, cost in plan.costs.items()
        },
        "step_seconds": plan.step_seconds,
        "steps": plan.steps,
        "hours": plan.hours,
        "card_hours": plan.card_hours,
        "money": plan.card_hours * plan.price if plan.card_hours and plan.price else None,
        "largest_per_device_train_batch_size": largest_rows(plan),
        "largest_scoring_token_budget": largest_budget(plan),
        "teacher_placements": {kind: summary(other) for kind, other in placed(plan).items()},
        "cards": {
            str(gpus): other and {"peak_bytes": other.peak, "step_seconds": other.step_seconds, "fits": other.fits}
            for gpus in SCALES
            for other in [scaled(plan, gpus)]
        },
        "left_out": left_out(plan),
        "hardware": asdict(plan.hardware),
        "assumptions": [
            {"option": option, "value": value, "meaning": meaning, "source": source}
            for option, value, meaning, _, source in assumption_rows(plan)
        ],
    }
    if fit:
        best = fitted(plan)
        found["proposed"] = None if best is None else changed_settings(plan.run, best.run)
    return json.dumps(finite(found), indent=2, allow_nan=False)


def summary(plan: Plan) -> dict[str, Any]:
    """What is compared of plans."""
    return {"peak_bytes": plan.peak, "step_seconds": plan.step_seconds, "fits": plan.fits}


def finite(value: Any) -> Any:
    """Returns the same with `None` in place of numbers that are infinite, at any depth: JSON has none."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
