"""
A worker process: builds a trainer, and does one optimizer step whenever it is told to.

Orders come as lines of JSON on standard input: `{"build": {...}}`, `"step"`, `"end"` (of this trainer), `"quit"`.
Answers go to standard output, one line each; whatever else is printed goes to standard error.
"""

import gc
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from transformers import TrainerCallback

from .arms import Arm, built
from .floor import measured_rates
from .memory import Memory
from .names import FLOOR
from .phases import Stopwatch
from .sizes import Size


class Ended(Exception):
    """This trainer is done."""


class Orders:
    """The two ends of the conversation."""

    def __init__(self):
        self.answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # only answers may go where answers are read

    def next(self) -> Any:
        """The next order; the end of the input is `"quit"`."""
        line = sys.stdin.readline()
        return json.loads(line) if line else "quit"

    def answer(self, value: dict[str, Any]) -> None:
        """Say something."""
        print(json.dumps(value), file=self.answers, flush=True)

    def wait_for_step(self) -> None:
        """Return when a step is wanted."""
        order = self.next()
        if order == "quit":
            raise SystemExit(0)
        if order != "step":
            raise Ended


def before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Do something whenever a method of an object is called."""
    method = getattr(owner, name)

    def called(*args, **kwargs):
        action()
        return method(*args, **kwargs)

    setattr(owner, name, called)


class Steps(TrainerCallback):
    """Holds the trainer before every step until it is wanted, and answers with what it took."""

    def __init__(self, orders: Orders, arm: Arm, with_memory: bool):
        self.orders, self.arm = orders, arm
        self.memory = Memory(arm.trainer.accelerator.device) if with_memory else None
        if self.memory:
            before(arm.trainer, "compute_loss", self.memory.update)

    def on_step_begin(self, args, state, control, **kwargs):
        self.orders.wait_for_step()
        if self.memory:
            self.memory.start()
        self.arm.stopwatch.start()

    def on_step_end(self, args, state, control, **kwargs):
        phases = self.arm.stopwatch.stop()
        answer: dict[str, Any] = {"seconds": sum(phases.values()), "phases": phases}
        if self.memory:
            answer["memory"] = self.memory.stop(self.arm.student)
        answer["work"] = {name: asdict(work) for name, work in self.arm.counter.total().items()}
        if self.arm.world:
            answer["communication"] = self.arm.world.total()
            answer["kept_tokens"] = self.arm.trainer._metrics["train"]["fire/kept_token_ratio"][-1]
        self.orders.answer(answer)


def train(orders: Orders, job: dict[str, Any], with_memory: bool) -> None:
    """Build the trainer of a job, and train until the orders end it."""
    with tempfile.TemporaryDirectory() as folder:
        arm = built(job["arm"], Size(**job["size"]), job["ranks"], folder)
        arm.trainer.add_callback(Steps(orders, arm, with_memory))
        orders.answer({"ready": job["arm"], "ranks": arm.trainer.accelerator.num_processes})
        try:
            arm.trainer.train()
        except Ended:
            pass


def measure_rates(orders: Orders, job: dict[str, Any]) -> None:
    """Measure this machine's rates at every step, in place of a trainer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stopwatch = Stopwatch(device)
    orders.answer({"ready": FLOOR, "ranks": 1})
    try:
        while True:
            orders.wait_for_step()
            stopwatch.start()
            rates = measured_rates(Size(**job["size"]), device)
            orders.answer({"seconds": sum(stopwatch.stop().values()), "rates": rates})
    except Ended:
        pass


def main() -> None:
    """Work until told to stop. The arguments are JSON: `threads`, `memory`."""
    options = json.loads(sys.argv[1])
    orders = Orders()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options["threads"])
    while (order := orders.next()) != "quit":
        job = order["build"]
        if job["arm"] == FLOOR:
            measure_rates(orders, job)
        else:
            train(orders, job, options["memory"])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
