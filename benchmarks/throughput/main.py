"""
`make bench`, `python -m benchmarks.throughput`: time, memory and growth of this trainer beside TRL's.

One run measures all arms in turn, on the same models, prompts and completions, with the rates of the machine among
them. It writes results.json, report.md and throughput.png.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fire_opd_trl.evaluation.files import write_json, write_whole
from fire_opd_trl.evaluation.statistics import scipy_special
from fire_opd_trl.evaluation.workers import WorkerFailed

from .measure import duration, measure_growth, measure_memory, measure_ranks, measure_timing, say
from .names import ARMS, EQUAL_LENGTHS
from .report import markdown
from .sizes import RANKS, SIZE_PRESETS, Size
from .summary import summarize


LIBRARIES = ("torch", "trl", "transformers", "accelerate")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.throughput",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog="presets:\n"
        + "\n".join(f"  {name:<8}{preset.about}" for name, preset in SIZE_PRESETS.items())
        + "\n\narms:\n"
        + "\n".join(f"  {name:<20}{what}" for name, what in ARMS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", choices=list(SIZE_PRESETS), default="small", help="sizes (default: small)")
    add("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    add("--arms", help="arms by name, separated by commas (default: all)")
    add("--rows", type=int, help="completions of a window (default: the preset's)")
    add("--mean_length", type=int, help="mean tokens of a completion (default: the preset's)")
    add("--max_to_mean", type=float, help="longest completion over the mean (default: 4)")
    add("--threads", type=int, default=available_cores(), help="threads of a worker (default: all cores)")
    add("--output", type=Path, default=Path("outputs/bench"), help="where the results go (default: outputs/bench)")
    for what in ("equal", "memory", "growth", "ranks"):
        add(f"--skip-{what}", f"--skip_{what}", action="store_true", help=f"do not measure {SECTIONS[what]}")
    return parser


SECTIONS = {
    "equal": "completions of equal length",
    "memory": "memory",
    "growth": "growth with rows, length and vocabulary",
    "ranks": "growth with the number of ranks",
}


def main(argv: list[str]) -> int:
    """Run the benchmark; the exit code is 1 if a worker failed, and 2 for misuse."""
    parser = build_parser()
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.arms.split(",")] if options.arms else list(ARMS)
    for name in names:
        if name not in ARMS:
            parser.error(f"--arms: there is no arm {name!r}. There are: {', '.join(ARMS)}.")
    try:
        scipy_special()
    except ImportError as error:
        parser.error(str(error))
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads: give at least 1.")
    try:
        size = asked_size(options)
    except ValueError as error:
        parser.error(str(error))
    say(f"preset {options.preset}: {SIZE_PRESETS[options.preset].about}")
    results = describe_run(options, names, size)
    began = time.monotonic()
    try:
        measure(results, options, names, size)
    except WorkerFailed as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured is in results.json", file=sys.stderr)
        return 130
    finally:
        save(results, options.output)
    for path in write_report(results, options.output):
        print(path)
    say(f"done after {duration(time.monotonic() - began)}")
    return 0


def asked_size(options: argparse.Namespace) -> Size:
    """The preset's size with what the options change in it, checked before anything starts."""
    asked = {name: getattr(options, name) for name in ("rows", "mean_length", "max_to_mean")}
    changes = {name: value for name, value in asked.items() if value is not None}
    size = replace(SIZE_PRESETS[options.preset].size, **changes)
    assert size.lengths
    size.accumulation(1 if options.skip_ranks else max(RANKS))
    return size


def measure(results: dict[str, Any], options: argparse.Namespace, names: list[str], size: Size) -> None:
    """Run the sections, and write what each measured into `results`, which is saved after it."""
    logs, threads, repeats = options.output / "logs", options.threads, options.repeats
    equal = [] if options.skip_equal else [name for name in EQUAL_LENGTHS if name in names]
    results["timing"], results["equal"] = measure_timing(names, size, equal, repeats, threads, logs)
    save(results, options.output)
    if not options.skip_memory:
        results["memory"] = measure_memory(names, size, threads, logs)
        save(results, options.output)
    if not options.skip_growth:
        results["growth"] = measure_growth(SIZE_PRESETS[options.preset].growth, min(3, repeats), threads, logs)
        save(results, options.output)
    if not options.skip_ranks:
        results["ranks"] = measure_ranks(size, min(3, repeats), logs)


def save(results: dict[str, Any], folder: Path) -> None:
    """Write what was measured so far."""
    write_json(folder / "results.json", results)


def write_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the results with their summary, the report and the picture; return the files."""
    found = results["summary"] = summarize(results)
    save(results, folder)
    picture: Path | None = folder / "throughput.png"
    try:
        from .pictures import draw

        draw(results, folder / "throughput.png")
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        picture = None
        print("no picture: pip install fire-opd-trl[report]", file=sys.stderr)
    write_whole(folder / "report.md", markdown(results, found, picture.name if picture else None))
    return [path for path in (folder / "results.json", folder / "report.md", picture) if path is not None]


def describe_run(options: argparse.Namespace, names: list[str], size: Size) -> dict[str, Any]:
    """What is known before anything is measured: options, machine, versions, sizes."""
    asked = {key: value for key, value in vars(options).items() if key != "output"}
    return {
        "options": {**asked, "arms": names},
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "versions": versions(),
        "commit": commit(),
        "size": asdict(size),
        "lengths": size.lengths,
        "growth_size": asdict(SIZE_PRESETS[options.preset].growth),
        **dict.fromkeys(("timing", "equal", "memory", "growth", "ranks")),
    }


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """The processor and its cores, and the GPU; not the name of the machine."""
    import torch

    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = named.group(1) if named else platform.machine()
    return {"cpu": cpu, "cores": available_cores(), "gpu": gpu, "dtype": "bfloat16" if gpu else "float32"}


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers."""
    from fire_opd_trl import __version__

    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"fire_opd_trl": __version__, "python": platform.python_version(), **found}


def commit() -> dict[str, Any] | None:
    """The commit of the checkout, and whether it was changed since; `None` outside one."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        if not git("ls-files", "--", "main.py"):
            return None  # installed inside some other checkout
        return {"hash": git("rev-parse", "--short=12", "HEAD").strip(), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
