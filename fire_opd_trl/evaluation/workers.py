"""
Processes that work for this one, each with an environment and a session of its own.

A [`Worker`] runs one function, and both sides send Python objects through a pipe of `multiprocessing`. `subprocess`
starts the process, because `multiprocessing.Process` can give it neither before its first import: its variables would
have to be set in this process, Ctrl-C would reach it while it imports torch, and what it prints then would be seen. It
would also import `__main__` once more, which a script without a guard does not survive.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any, TypeVar


Job = dict[str, Any]
Answer = dict[str, Any]
QUIT = "quit"
QUIT_SECONDS = 60
# What the process runs: it imports the function from where this process would import it.
PROGRAM = """
import pkgutil, sys
from multiprocessing.connection import Connection
function, link = sys.argv[1], Connection(int(sys.argv[2]))
sys.path[:], arguments = link.recv()
pkgutil.resolve_name(function)(link, *arguments)
"""

Entered = TypeVar("Entered", bound="Worker")


class WorkerFailed(RuntimeError):
    """A worker died, or did not answer in time."""


class Worker:
    """
    A process that runs one function until it returns.

    Args:
        name (`str`): The subject of the sentences that say what went wrong.
        function (`str`): `"module:function"`, called with the other end of the pipe and the arguments.
        arguments (`tuple`, *optional*): Further arguments of the function.
        environment (`dict`, *optional*): Variables that are set before Python starts, beside those of this process.
        log (`Path`, *optional*): The file that gets all that the process prints. By default nobody sees it.
    """

    def __init__(
        self,
        name: str,
        function: str,
        arguments: tuple = (),
        environment: dict[str, str] | None = None,
        log: Path | None = None,
    ):
        self.name, self.log = name, log
        self.link, theirs = Pipe()
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with open(log or os.devnull, "wb") as output, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, function, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which ends its workers
                env={**os.environ, **(environment or {})},
            )
        self.send((sys.path, arguments))

    def __enter__(self: Entered) -> Entered:
        return self

    def __exit__(self, *error) -> None:
        self.kill()

    def send(self, order: Any) -> None:
        """Send an order. If the process has died, the next call that waits for it says so."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.link.send(order)

    def receive(self, limit: float | None = None) -> Any:
        """Wait for the next answer, at most so many seconds."""
        try:
            if self.link.poll(limit):
                return self.link.recv()
        except (EOFError, OSError):  # the process closed its end, perhaps in the middle of an answer
            raise self.failure(f"ended with code {self._exit_code()}") from None
        raise self.failure(f"did not answer within {limit:g} s")

    def quit(self) -> None:
        """Tell the process that it is done, and check that it ends well."""
        self.send(QUIT)
        if code := self._exit_code():
            raise self.failure(f"ended with code {code}")

    def kill(self) -> None:
        """End the process and its children, whatever they are doing."""
        if not self.link.closed:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.link.close()

    def failure(self, what: str) -> WorkerFailed:
        """Return the error whose sentence begins with the name of this worker and ends with what its log says."""
        what = f"{self.name} {what}"
        if self.process.returncode == -signal.SIGKILL:
            what += " (killed: is there enough memory for this many workers?)"
        if self.log is None:
            return WorkerFailed(what)
        lines = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return WorkerFailed(f"{what}. {self.log} says: {' '.join(lines) or 'nothing'}")

    def _exit_code(self) -> int:
        try:
            return self.process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not end within {QUIT_SECONDS} s") from None


def do_jobs(jobs: list[Job], workers: int, start: Callable[[], Worker], on_answer: Callable[[Job, Answer], None]):
    """
    Do all jobs, in their order, on several workers. A worker that dies costs its job alone: the next one is done by a
    new worker.

    Args:
        jobs (`list[dict]`): What the function of a worker receives, one after the other.
        workers (`int`): Number of processes.
        start (`Callable`): Starts a worker, which sends one answer for each job.
        on_answer (`Callable`): Called with every job and its answer; where a worker failed, the answer is its `error`.
    """
    waiting: deque[Job] = deque(jobs)
    idle: list[Worker] = []
    busy: dict[Any, tuple[Worker, Job]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else start()
                if worker.process.poll() is not None:  # it died after its last job, or with it
                    worker.kill()
                    worker = start()
                busy[worker.link] = worker, waiting.popleft()
                worker.send(busy[worker.link][1])
            for link in connection.wait(list(busy)):
                worker, job = busy.pop(link)
                idle.append(worker)
                try:
                    answer = worker.receive()
                except WorkerFailed as error:
                    answer = {"error": str(error)}
                on_answer(job, answer)
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.kill()
