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
from support.launches import SUPPORT, free_port, kill, started
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.demo.task import dataset
from fire_opd_trl.trainer.launched import Launched, failure


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


# A launcher that starts small processes


PROGRAM = """
import subprocess, sys
from fire_opd_trl.trainer import launched

launched.PATIENCE = {patience}
def launch():
    for _ in range({times}):  # a launcher that starts again what has ended
        subprocess.Popen([sys.executable, "-c", {child!r}, {folder!r}]).wait()
run = launched.Launched(launch)
print("code", run.run(), run.what_happened())
"""
# It does not end by itself, and has a child in a session of its own.
DEAF = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
(pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()
time.sleep(60)
"""
# It ends at SIGTERM, says so, and forgets its child.
POLITE = """
import os, pathlib, signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: (print("ended", flush=True), os._exit(143)))
(pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("child", "times", "patience", "signals", "said"),
    [
        (POLITE, 1, 60, [signal.SIGTERM], "ended\ncode 143 stopped by SIGTERM.\n"),
        (DEAF, 1, 60, [signal.SIGINT, signal.SIGINT], "code 130 stopped by Ctrl-C.\n"),
        (DEAF, 1, 0.5, [signal.SIGINT], "code 130 stopped by Ctrl-C.\n"),
        (POLITE, 3, 60, [signal.SIGTERM], "ended\ncode 143 stopped by SIGTERM.\n"),  # not started again
        (POLITE, 1, 60, [signal.SIGHUP], "code 129 stopped by SIGHUP.\n"),
    ],
    ids=["polite", "twice", "patience", "restarts", "hangup"],
)
def test_signals_are_passed_on_and_nothing_survives(tmp_path, child, times, patience, signals, said):
    (tmp_path / "ready").mkdir()
    program = PROGRAM.format(child=child, times=times, patience=patience, folder=str(tmp_path / "ready"))
    with running([sys.executable, "-c", program], tmp_path / "log") as process:
        wait_for(lambda: list((tmp_path / "ready").iterdir()), process, tmp_path / "log")
        everything = psutil.Process(process.pid).children(recursive=True)
        assert len(everything) == 2
        for number in signals:
            process.send_signal(number)
            time.sleep(0.3)
        assert process.wait(timeout=20) == 0 and alive(everything) == []
    assert (tmp_path / "log").read_text() == said


def test_the_exit_code_is_that_of_the_process_that_failed_first():
    def ended(error: BaseException | None) -> tuple[int, str]:
        def launch() -> None:
            if error is not None:
                raise error

        launched = Launched(launch)
        return launched.run(), launched.what_happened()

    ranks = {rank: ProcessFailure(rank, 10 + rank, code, "none") for rank, code in ((0, -15), (1, -9))}
    ranks[0].timestamp, ranks[1].timestamp = 8, 7  # the launcher has ended rank 0 because of rank 1
    assert ended(None) == (0, "")
    assert ended(subprocess.CalledProcessError(2, "python")) == (2, "")  # it has said what is refused
    assert ended(subprocess.CalledProcessError(1, "python")) == (1, "the run failed.")
    assert ended(subprocess.CalledProcessError(143, "python")) == (143, "stopped by SIGTERM.")  # by somebody else
    assert ended(ChildFailedError("python", ranks)) == (
        137,
        "rank 1 was killed by SIGKILL, most often for want of memory.",
    )
    with pytest.raises(ValueError, match="num_machines"):  # a refusal of the launcher itself
        failure(ValueError("num_machines"))


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
