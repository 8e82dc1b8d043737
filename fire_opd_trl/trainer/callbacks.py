"""What happens between the steps of a run."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from ..scoring.clock import clock


class EmptyStepGuard(TrainerCallback):
    """
    Lets an optimizer step without any trajectory on any rank move no weight. Its gradient is zero, but momentum and
    weight decay would still move weights. DeepSpeed steps inside `backward`, so that the step cannot be left out alike
    on all backends; instead its learning rates are zero, and are given back between optimizer and scheduler.
    """

    patience = 5  # windows in a row with nothing to train on

    def __init__(self):
        self.empty_windows = 0
        self.held: list[tuple[dict[str, Any], float]] = []

    def count(self, any_survivor: bool, step: int) -> None:
        """The trainer calls this once for each window; several empty windows in a row stop the run."""
        self.empty_windows = 0 if any_survivor else self.empty_windows + 1
        if self.empty_windows == self.patience:
            raise RuntimeError(
                f"step {step}: nothing was left to train on in {self.patience} windows in a row: see fire/empty, "
                "fire/nonfinite_teacher, and fire/keep_ratio for what the filter left. Look at the completions with "
                "log_completions=True."
            )

    def hold(self, groups: list[dict[str, Any]]) -> None:
        """The trainer calls this for an empty step: its learning rates become zero."""
        self.held = self.held or [(group, group["lr"]) for group in groups]
        for group in groups:
            group["lr"] = 0.0

    def on_optimizer_step(self, args, state, control, **kwargs):
        for group, rate in self.held:
            group["lr"] = group["lr"] or rate  # DeepSpeed's scheduler has already set the next one
        self.held = []


class UpdateTimer(TrainerCallback):
    """
    Takes the time of every optimizer step: its forwards, backwards and the step itself, without rollout and scoring.

    Args:
        device (`torch.device`): Where the step is computed.
        log (`Callable`): Is told the seconds.
    """

    def __init__(self, device: torch.device, log: Callable[[float], None]):
        self.device, self.log = device, log
        self.started: float | None = None

    def start(self) -> None:
        """The trainer calls this when the first micro-batch of a step is ready."""
        self.started = clock(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        if self.started is not None:
            self.log(clock(self.device) - self.started)
        self.started = None
