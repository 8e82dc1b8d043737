"""
`fire-opd bench`: time, memory and growth of this trainer beside TRL's.

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

from .measure import duration, growth, memories, ranks, say, timing
from .names import ARMS, EQUAL_LENGTHS
from .processes import WorkerFailed
from .sizes import PRESETS, RANKS, Size
from .summary import summary
from .tables import markdown


LIBRARIES = ("torch", "trl", "transformers", "accelerate")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fire-opd bench",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog="presets:\n"
        + "\n".join(f"  {name:<8}{preset.about}" for name, preset in PRESETS.items())
        + "\n\narms:\n"
        + "\n".join(f"  {name:<15}{what}" for name, what in ARMS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole = parser.add_argument
    whole("--preset", choices=list(PRESETS), default="small", help="sizes (default: small)")
    whole("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    whole("--arms", help="arms by name, separated by commas (default: all)")
    whole("--rows", type=int, help="completions of a window (default: the preset's)")
    whole("--mean_length", type=int, help="mean tokens of a completion (default: the preset's)")
    whole("--max_to_mean", type=float, help="longest completion over the mean (default: 4)")
    whole("--threads", type=int, default=available_cores(), help="threads of a worker (default: all cores)")
    whole("--output", type=Path, default=Path("outputs/bench"), help="where the results go (default: outputs/bench)")
    for what in ("equal", "memory", "growth", "ranks"):
        whole(f"--skip-{what}", f"--skip_{what}", action="store_true", help=f"do not measure {SECTIONS[what]}")
    return parser


SECTIONS = {
    "equal": "completions of equal length",
    "memory": "memory",
    "growth": "growth with rows, length and vocabulary",
    "ranks": "growth with the number of ranks",
}


def main(argv: list[str]) -> int:
    """Run `fire-opd bench`; the exit code is 1 if a worker failed, and 2 for misuse."""
    parser = build_parser()
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.arms.split(",")] if options.arms else list(ARMS)
    for name in names:
        if name not in ARMS:
            parser.error(f"--arms: there is no arm {name!r}. There are: {', '.join(ARMS)}.")
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads: give at least 1.")
    try:
        size = asked_size(options)
    except ValueError as error:
        parser.error(str(error))
    say(f"preset {options.preset}: {PRESETS[options.preset].about}")
    results = head(options, names, size)
    began = time.monotonic()
    try:
        measure(results, options, names, size)
    except WorkerFailed as error:
        print(f"fire-opd bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured is in results.json", file=sys.stderr)
        return 130
    finally:
        save(results, options.output)
    for path in report(results, options.output):
        print(path)
    say(f"done after {duration(time.monotonic() - began)}")
    return 0


def asked_size(options: argparse.Namespace) -> Size:
    """The preset's size with what the options change in it, checked before anything starts."""
    asked = {name: getattr(options, name) for name in ("rows", "mean_length", "max_to_mean")}
    size = replace(PRESETS[options.preset].size, **{name: value for name, value in asked.items() if value is not None})
    assert size.lengths
    size.accumulation(1 if options.skip_ranks else max(RANKS))
    return size


def measure(results: dict[str, Any], options: argparse.Namespace, names: list[str], size: Size) -> None:
    """Run the sections into `results`, which is saved after each."""
    logs, threads, repeats = options.output / "logs", options.threads, options.repeats
    equal = [] if options.skip_equal else [name for name in EQUAL_LENGTHS if name in names]
    results["timing"], results["equal"] = timing(names, size, equal, repeats, threads, logs)
    save(results, options.output)
    if not options.skip_memory:
        results["memory"] = memories(names, size, threads, logs)
        save(results, options.output)
    if not options.skip_growth:
        results["growth"] = growth(PRESETS[options.preset].growth, min(3, repeats), threads, logs)
        save(results, options.output)
    if not options.skip_ranks:
        results["ranks"] = ranks(size, min(3, repeats), logs)


def save(results: dict[str, Any], folder: Path) -> None:
    """Write what there is."""
    write_json(folder / "results.json", results)


def report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the results with their summary, the tables and the picture; the files."""
    found = results["summary"] = summary(results)
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


def head(options: argparse.Namespace, names: list[str], size: Size) -> dict[str, Any]:
    """What is known before anything is measured."""
    asked = {key: value for key, value in vars(options).items() if key != "output"}
    return {
        "options": {**asked, "arms": names},
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "size": asdict(size),
        "lengths": size.lengths,
        "growth_size": asdict(PRESETS[options.preset].growth),
        **dict.fromkeys(("timing", "equal", "memory", "growth", "ranks")),
    }


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor and cores, or the GPU, without the machine's name."""
    import torch

    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = named.group(1) if named else platform.machine()
    return {"cpu": cpu, "cores": available_cores(), "gpu": gpu, "dtype": "bfloat16" if gpu else "float32"}


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from fire_opd_trl import __version__

    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"fire_opd_trl": __version__, "python": platform.python_version(), **found}


def commit() -> dict[str, Any] | None:
    """The commit of the checkout, and whether it was changed since; `None` outside one."""

    def said(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        if not said("ls-files", "--", "main.py"):
            return None  # installed inside some other checkout
        return {"hash": said("rev-parse", "--short=12", "HEAD").strip(), "dirty": bool(said("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
