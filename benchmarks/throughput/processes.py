"""The workers of the benchmark: started together, asked one at a time, and killed when they take too long."""

import os
import socket
from pathlib import Path
from typing import Any

from fire_opd_trl.evaluation.workers import Worker

from .sizes import Size


READY_SECONDS, STEP_SECONDS = 900, 1800
# Nothing is downloaded or reported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],  # of several GPUs the first
}


class StepWorker(Worker):
    """
    A worker that runs [`~benchmarks.throughput.serve.serve`]: it builds the trainer of an arm, and does one optimizer
    step whenever it is told to.

    Args:
        name (`str`): Its name in messages.
        log (`Path`): Where its output goes.
        threads (`int`): Threads of its arithmetic.
        memory (`bool`, *optional*, defaults to `False`): Whether it measures memory.
        environment (`dict`, *optional*): Variables beside those that all workers of the benchmark get.
    """

    def __init__(
        self, name: str, log: Path, threads: int, memory: bool = False, environment: dict[str, str] | None = None
    ):
        variables = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        super().__init__(f"worker {name}", "benchmarks.throughput.serve:serve", (threads, memory), variables, log)

    def build(self, arm: str, size: Size, ranks: int = 1) -> None:
        """Tell it to build a trainer, without waiting."""
        self.send((arm, size, ranks))

    def wait_until_built(self, ranks: int = 1) -> None:
        """Wait until the trainer is built, and check that it has found the other ranks."""
        if (found := self.receive(READY_SECONDS)) != ranks:
            raise self.failure(f"has {found} rank(s) where {ranks} were started")

    def begin_step(self) -> None:
        """Tell it to do an optimizer step, without waiting."""
        self.send("step")

    def finish_step(self) -> dict[str, Any]:
        """Wait for the end of the step, and return what was measured."""
        return self.receive(STEP_SECONDS)

    def end_training(self) -> None:
        """Tell it that its trainer is done; another one may be built."""
        self.send("end")


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """The variables by which so many processes of one machine find each other; none of them sees a GPU."""
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
