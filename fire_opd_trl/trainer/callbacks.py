"""What happens between the steps of a run."""

from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback

from ..scoring.clock import clock


PHASES = ("rollout", "score", "update")


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


class StepTimer(TrainerCallback):
    """
    Takes the time of every optimizer step and of its update: its forwards, backwards and the step itself. When the
    last step of a window has ended, it says how many tokens a second were sampled and learned from, and which share
    of the steps each phase took: over all windows that have ended since the last log, so that a window whose steps
    are logged apart is counted whole. Evaluation, checkpoints and the reading of data lie between steps.

    Args:
        device (`torch.device`): Where the step is computed.
        metrics (`dict[str, list[float]]`): Where TRL keeps what it will log, and clears it when it has.
        steps (`int`): Optimizer steps of a window.
    """

    def __init__(self, device: torch.device, metrics: dict[str, list[float]], steps: int):
        self.device, self.metrics, self.steps = device, metrics, steps
        self.began: float | None = None
        self.started, self.seen = 0.0, 0
        self.window = self.logged = dict.fromkeys(("tokens", "step", *PHASES), 0.0)

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.seen, self.window = None, state.num_input_tokens_seen, dict.fromkeys(self.window, 0.0)

    def begin(self) -> None:
        """The trainer calls this before it makes the first micro-batch of a step; the device has nothing to do."""
        self.began = perf_counter()

    def took(self, phase: str, seconds: float) -> None:
        """The trainer calls this with the time of sampling and of each model's scoring."""
        self.window[phase] += seconds

    def start(self) -> None:
        """The trainer calls this when the first micro-batch of a step is ready."""
        self.started = clock(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        if self.began is None:
            return
        now = clock(self.device)
        self.metrics["time/update"].append(now - self.started)
        self.took("update", now - self.started)
        self.took("step", now - self.began)
        self.began = None
        if state.global_step % self.steps == 0:
            self.took("tokens", state.num_input_tokens_seen - self.seen)
            self.seen = state.num_input_tokens_seen
            self._say()

    def _say(self) -> None:
        """Adds the window that has ended to those since the last log, and writes what they come to."""
        before = self.logged if "tokens_per_second" in self.metrics else dict.fromkeys(self.window, 0.0)
        self.logged = {name: value + before[name] for name, value in self.window.items()}
        self.window = dict.fromkeys(self.window, 0.0)
        shares = {phase: self.logged[phase] / self.logged["step"] for phase in PHASES}
        self.metrics["tokens_per_second"] = [self.logged["tokens"] / self.logged["step"]]
        for phase, share in {**shares, "other": 1.0 - sum(shares.values())}.items():
            self.metrics[f"share/{phase}"] = [share]
