"""`fire-opd train` and signals: they are passed on, nothing survives, and one line says how to go on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import launches
from support.launches import SUPPORT, free_port, kill, run_killably, started

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.demo.task import dataset


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def running(command: list[str], log: Path, **environment: str):
    """A command that is killed at the end, with all that it started."""
    with log.open("w") as output:
        process = started(command, output, **environment)
    try:
        yield process
    finally:
        kill(process)


def wait_for(what, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + launches.HARD_KILL_SECONDS
    while not what():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.05)


# The real thing


@pytest.mark.launch
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_ends_all_of_a_run_with_one_line_that_says_how_to_go_on(tmp_path, ranks):
    """SIGTERM that the parent alone gets, with one process; Ctrl-C twice with two ranks of DeepSpeed ZeRO-3."""
    dataset("train", 64).to_json(tmp_path / "addition.jsonl")
    output_dir, log = tmp_path / "student", tmp_path / "log"
    where = ["cpu"] if ranks == 1 else [str(SUPPORT / "zero3_cpu.yaml"), "--main_process_port", str(free_port())]
    command = [
        *(sys.executable, "-m", "fire_opd_trl.cli", "train", "--accelerate_config", *where, "--config", "smoke"),
        *("--model_name_or_path", model_path("student"), "--teacher_model_name_or_path", model_path("teacher")),
        *("--dataset_name", str(tmp_path / "addition.jsonl"), "--output_dir", str(output_dir)),
        *("--max_steps", "1000", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2"),
    ]
    with running(command, log, HF_HOME=str(tmp_path / "hf")) as process:
        wait_for(lambda: list(output_dir.glob("checkpoint-*/trainer_state.json")), process, log)
        everything = psutil.Process(process.pid).children(recursive=True)
        assert len(everything) >= ranks
        if ranks == 1:
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
            time.sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=40) == (143 if ranks == 1 else 130)
        assert alive(everything) == []
    output = log.read_text()
    last = sorted(output_dir.glob("checkpoint-*/trainer_state.json"), key=os.path.getmtime)[-1].parent
    assert "Traceback" not in output, output
    assert output.endswith(
        f"\n\nfire-opd train: stopped by {'SIGTERM' if ranks == 1 else 'Ctrl-C'}. The last checkpoint is {last}; "
        "the same command with --resume_from_checkpoint true goes on from it.\n"
    ), output
