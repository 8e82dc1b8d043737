"""What happens between the steps of a run."""

from typing import Any

from transformers import TrainerCallback


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
