"""
The tables of the pages about plans, which are what `fire-opd plan` says now. A test compares them.

    python -m benchmarks.plan.pages          # writes them anew
"""

import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from fire_opd_trl.preflight.packaged import accelerate_configs, training_script
from fire_opd_trl.preflight.plan import report
from fire_opd_trl.preflight.plan.fit import Plan, scaled
from fire_opd_trl.preflight.plan.hardware import HARDWARE, Assumptions
from fire_opd_trl.preflight.plan.run import Engine, PlannedRun
from fire_opd_trl.preflight.plan.seconds import PHASES
from fire_opd_trl.preflight.plan.seconds import seconds as seconds_of
from fire_opd_trl.preflight.plan.shapes import config_for, shape_of
from fire_opd_trl.preflight.plan_arguments import make_parser
from fire_opd_trl.preflight.plan_command import plan_of_command


DOCS = Path(__file__).parents[2] / "docs"
BLOCK = r"(<!-- plan: {} -->\n).*?(<!-- end of plan -->)"
PAPER = "--config strong-to-weak --accelerate_config zero3 --hardware h100 --steps 165"
LORA = "--config lora-24gb --accelerate_config single_gpu --hardware rtx4090 --steps 116"
STATISTICS = (62, 168)  # bytes of a row and of a window that each rank sends: docs/throughput.md


@lru_cache
def planned(command: str) -> Plan:
    """The plan of `fire-opd plan *command`."""
    options, rest = make_parser().parse_known_args(command.split())
    config = accelerate_configs()[options.accelerate_config] if options.accelerate_config else None
    with redirect_stderr(io.StringIO()):  # libraries say what they lack on this machine
        return plan_of_command(training_script(), rest, config, options)


def markdown(rows: list[list[str]]) -> str:
    """A table of markdown."""
    return "\n".join(report.table(rows, markdown=True))


def screen(command: str) -> str:
    """What the terminal shows."""
    return f"```\n$ fire-opd plan {command}\n{report.text(planned(command))}\n```"


def memory(command: str) -> str:
    """Memory by component and phase."""
    return markdown(report.memory_rows(planned(command)))


def assumptions() -> str:
    """What is assumed where nothing is measured, and where it comes from."""
    rows = [["option", "value", "what it is", "source"]]
    plan = replace(planned(PAPER), run=replace(planned(PAPER).run, assumed=()))
    rows += [[f"`{option}`", value, what, source] for option, value, what, _, source in report.assumption_rows(plan)]
    return markdown(rows).replace("---:", "---")


def cards() -> str:
    """The table of hardware."""
    rows = [
        ["card", "memory, GB", "bf16, T op/s", "memory, TB/s", "link, GB/s", "network, GB/s", "host, GB/s", "source"]
    ]
    for card in HARDWARE.values():
        rates = (card.link, card.network, card.host)
        numbers = [f"{card.memory / 1e9:.1f}", f"{card.operations / 1e12:.3g}", f"{card.bandwidth / 1e12:.3g}"]
        rows.append([f"`{card.name}`", *numbers, *(f"{rate / 1e9:.3g}" for rate in rates), card.source])
    return markdown(rows).replace("---: |\n", "--- |\n", 1)  # a source is a text


# Published: model, cards, completions of a window, optimizer steps of it, cards of an engine, longest and mean
# sequence, seconds. From NVIDIA's table for NeMo RL 0.4 (GRPO, on policy, H100, bfloat16).
PUBLISHED = (
    ("Llama-3.1-8B-Instruct", 16, 2048, 4, 1, 4096, 1060, 97.7),
    ("Qwen3-32B", 32, 2048, 4, 4, 4096, 3206, 393),
    ("Qwen3-30B-A3B", 32, 2048, 4, 4, 4096, 3154, 225),
    ("Qwen3-235B-A22B", 128, 512, 1, 16, 8192, 5671, 506),
)


def published() -> str:
    """Seconds of others beside those of a plan."""
    rows = [["model", "cards", "window", "published, s", "planned, s", "planned / published", "rollout", "update"]]
    for name, gpus, window, steps, tensor_parallel, longest, mean, took in PUBLISHED:
        per_card, prompt = window // gpus, 150
        run = PlannedRun(
            student=shape_of(config_for(name), name),
            gpus=gpus,
            sharding="zero3",
            student_bits=16,
            autocast=False,
            accumulation=per_card // steps,
            steps_per_generation=per_card,
            num_generations=16,
            prompt_mean=prompt,
            prompt_longest=512,
            completion_mean=mean - prompt,
            completion_longest=longest - prompt,
            engine=Engine("colocate", memory=0.6, tensor_parallel=tensor_parallel, sleeps=True),
            scoring_token_budget=32768,
        )
        costs = seconds_of(run, HARDWARE["h100"], Assumptions())
        whole = {phase: steps * cost.seconds for phase, cost in costs.items()}
        total = sum(whole.values())
        parts = [f"{whole['rollout']:.0f}", f"{whole['update']:.0f}"]
        rows.append([name, f"{gpus}", f"{window}", f"{took:g}", f"{total:.0f}", f"{total / took:.2f}", *parts])
    return markdown(rows)


def measured() -> str:
    """Seconds that were measured on a CPU beside those of a plan with the rates of the same process."""
    from .times import TIMED
    from .times import planned as planned_seconds

    rows = [["setting", "T op/s", *(f"{head}: measured, planned" for head in report.HEADS)]]
    for record in json.loads((DOCS / "plan" / "seconds.json").read_text()):
        with tempfile.TemporaryDirectory() as folder:
            plan, seen = planned_seconds(record, Path(folder)), record["seconds"]
        pairs = [f"{seen[phase]:.1f}, {plan[phase]:.1f}" if seen[phase] > 0.05 else "given" for phase in PHASES]
        speed = f"{record['hardware']['operations'] / 1e12:.3f}"
        rows.append([TIMED[record["name"]], speed, *pairs])
    return markdown(rows)


# The paper's run

CHANGES = {
    "as it is": "",
    "H200": "--hardware h200",
    "A100": "--hardware a100",
    "16 H100 in two machines": "--num_processes 16 --gradient_accumulation_steps 16",
    "completions of 2048 in the mean": "--mean_completion 2048",
    "completions of 8192 in the mean": "--mean_completion 8192",
    "an engine with 0.3 of the card": "--vllm_gpu_memory_utilization 0.3",
    "an engine that stays awake": "--vllm_enable_sleep_mode false",
    "the teacher in host memory": "--teacher_placement offload",
    "micro-batches of 1 x 128": "--per_device_train_batch_size 1 --gradient_accumulation_steps 128",
    "`scoring_token_budget` of 128 k": "--scoring_token_budget 131072",
    "nothing is dropped (`opd`)": "--method opd",
    "whole distributions (`opd_full`)": "--method opd_full",
    "a dense teacher, Qwen3-32B": "--teacher_model_name_or_path Qwen/Qwen3-32B",
    "a student of Qwen3-8B": "--model_name_or_path Qwen/Qwen3-8B",
}


def compared(plans: Iterator[tuple[str, Plan]]) -> str:
    """Plans in a table, a row each."""
    rows = [["", "peak, GB", *report.HEADS, "step", "hours", "card-hours", "fits"]]
    for name, plan in plans:
        times = [report.duration(plan.costs[phase].seconds) for phase in PHASES]
        whole = [f"{plan.hours:.1f}", f"{plan.card_hours:.0f}"] if plan.hours and plan.card_hours else ["", ""]
        fits = "yes" if plan.fits else f"no: {plan.peak_phase}"
        rows.append([name, report.gb(plan.peak), *times, report.duration(plan.step_seconds), *whole, fits])
    return markdown(rows)


def changes() -> str:
    """The paper's run with one thing changed."""
    return compared((name, planned(f"{PAPER} {said}".strip())) for name, said in CHANGES.items())


# Internet scale

PAIRS = {
    "Llama-3.1-8B from Llama-3.1-70B": ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"),
    "Qwen3-8B from Qwen3-235B-A22B": ("Qwen/Qwen3-8B", "Qwen/Qwen3-235B-A22B"),
}
SCALES = (64, 128, 256, 512)


def large(name: str) -> Plan:
    """The paper's run with a larger pair, on 64 cards, with as many completions a card as the paper has."""
    student, teacher = PAIRS[name]
    return planned(
        f"--config strong-to-weak --accelerate_config zero3 --num_processes 64 --hardware h100 --model_name_or_path "
        f"{student} --teacher_model_name_or_path {teacher} --scoring_token_budget 131072"
    )


def at(plan: Plan, gpus: int, grows: bool) -> Plan | None:
    """The plan on more cards: with the same window, or with the same rows a card."""
    return plan.of(replace(plan.run, gpus=gpus, gpus_per_node=8)) if grows else scaled(plan, gpus)


def growth(name: str, grows: bool) -> str:
    """A pair on more and more cards."""
    rows = [["cards", "window", "peak, GB", *report.HEADS, "step", "card-hours / M completions", "statistics", "fits"]]
    for gpus in SCALES:
        plan = at(large(name), gpus, grows)
        assert plan is not None, "the window is a power of two"
        window = plan.run.window
        times = [report.duration(took) for took in (*(plan.costs[p].seconds for p in PHASES), plan.step_seconds)]
        sent = STATISTICS[0] * window + STATISTICS[1] * gpus
        hours = plan.step_seconds / 3600 * gpus / window * 1e6
        numbers = [f"{hours:.0f}", f"{sent / 1e6:.2f} MB", "yes" if plan.fits else "no"]
        rows.append([str(gpus), str(window), report.gb(plan.peak), *times, *numbers])
    return markdown(rows)


def links(name: str) -> str:
    """Bytes that reach a card in one step, by what they are."""
    rows = [["cards", "teacher's weights, GB", "student's weights, GB", "gradients, GB", "statistics, GB"]]
    for gpus in SCALES:
        plan = at(large(name), gpus, grows=True)
        assert plan is not None
        run, (teacher,) = plan.run, plan.run.teachers.values()
        share = (gpus - 1) / gpus
        tokens = run.rows * run.steps_per_generation * run.mean
        forwards = -(-tokens // max(run.scoring_token_budget, run.longest))
        gathers = run.accumulation * (2 + run.gradient_checkpointing) + forwards
        parts = (
            forwards * teacher.shape.parameters * teacher.bits / 8,
            gathers * run.student.parameters * 2,
            run.accumulation * run.student.parameters * 2,
        )
        statistics = STATISTICS[0] * run.window + STATISTICS[1] * gpus
        rows.append([str(gpus), *(f"{share * part / 1e9:.0f}" for part in parts), f"{statistics / 1e9:.4f}"])
    return markdown(rows)


def placements(name: str) -> str:
    """Where a pair's teacher can be, on 64 cards."""
    return markdown(report.placement_rows(large(name)))


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "plan.md": {
        "screen": lambda: screen("--config strong-to-weak --accelerate_config zero3 --steps 165"),
        "assumptions": assumptions,
        "cards": cards,
        "published": published,
        "measured": measured,
    },
    "paper_run.md": {
        "memory": lambda: memory(PAPER),
        "time": lambda: markdown(report.time_rows(planned(PAPER))),
        "placements": lambda: markdown(report.placement_rows(planned(PAPER))),
        "cards": lambda: markdown(report.scale_rows(planned(PAPER))),
        "changes": changes,
    },
    "internet_scale.md": {
        name: block
        for n, pair in enumerate(PAIRS, 1)
        for name, block in (
            (f"rows {n}", partial(growth, pair, True)),
            (f"window {n}", partial(growth, pair, False)),
            (f"links {n}", partial(links, pair)),
            (f"placements {n}", partial(placements, pair)),
        )
    },
    "hardware.md": {"lora": lambda: memory(LORA), "paper": lambda: memory(PAPER)},
}


def written(page: str, text: str) -> str:
    """The text of a page with its blocks as they are now."""
    for name, block in PAGES[page].items():
        pattern = BLOCK.format(re.escape(name))
        if not re.search(pattern, text, re.DOTALL):
            raise ValueError(f"docs/{page} has no block {name!r}: <!-- plan: {name} --> ... <!-- end of plan -->")
        before, after = re.split(pattern, text, maxsplit=1, flags=re.DOTALL)[::3]
        text = f"{before}<!-- plan: {name} -->\n{block()}\n<!-- end of plan -->{after}"
    return text


def main() -> int:
    """Write all pages anew; returns how many have changed."""
    changed = 0
    for page in PAGES:
        old = (DOCS / page).read_text(encoding="utf-8")
        new = written(page, old)
        (DOCS / page).write_text(new, encoding="utf-8")
        changed += new != old
        print(f"docs/{page}: {'written anew' if new != old else 'as it was'}")
    return changed


if __name__ == "__main__":
    main()
    sys.exit()
