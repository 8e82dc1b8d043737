"""
Seconds of some settings beside what `plan` says of them, on this machine. Each runs in a process of its own, after the
machine's rates were measured in the same process. All are seconds of one thread's CPU time, so that what else runs on
the machine counts less: it still shares caches and memory.

    python -m benchmarks.plan.times --output docs/plan/seconds.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fire_opd_trl.preflight.plan.hardware import Assumptions, Hardware, of_measured
from fire_opd_trl.preflight.plan.seconds import PHASES, seconds

from .settings import SETTINGS, Setting
from .worker import make_models, trainer_of


TIMED = {
    "base": "a student of 36 M parameters, a teacher of 95 M",
    "generate": "both of 36 M, transformers samples",
    "lora": "an adapter of rank 16 on 197 M, a teacher of 36 M",
}
CLOCKS = {"rollout": "time/rollout", "teacher scoring": "time/score_teacher", "student scoring": "time/score_student"}


def small(name: str) -> Setting:
    """A setting with few tokens, which is timed in a minute."""
    setting = SETTINGS[name]
    return replace(
        setting, completions=(64,), rows=2, accumulation=2, arguments={**setting.arguments, "logging_steps": 1}
    )


def time_setting(name: str, folder: Path) -> dict[str, Any]:
    """Train two steps of a setting; returns the rates of this machine and the seconds of the second step."""
    import torch
    import transformers

    import fire_opd_trl.scoring.clock as clock
    import fire_opd_trl.trainer.callbacks as callbacks
    from fire_opd_trl.preflight.plan.calibrate import measured_hardware

    time.perf_counter = clock.perf_counter = callbacks.perf_counter = time.process_time
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    hardware = measured_hardware(torch.device("cpu"))
    trainer = trainer_of(small(name), folder)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "time/update" in entry][-1]
    measured = {phase: last.get(clock, 0.0) for phase, clock in CLOCKS.items()}
    return {"name": name, "hardware": asdict(hardware), "seconds": {**measured, "update": last["time/update"]}}


def planned(record: dict[str, Any], folder: Path) -> dict[str, float]:
    """Returns what the plan says of the seconds of a recorded setting, at the rates that were measured beside it."""
    hardware = Hardware(**record["hardware"])
    run = small(record["name"]).planned(folder)
    costs = seconds(run, hardware, of_measured(Assumptions(), hardware, set()))
    return {phase: costs[phase].seconds for phase in PHASES}


def main() -> None:
    """Time all settings, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/plan/seconds.json"))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(time_setting(options.one[0], Path(options.one[1]))))
        return
    records = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in TIMED:
        with tempfile.TemporaryDirectory() as folder:
            make_models(SETTINGS[name], Path(folder))
            command = [sys.executable, "-m", "benchmarks.plan.times", "--one", name, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            records.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, records[-1]["seconds"], planned(records[-1], Path(folder)), flush=True)
            options.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
