"""
What a worker of the benchmark runs: it builds a trainer, and does one optimizer step whenever it is told to.

An order is a tuple of arm, size and number of ranks, to build a trainer; or `"step"`, `"end"` (of this trainer),
`"quit"`. The worker answers with the number of ranks when a trainer is built, and with what it measured after a step.
"""

import gc
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import TrainerCallback

from fire_opd_trl.evaluation.workers import QUIT
from fire_opd_trl.preflight.plan.cost import measure_rates

from .arms import ObservedTrainer, build_arm
from .memory import Memory
from .names import FLOOR
from .phases import Stopwatch
from .sizes import Size


class TrainingEnded(Exception):
    """No further step of this trainer is wanted."""


def wait_for_step(link: Connection) -> None:
    """Return when a step is wanted; otherwise end the training, or the process."""
    order = link.recv()
    if order == QUIT:
        raise SystemExit(0)
    if order != "step":
        raise TrainingEnded


def call_before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Call an action whenever a method of an object is about to be called."""
    method = getattr(owner, name)

    def called(*args, **kwargs):
        action()
        return method(*args, **kwargs)

    setattr(owner, name, called)


class Steps(TrainerCallback):
    """Holds the trainer before every step until one is wanted, and answers with what the step took."""

    def __init__(self, link: Connection, observed: ObservedTrainer, with_memory: bool):
        self.link, self.observed = link, observed
        self.memory = Memory(observed.trainer.accelerator.device) if with_memory else None
        if self.memory:
            call_before(observed.trainer, "compute_loss", self.memory.update)

    def on_step_begin(self, args, state, control, **kwargs):
        wait_for_step(self.link)
        if self.memory:
            self.memory.start()
        self.observed.stopwatch.start()

    def on_step_end(self, args, state, control, **kwargs):
        observed, phases = self.observed, self.observed.stopwatch.stop()
        answer: dict[str, Any] = {"seconds": sum(phases.values()), "phases": phases}
        if self.memory:
            answer["memory"] = self.memory.stop(observed.student)
        answer["work"] = {name: asdict(work) for name, work in observed.counter.total().items()}
        if observed.world:
            answer["communication"] = observed.world.total()
            answer["kept_tokens"] = observed.trainer._metrics["train"]["fire/kept_token_ratio"][-1]
        self.link.send(answer)


def train(link: Connection, arm: str, size: Size, ranks: int, with_memory: bool) -> None:
    """Build the trainer of an arm, and train until the orders end it."""
    with tempfile.TemporaryDirectory() as folder:
        observed = build_arm(arm, size, ranks, folder)
        observed.trainer.add_callback(Steps(link, observed, with_memory))
        link.send(observed.trainer.accelerator.num_processes)
        try:
            observed.trainer.train()
        except TrainingEnded:
            pass


def measure_floor(link: Connection, size: Size) -> None:
    """Measure the rates of this machine at every step, in place of a trainer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stopwatch = Stopwatch(device)
    link.send(1)
    try:
        while True:
            wait_for_step(link)
            stopwatch.start()
            rates = measure_rates(size, size.useful_tokens, device)
            link.send({"seconds": sum(stopwatch.stop().values()), "rates": rates})
    except TrainingEnded:
        pass


def serve(link: Connection, threads: int, with_memory: bool) -> None:
    """Obey orders until one of them is to quit."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    while (order := link.recv()) != QUIT:
        arm, size, ranks = order
        if arm == FLOOR:
            measure_floor(link, size)
        else:
            train(link, arm, size, ranks, with_memory)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
