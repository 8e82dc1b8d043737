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

from .page import PAGE, RESULTS, page, read_results
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


def measure(name: str, folder: Path) -> dict[str, int]:
    """Measure a setting in processes of its own; returns the peak of each phase, of the rank that takes most."""
    setting = SETTINGS[name]
    environment = {**os.environ, **QUIET, **ENVIRONMENT}
    python = [sys.executable, "-m"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ["accelerate.commands.launch", "--config_file", str(ZERO3), "--main_process_port", port, "-m"]
    worker, output = "benchmarks.plan.worker", folder / "seen.json"
    for command in (
        [*python, worker, "--models", name, str(folder)],
        [*python, *(launch if setting.zero3 else []), worker, name, str(folder), str(output)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {' '.join(command)} failed.\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    seen = [json.loads(file.read_text())["peaks"] for file in sorted(folder.glob("seen.*.json"))]
    return {phase: max(peaks[phase] for peaks in seen) for phase in seen[0]}


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
        print(name, {phase: f"{size / 1e6:.0f} MB" for phase, size in results[name].items()}, flush=True)
    PAGE.write_text(page(results), encoding="utf-8")
    return 0
