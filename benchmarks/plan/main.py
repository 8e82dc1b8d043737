"""Measures what was not measured yet, one setting after the other, and writes the page of all that was."""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.throughput.memory import ENVIRONMENT

from .page import PAGE, RESULTS, Measured, page, read_results
from .settings import SETTINGS, ZERO3


THREADS = "2"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": THREADS,
}


def measure(name: str, folder: Path) -> Measured:
    """Measure a setting in processes of its own."""
    setting = SETTINGS[name]
    environment = {**os.environ, **QUIET, **ENVIRONMENT}
    python = [sys.executable, "-m"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ["accelerate.commands.launch", "--config_file", str(ZERO3), "--main_process_port", port, "-m"]
    worker = ["benchmarks.plan.worker", str(folder)]
    made = [[*python, *worker, "--models", name]] if setting.zero3 else []
    for command in (*made, [*python, *(launch if setting.zero3 else []), *worker, name]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {' '.join(command)} failed.\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return taken_together([json.loads(file.read_text()) for file in sorted((folder / name).glob("seen.*.json"))])


def taken_together(seen: list[dict]) -> Measured:
    """Returns what the ranks have seen as one: the peak of each phase is that of the rank that takes most."""
    peaks = {phase: max(of["peaks"][phase] for of in seen) for phase in seen[0]["peaks"]}
    return {"first": seen[0]["first"], "peaks": peaks}


def main(argv: list[str] | None = None) -> int:
    """Run `python -m benchmarks.plan`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, metavar="NAME", help="measure these anew")
    chosen = parser.parse_args(argv).only
    results = read_results()
    for name in chosen or [name for name in SETTINGS if name not in results]:
        with tempfile.TemporaryDirectory(prefix="fire-opd-plan-") as folder:
            results[name] = measure(name, Path(folder))
        ordered = {name: results[name] for name in SETTINGS if name in results}
        RESULTS.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
        print(name, {phase: f"{size / 1e6:.0f} MB" for phase, size in results[name]["peaks"].items()}, flush=True)
    PAGE.write_text(page(results), encoding="utf-8")
    return 0
