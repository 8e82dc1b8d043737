"""Worker processes: started together, asked one at a time, and killed when they take too long."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .sizes import Size


READY_SECONDS, STEP_SECONDS, QUIT_SECONDS = 900, 1800, 60
# Nothing is downloaded or reported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],  # of several GPUs the first
}


class WorkerFailed(RuntimeError):
    """A worker died, or did not answer in time."""


class Worker:
    """
    One process of [`~benchmarks.throughput.worker`].

    Args:
        name (`str`): What it is, for messages.
        log (`Path`): Where its standard error goes.
        threads (`int`): Threads of its arithmetic.
        memory (`bool`): Whether it measures memory.
        environment (`dict`, *optional*): Beside that of this process.
    """

    def __init__(
        self, name: str, log: Path, threads: int, memory: bool = False, environment: dict[str, str] | None = None
    ):
        self.name, self.log = name, log
        self.buffer = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        options = json.dumps({"threads": threads, "memory": memory})
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.throughput.worker", options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads), **(environment or {})},
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _failed(self, what: str) -> WorkerFailed:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return WorkerFailed(f"{self.name}: {what}. {self.log} says: {' '.join(lines) or 'nothing'}")

    def tell(self, order: Any) -> None:
        """Give an order without waiting for the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("the worker died") from None

    def answer(self, limit: float) -> dict[str, Any]:
        """The next answer, within so many seconds."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failed(f"no answer within {limit:g} s")
                if not (more := os.read(self.process.stdout.fileno(), 2**16)):
                    raise self._failed("the worker died")
                self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line) if line.startswith(b"{") else self.answer(limit)  # else a library said something

    def build(self, arm: str, size: Size, ranks: int = 1) -> None:
        """Begin to build a trainer."""
        self.tell({"build": {"arm": arm, "size": asdict(size), "ranks": ranks}})

    def ready(self, ranks: int = 1) -> None:
        """Wait until it is built."""
        answer = self.answer(READY_SECONDS)
        if answer["ranks"] != ranks:
            raise self._failed(f"{answer['ranks']} rank(s) where {ranks} were started")

    def step(self) -> dict[str, Any]:
        """One optimizer step."""
        self.tell("step")
        return self.answer(STEP_SECONDS)

    def end(self) -> None:
        """This trainer is done; another may be built."""
        self.tell("end")

    def quit(self) -> None:
        """The process is done; it must say that all was well."""
        self.tell("quit")
        try:
            code = self.process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._failed(f"it did not end within {QUIT_SECONDS} s") from None
        if code:
            raise self._failed(f"exit code {code}")


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """What each of so many processes of one machine must know to find the others; none of them sees a GPU."""
    if ranks == 1:
        return [{"CUDA_VISIBLE_DEVICES": ""}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Several processes compute at once: threads that wait for each other give up their core.
    common = {"OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    return [{**common, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
