"""Records trajectories: which windows, and what is written of them."""

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, has_length

from ..config import FiReOPDConfig
from ..rollouts.drawn_rows import FATES
from ..rollouts.records import begin_records, write_bounded
from ..rollouts.token_texts import TokenTexts
from .record import now


def is_logged(step: int, args: FiReOPDConfig, state: Any, steps_an_epoch: int | None) -> bool:
    """Returns whether training will log a step: what transformers' DefaultFlowCallback decides when it is made."""
    if step == 1 and args.logging_first_step:
        return True
    if args.logging_strategy == IntervalStrategy.STEPS:
        return step % state.logging_steps == 0
    ends_epoch = step == state.max_steps or steps_an_epoch is not None and step % steps_an_epoch == 0
    return args.logging_strategy == IntervalStrategy.EPOCH and ends_epoch


class RolloutRecorder(TrainerCallback):
    """
    Writes trajectories of the windows whose steps are logged. What fails there does not stop training.

    Args:
        args ([`FiReOPDConfig`]): The configuration.
        tokenizer (`PreTrainedTokenizerBase`): The student's.
        teachers (`list[str]`): Names of the teachers, by number.
        about (`dict`): See [`~fire_opd_trl.rollouts.records.write_records`].
    """

    def __init__(
        self,
        args: FiReOPDConfig,
        tokenizer: PreTrainedTokenizerBase,
        teachers: Sequence[str],
        about: dict[str, Any],
    ):
        self.args, self.teachers, self.about = args, list(teachers), about
        self.texts = TokenTexts(tokenizer)
        self.steps_an_epoch: int | None = None
        self.warned: set[str] = set()

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = len(train_dataloader) if train_dataloader is not None and has_length(train_dataloader) else 0
        self.steps_an_epoch = -(-batches // args.gradient_accumulation_steps) or None
        if state.is_world_process_zero:
            try:
                begin_records(args.output_dir, state.global_step, f"rollouts-before-{now().replace(':', '')}")
            except OSError as error:
                self.warn("unwritable", self.not_written(error))

    def step_of_window(self, state: Any) -> int | None:
        """
        The trainer calls this before it samples a window for training. Returns the first of the window's optimizer
        steps that is logged, if one is, and if trajectories are recorded.
        """
        args = self.args
        if not args.log_rollouts:
            return None
        if not state.max_steps:  # a look at one window, which no step follows
            return state.global_step
        steps = args.steps_per_generation // args.gradient_accumulation_steps * args.num_iterations
        end = min(state.global_step // steps * steps + steps, state.max_steps)  # a resumed run may be inside a window
        following = range(state.global_step + 1, end + 1)
        return next((step for step in following if is_logged(step, args, state, self.steps_an_epoch)), None)

    def write(self, step: int, rows: list[dict[str, Any]], threshold: float | None) -> None:
        """
        The trainer calls this with the rows of a window, which are on one rank. A disk that is full, or a text that
        cannot be made, is no reason to lose a run: it is said once, training goes on, and the next window is tried
        again.
        """
        if not rows:
            return
        limit = self.args.log_rollouts_megabytes * 10**6
        try:
            written = write_bounded(
                self.args.output_dir, step, [self.shown(row, threshold) for row in rows], self.about, limit
            )
        except OSError as error:
            self.warn("unwritable", self.not_written(error))
            return
        except (
            Exception
        ) as error:  # a tokenizer that cannot decode what was sampled, say; other ranks wait for this one
            self.warn(
                "failed",
                f"step {step}: log_rollouts={self.args.log_rollouts}: trajectories could not be recorded "
                f"({type(error).__name__}: {error}). Training goes on without them; later steps are tried again.",
            )
            return
        if written < len(rows):
            self.warn(
                "large",
                f"step {step}: {len(rows)} trajectories take more than half of log_rollouts_megabytes="
                f"{self.args.log_rollouts_megabytes}, so that {written} of them are recorded. Raise it, or lower "
                f"log_rollouts={self.args.log_rollouts}.",
            )

    def shown(self, row: dict[str, Any], threshold: float | None) -> dict[str, Any]:
        """Returns a row with names and texts in place of numbers, and null in place of NaN where that means absent."""
        token_ids = row["token_ids"].tolist()
        prompt, completion = self.texts.decoded([row["prompt_ids"].tolist(), token_ids])
        absent = {name: None for name in ("score", "reward") if row.get(name) != row.get(name)}
        return {
            **row,
            **absent,
            "prompt": prompt,
            "completion": completion,
            "tokens": self.texts(token_ids),
            "teacher": self.teachers[row["teacher"]],
            "kept": FATES[row["fate"]] is None,
            "dropped_because": FATES[row["fate"]],
            "threshold": threshold,
        }

    def not_written(self, error: OSError) -> str:
        """Returns what is said of a folder that cannot be written."""
        return (
            f"log_rollouts={self.args.log_rollouts}: trajectories could not be recorded in {self.args.output_dir} "
            f"({error}). Training goes on without them; later steps are tried again. Make room there, or let the "
            "folder be written."
        )

    def warn(self, about: str, text: str) -> None:
        """Warns of each fault once."""
        if about not in self.warned:
            self.warned.add(about)
            warnings.warn(text, stacklevel=3)
