"""
`fire-opd compare`: train a student with many methods and seeds, and say which differ.

The student is the embedded one, or with `--task real` a language model (SmolLM2-135M-Instruct) that learns sums.
An arm is a method with its settings. All arms get the same student, teacher, prompts, seeds and number of updates,
with as many completions in each. Every finished run has a file: an interrupted comparison goes on where it was, and
presets share the runs of the arms they have in common.
"""

import argparse
import math
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...spelling import did_you_mean
from ..files import write_whole
from ..statistics import scipy_special
from ..workers import Answer, Job, Worker, do_jobs
from .presets import ARMS, PRESETS, Arm, selected
from .records import OtherSettings, error_path, finished_run, one_settings, run_path


# Of one worker, with its share of the evaluations: 211 runs of 60 updates took 40 s each (docs/comparison); those of
# the real pair are in docs/real_pair.
SECONDS_OF_AN_UPDATE = {"embedded": 0.67, "real": 25.0}


def build_parser() -> argparse.ArgumentParser:
    arms = textwrap.fill("; ".join(ARMS), 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    parser = argparse.ArgumentParser(
        "fire-opd compare",
        usage="%(prog)s --preset NAME | --methods ARM,ARM,... [--OPTION VALUE ...]",
        description=textwrap.fill((__doc__ or "").split("\n\n", 1)[1].replace("\n", " "), 78),
        epilog=f"presets:\n{table_of_presets()}\n\narms, for --methods:\n{arms}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", type=preset_name, metavar="NAME", help="which arms: one of the presets below")
    add("--task", choices=("embedded", "real"), help="what is learned (default: embedded, or the preset's)")
    add("--methods", metavar="ARMS", help="arms by name, separated by commas, in place of those of a preset")
    add("--seeds", type=int, metavar="INT", help="seeds of each arm (default: the preset's, mostly 8)")
    add("--reward_seeds", type=int, metavar="INT", help="seeds of arms with several completions a prompt (at most 5)")
    add("--steps", type=int, metavar="INT", help="updates of each run (default: the preset's, mostly 60)")
    add("--problems", type=int, metavar="INT", help="held-out problems (default: the preset's, mostly 2000)")
    add("--workers", type=int, metavar="INT", default=2, help="processes of one thread; 0: this one (default: 2)")
    add("--output_dir", type=Path, default=Path("outputs/compare"), help="runs, reports (default: outputs/compare)")
    add("--only_report", action="store_true", help="run nothing; report on the runs that there are")
    add("--overwrite", action="store_true", help="throw away the runs of these arms, and run them again")
    return parser


def table_of_presets(workers: int = 2) -> str:
    """Returns the presets, a line for each, with the number of their runs, and how long these take."""
    lines = [f"  {'name':<14}{'runs':>4}  {f'on {workers} cores':<13}question"]
    for name, preset in PRESETS.items():
        runs = len(plan([ARMS[arm] for arm in preset.arms], preset.seeds))
        title = textwrap.wrap(preset.title, 43)
        lines.append(f"  {name:<14}{runs:>4}  {duration(runs, preset.steps, workers, preset.task):<13}{title[0]}")
        lines += [" " * 35 + line for line in title[1:]]
    return "\n".join(lines)


def duration(runs: int, steps: int, workers: int, task: str = "embedded") -> str:
    """Returns about how long so many runs take, in words."""
    minutes = math.ceil(runs / max(workers, 1)) * steps * SECONDS_OF_AN_UPDATE[task] / 60
    return f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(1, round(minutes))} min"


def arm_names(text: str) -> list[str]:
    """Split names at commas. Some names have commas themselves: the longest one that exists is taken."""
    parts, names = [part.strip() for part in text.split(",")], []
    while parts:
        ends = [end for end in range(len(parts), 0, -1) if ", ".join(parts[:end]) in ARMS]
        end = ends[0] if ends else 1
        names.append(", ".join(parts[:end]))
        parts = parts[end:]
    return names


def preset_name(name: str) -> str:
    """Return the full name of a preset: `table5` is short for `paper-table5`."""
    return f"paper-{name}" if f"paper-{name}" in PRESETS else name


def main(argv: list[str] | None = None) -> int:
    """Run `fire-opd compare`; the exit code is 1 if a run failed or there was nothing to report, and 2 for misuse."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.preset is None and options.methods is None and options.task != "real":
        print(
            "Nothing was started. Choose what to compare with --preset, or arms of your own\n"
            f"with --methods. Interrupted comparisons go on where they were.\n\n{table_of_presets()}\n\n"
            "For example:\n  fire-opd compare --preset smoke\n  fire-opd compare --methods opd,fire,tip --seeds 4\n",
            file=sys.stderr,
        )
        return 2
    if options.preset not in (None, *PRESETS):
        hint = did_you_mean(options.preset, [*PRESETS, *(name.removeprefix("paper-") for name in PRESETS)])
        parser.error(f"--preset: there is no preset {options.preset!r}.{hint} Presets: {', '.join(PRESETS)}.")
    preset = PRESETS[options.preset or ("real" if options.task == "real" else "all")]
    task = options.task or preset.task
    names = arm_names(options.methods) if options.methods else None
    for name in names or []:
        if name not in ARMS:
            parser.error(f"--methods: there is no arm {name!r}.{did_you_mean(name, ARMS) or ' --help lists them.'}")
    for name in ("seeds", "reward_seeds", "steps", "problems"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: give at least 1.")
    if options.workers < 0:
        parser.error(f"--workers {options.workers}: give at least 0.")
    try:
        scipy_special()
    except ImportError as error:
        parser.error(str(error))
    arms = selected(preset, names)
    title = "selection" if names else options.preset or "real"
    wanted = plan(arms, options.seeds or preset.seeds, options.reward_seeds)
    settings = asked_settings(
        options, preset if task == preset.task else PRESETS["real" if task == "real" else "all"], task
    )
    failed: list[str] = []
    try:
        if not options.only_report:
            options.output_dir.mkdir(parents=True, exist_ok=True)  # or nothing starts
            if options.overwrite:
                for arm, seed in wanted:
                    run_path(options.output_dir, arm, seed).unlink(missing_ok=True)
            prepare(options.output_dir, task)
            failed = run_missing(options.output_dir, wanted, settings, options.workers)
        found = [finished_run(options.output_dir, arm, seed) for arm, seed in wanted]
        runs = [run for run in found if run is not None]
        if runs:
            one_settings(runs)
    except OtherSettings as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, and the same command goes on from them", file=sys.stderr)
        return 130
    if runs:
        from .report import write_report

        what = preset.title if not names else "A selection of arms"
        for path in write_report(runs, arms, options.output_dir / title, what, expected=len(wanted)):
            print(path)
    else:
        print(f"nothing to report: no finished run of these arms in {options.output_dir}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(wanted)} runs failed:", *failed, sep="\n  ", file=sys.stderr)
    return 0 if runs and not failed else 1


def asked_settings(options: argparse.Namespace, preset, task: str) -> dict[str, Any]:
    """The settings that all runs share, from the command line and the preset."""
    from .runs import shared_settings

    problems = options.problems or preset.problems
    steps = options.steps or preset.steps
    return shared_settings(steps, problems, min(problems, preset.curve_problems), preset.curve_every, task)


def prepare(folder: Path, task: str) -> None:
    """Make what all runs of a task need, once, before workers start."""
    from .runs import TASKS

    TASKS[task].prepare(folder / "models")


def plan(arms: list[Arm], seeds: int, reward_seeds: int | None = None) -> list[tuple[Arm, int]]:
    """All runs, seed by seed, so that every arm has its first seed before any has its second."""
    limit = reward_seeds if reward_seeds is not None else min(seeds, 5)
    many = max(seeds, limit)
    return [(arm, seed) for seed in range(many) for arm in arms if seed < (limit if arm.generations > 1 else seeds)]


def run_missing(folder: Path, wanted: list[tuple[Arm, int]], settings: dict[str, Any], workers: int) -> list[str]:
    """
    Do the runs that are not there yet, with a line of progress for each.

    Args:
        folder (`Path`): The output folder.
        wanted (`list[tuple[Arm, int]]`): Arms and seeds.
        settings (`dict`): From `runs.shared_settings`.
        workers (`int`): Number of processes; with 0 this one does all runs.

    Returns:
        `list[str]`: The failed runs, one sentence each.
    """
    missing = [pair for pair in wanted if finished_run(folder, *pair, settings) is None]
    total, done = len(wanted), len(wanted) - len(missing)
    if done:
        print(f"{done} of {total} runs are there already")
    if missing:
        about = duration(len(missing), settings["steps"], workers, settings.get("task", "embedded"))
        print(f"{len(missing)} runs of {settings['steps']} updates, {max(workers, 1)} at a time: about {about}")
    jobs: list[Job] = [
        {"folder": str(folder), "arm": asdict(arm), "seed": seed, "settings": settings} for arm, seed in missing
    ]
    failed: list[str] = []
    started, finished = time.monotonic(), 0

    def on_answer(job: Job, answer: Answer):
        nonlocal finished
        finished += 1
        arm = Arm(**job["arm"])
        label = f"[{done + finished:>{len(str(total))}}/{total}] {arm.name} seed {job['seed']}"
        if answer["error"]:
            path = error_path(folder, arm, job["seed"])
            if not path.is_file():  # the worker died, and wrote no traceback
                write_whole(path, answer["error"] + "\n")
            failed.append(f"{arm.name} seed {job['seed']}: {path}")
            what = f"FAILED: {answer['error']}"
        else:
            what = f"{100 * answer['before']:.1f} -> {100 * answer['after']:.1f} %  {answer['seconds']:.0f} s"
        half_done = min(max(workers, 1) - 1, len(jobs) - finished) / 2  # what the other workers are in the middle of
        spent = finished + half_done
        left = (time.monotonic() - started) / spent * (len(jobs) - spent)
        print(f"{label}: {what}   {remaining(left)}", flush=True)

    if workers:
        do_jobs(jobs, workers, start_worker, on_answer)
    else:
        from . import runs

        runs.silence_libraries()
        for job in jobs:
            on_answer(job, runs.try_job(job))
    return failed


def start_worker() -> Worker:
    """Start a process that does runs on one thread, without a GPU."""
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return Worker("the worker process", f"{__package__}.runs:do_jobs_of", environment=environment)


def remaining(seconds: float) -> str:
    """The time that is left, in words."""
    if seconds <= 0:
        return "done"
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {max(1, round(seconds))} s left"


if __name__ == "__main__":
    raise SystemExit(main())
