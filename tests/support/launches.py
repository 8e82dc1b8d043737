"""
Launches of real ranks that cannot hang. Two ranks are started once for each launcher, by torchrun or by `accelerate
launch`, and import everything once (`rank.py`); each case then runs in processes that they fork.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest


SUPPORT = Path(__file__).parent
HARD_KILL_SECONDS = 240

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
LAUNCHERS = {
    "ddp": TORCHRUN,
    "fsdp2": TORCHRUN,
    "zero2": [*ACCELERATE, str(SUPPORT / "zero2_cpu.yaml"), "--main_process_port"],
    "zero3": [*ACCELERATE, str(SUPPORT / "zero3_cpu.yaml"), "--main_process_port"],
}
FSDP2_ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def started(command: list[str], output, **environment: str) -> subprocess.Popen:
    """
    A command in a process group of its own, with one thread and without a GPU. It hears signals, also where the tests
    run in the background of a shell or under nohup, which ignore some.
    """
    return subprocess.Popen(
        command,
        preexec_fn=hear_signals,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def kill(process: subprocess.Popen) -> None:
    """Kill a command with all that it started: the ranks of a launcher have sessions of their own."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(started, timeout=10)


def run_killably(command: list[str], timeout: float = HARD_KILL_SECONDS, **environment: str):
    """Run a command in a process group of its own; at the timeout all of it is killed and the test fails."""
    process = started(command, subprocess.PIPE, **environment)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        pytest.fail(f"killed after {timeout} s: {' '.join(command)}\n{output[-4000:]}")
    return process.returncode, output


class Pair:
    """
    Two ranks of one launcher that wait for work. They are launched when the first is asked for, and again after a
    work that failed or hung: then all processes are killed, so that no later test inherits anything of it.
    """

    def __init__(self, launcher: str, bare: bool = False):
        """`bare`: for works that need none of what `rank.py` imports."""
        self.launcher, self.bare, self.process, self.number = launcher, bare, None, 0

    def launch(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"ranks-{self.launcher}-"))
        command = [*LAUNCHERS[self.launcher], str(free_port()), str(SUPPORT / "rank.py")]
        environment = FSDP2_ENVIRONMENT if self.launcher == "fsdp2" else {}
        with (self.folder / "log").open("w") as log:
            arguments = [str(self.folder), str(os.getpid()), *(["bare"] if self.bare else [])]
            # What a work leaves in the temporary folder goes with this one: forks do not clean up at their exit.
            self.process = started([*command, *arguments], log, TMPDIR=str(self.folder), **environment)
        self.number = 0

    def run(self, work: str, *arguments, environment: dict | None = None, timeout: float = HARD_KILL_SECONDS) -> None:
        """Call `work`, a function as "module:name", on both ranks; both must leave it with exit code 0."""
        if self.process is None:
            self.launch()
        name = f"{self.launcher}, work {self.number}: {work}{arguments}"
        order = {"work": work, "arguments": arguments}
        # Every work has a rendezvous of its own, at a port of its own.
        order["environment"] = {**(environment or {}), "MASTER_PORT": str(free_port())}
        before, exits = len(self.log()), [self.folder / f"{self.number}.exit{rank}" for rank in (0, 1)]
        self.ask(order)
        self.number += 1
        end = time.monotonic() + timeout
        while True:
            codes = [int(path.read_text()) for path in exits if path.exists()]
            ended = self.process.poll()
            if any(codes) or ended is not None or time.monotonic() > end:
                self.kill()
                reason = f"killed after {timeout} s" if not any(codes) and ended is None else f"exit codes {codes}"
                pytest.fail(f"{name}: {reason}, launcher's {ended}\n{self.log()[before:][-6000:]}")
            if len(codes) == 2:
                return
            time.sleep(0.02)

    def ask(self, order: dict | None) -> None:
        """Put an order where the ranks wait for it, whole at once; `None`: there is no more to do."""
        waiting = self.folder / "order"
        waiting.write_text(json.dumps(order))
        waiting.rename(self.folder / f"{self.number}.json")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def kill(self) -> None:
        kill(self.process)
        self.process.wait()
        self.process = None

    def no_more(self) -> None:
        """Let both ranks end by themselves."""
        if self.process is not None:
            self.ask(None)

    def close(self) -> None:
        """After `no_more`: both ranks must end with exit code 0."""
        if self.process is None:
            return
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            code = "none within 30 s"
        self.kill()  # whatever else is left in the group
        assert code == 0, f"{self.launcher}: exit code {code}\n{self.log()[-4000:]}"
        shutil.rmtree(self.folder)
