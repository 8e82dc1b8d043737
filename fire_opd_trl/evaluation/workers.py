"""Processes that take runs from one queue. A process that dies costs its run, not the comparison."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


Job = dict[str, Any]
Answer = dict[str, Any]


class Worker:
    """A process that does one job after the other, started with the first one and again after it died."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def do(self, job: Job) -> Answer:
        """Hand a job to the process and wait for its answer."""
        if self.process is None or self.process.poll() is not None:
            paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]  # from a checkout, not installed
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fire_opd_trl.evaluation.compare.runs"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in paths if path),
                    "OMP_NUM_THREADS": "1",
                    "TOKENIZERS_PARALLELISM": "false",
                    "CUDA_VISIBLE_DEVICES": "",
                },
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(job), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self.process.wait()
        hint = " (killed: is there enough memory for this many --workers?)" if code == -9 else ""
        return {"error": f"the worker process ended with code {code}{hint}"}

    def end(self):
        """End the process, in the middle of a job if need be."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def done_by_workers(jobs: list[Job], workers: int, on_answer: Callable[[Job, Answer], None]) -> None:
    """
    Do all jobs, in their order, on several processes of one thread each.

    Args:
        jobs (`list[dict]`): What `runs.attempt` takes.
        workers (`int`): Number of processes. With 0 the jobs are done in this one.
        on_answer (`Callable`): Called in this thread with every job and its answer.
    """
    if workers == 0:
        from .compare.runs import attempt, quiet

        quiet()
        for job in jobs:
            on_answer(job, attempt(job))
        return
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    answered: queue.SimpleQueue[tuple[Job, Answer]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    pool = [Worker() for _ in range(min(workers, len(jobs)))]

    def work(worker: Worker):
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answer = worker.do(job)
            except Exception as error:  # every job is answered, or the parent would wait for ever
                worker.end()
                answer = {"error": f"the worker process cannot be used: {type(error).__name__}: {error}"}
            answered.put((job, answer))

    for worker in pool:
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    try:
        for _ in jobs:
            on_answer(*answered.get())
    finally:
        while not waiting.empty():
            waiting.get_nowait()
        for worker in pool:
            worker.end()
