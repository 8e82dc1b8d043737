"""What a person reads while it trains: a line at every logging step, in place of a dict of some forty metrics."""

import logging
import sys
import time
import warnings
from datetime import timedelta
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..config import FiReOPDConfig


# What a line shows: the metric, what it is called there, and how it is written.
SHOWN = (
    ("loss", "loss", "{:7.4f}"),
    ("fire/reverse_kl", "KL", "{:7.4f}"),
    ("reward", "reward", "{:.3f}"),
    ("fire/keep_ratio", "kept", "{:4.0%}"),
    ("completions/mean_length", "length", "{:5.0f}"),
    ("completions/clipped_ratio", "cut", "{:4.0%}"),
    ("tokens_per_second", "tokens/s", "{:7,.0f}"),
)
LEGEND = (
    "One line for each log (--logging_steps): the loss, KL(student || teacher) in nats a token, the mean reward if\n"
    "there is one, the share of answers kept to train on, their mean length in tokens, the share cut at\n"
    "max_completion_length, prompt and answer tokens a second, and the time left. All metrics are in\n"
    "{folder}/metrics.jsonl."
)
# TRL 1.16 calls these by names that transformers has given up: three warnings a rank about nothing that a user set.
RENAMED = r"`(is_gradient_checkpointing|gradient_checkpointing_(en|dis)able)` is deprecated"


def leave_out_noise(args: FiReOPDConfig) -> None:
    """The trainer calls this before anything is loaded: what says nothing to a user is not said."""
    warnings.filterwarnings("ignore", RENAMED, FutureWarning)
    logging.getLogger("transformers.trainer").addFilter(not_about_tied_heads)
    if args.use_cpu:
        logging.getLogger("DeepSpeed").addFilter(not_about_the_cpu)


def not_about_tied_heads(record: logging.LogRecord) -> bool:
    """A filter of transformers' log: a head that is tied to the embeddings is in a checkpoint once."""
    return "missing keys in the checkpoint model loaded: ['lm_head.weight']" not in record.getMessage()


def show_progress(trainer: Trainer, args: FiReOPDConfig) -> None:
    """The trainer calls this when it is made: transformers prints no dict, and what `print_metrics` names is shown."""
    if args.print_metrics == "all":
        return
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) is PrinterCallback:
            trainer.remove_callback(callback)
        elif type(callback) is ProgressCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(QuietBar())
        elif type(callback).__name__ == "NotebookProgressCallback" and args.print_metrics == "line":
            trainer.remove_callback(callback)
            trainer.add_callback(notebook_table(type(callback)))
            return
    if args.print_metrics == "line":
        trainer.add_callback(ProgressLine())


def not_about_the_cpu(record: logging.LogRecord) -> bool:
    """A filter of DeepSpeed's log: a run that is told to use the CPU need not be warned that it does."""
    return "Setting accelerator to CPU" not in record.getMessage()


def shown(logs: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns what a line shows of a log, by the name that it has there."""
    values = {called: (logs.get(prefix + metric), written) for metric, called, written in SHOWN}
    return {called: written.format(value) for called, (value, written) in values.items() if value is not None}


class TimeLeft:
    """The time left at the mean pace of this run."""

    def __init__(self, state: Any):
        self.began, self.first_step = time.perf_counter(), state.global_step

    def at(self, state: Any) -> dict[str, str]:
        """Called for each log of training; returns what a line shows of it."""
        for_a_step = (time.perf_counter() - self.began) / max(state.global_step - self.first_step, 1)
        return {"left": str(timedelta(seconds=round(for_a_step * (state.max_steps - state.global_step))))}


class ProgressLine(PrinterCallback):
    """
    Prints a line for each log, on the main process: above a progress bar if there is one, into a file as well. Whoever
    removes transformers' PrinterCallback from a trainer removes it too.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.time_left = TimeLeft(state)
        if state.is_world_process_zero:
            self.write(LEGEND.format(folder=args.output_dir))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self.write(*self.lines(state, logs))

    def write(self, *lines: str) -> None:
        """Print lines at once: into a file or a pipe, Python would hold back some eighty of them."""
        for line in lines:
            tqdm.write(line)
        sys.stdout.flush()

    def lines(self, state: Any, logs: dict[str, Any]) -> list[str]:
        """Returns what is printed of a log: of training, of an evaluation, or of the end of a run."""

        def line(head: str, parts: dict[str, str]) -> str:
            return head + "".join(f"  {name} {value}" for name, value in parts.items())

        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if "train_runtime" in logs:
            seconds = timedelta(seconds=round(logs["train_runtime"]))
            steps = f"{state.global_step} step{'s' * (state.global_step != 1)}"
            return [f"{steps} in {seconds}, mean loss {logs.get('train_loss', 0):.4f}"]
        if "loss" in logs:
            return [line(step, {**shown(logs), **self.time_left.at(state)})]
        return [
            line(f"{step}  {name.removesuffix('_loss')}:", {**shown({"loss": logs[name]}), **shown(logs, "eval_")})
            for name in logs
            if name.startswith("eval_") and name.endswith("_loss")
        ]


class QuietBar(ProgressCallback):
    """transformers' progress bar, without the dict of all metrics."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def notebook_table(base: type[TrainerCallback]) -> TrainerCallback:
    """Returns transformers' bar and table for notebooks, `base`, with the columns of a line."""

    class NotebookTable(base):
        def on_train_begin(self, args, state, control, **kwargs):
            super().on_train_begin(args, state, control, **kwargs)
            self.time_left = TimeLeft(state)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if self.first_column == "Step" and "loss" in logs:
                parts = shown(logs)
                row = {"Step": state.global_step, "Training Loss": parts.pop("loss"), **parts}
                row.update(self.time_left.at(state))
                self.training_tracker.write_line(row)

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            few = {name: value for name, value in (metrics or {}).items() if name.endswith(("_loss", "_reward"))}
            super().on_evaluate(args, state, control, metrics=few, **kwargs)

    return NotebookTable()
