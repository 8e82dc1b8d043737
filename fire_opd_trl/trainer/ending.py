"""
How a training script ends early: what it says, and with which exit code.

What a user can mend is said in one sentence (exit code 2), a signal ends the run with one line that names the last
checkpoint (128 and the signal's number), and everything else keeps its traceback (1). This module is light, so that a
script can call it before its slow imports.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn


REFUSED = 2  # the exit code of argparse
COMMAND = "FIRE_OPD_COMMAND"  # a variable of the environment: `fire-opd train` says by it that it has the last word
PACKAGE = Path(__file__).resolve().parents[1]
FIRST_RANK_SECONDS = 8  # so long another rank leaves the word to the first one


class Refusal(ValueError):
    """What a user can mend before a training starts. It needs no traceback."""


class Stopped(KeyboardInterrupt):
    """A signal has reached this process."""


def raised_on_purpose(error: BaseException, by_us: bool = True) -> bool:
    """
    Returns whether an error comes from a `raise` in so many words, and not from something that went wrong: from
    `int("x")`, say, or in torch.

    Args:
        by_us (`bool`): Whether the `raise` must be one of this package or of its script, or may be a library's.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename).resolve()
    ours = file.is_relative_to(PACKAGE) or file.parent in (PACKAGE / "examples", PACKAGE.parent / "examples")
    return (ours or not by_us) and (last.line or "").startswith("raise ")


def can_be_mended(error: Exception) -> bool:
    """
    Returns whether an error before training is one that a user can mend: a refusal of this package, a file or a model
    that is not there, or a package that is not installed.
    """
    if isinstance(error, ModuleNotFoundError):
        return (error.name or "").split(".")[0] != PACKAGE.name
    if isinstance(error, ImportError):  # "pip install trl[vllm]", but not "cannot import name"
        return raised_on_purpose(error, by_us=False)
    return isinstance(error, OSError) or isinstance(error, ValueError) and raised_on_purpose(error)


@contextmanager
def refusals() -> Iterator[None]:
    """A script reads its arguments and makes its trainer inside this: what a user can mend becomes a [`Refusal`]."""
    try:
        yield
    except Refusal:
        raise
    except (ValueError, OSError, ImportError) as error:
        if not can_be_mended(error):
            raise
        raise Refusal(str(error)) from error


def checkpoints(output_dir: str) -> list[Path]:
    """Returns the whole checkpoints in a folder, oldest first. The trainer's state is the last thing to be written."""
    found = {}
    for state in Path(output_dir).glob("checkpoint-*/trainer_state.json"):
        number = state.parent.name.removeprefix("checkpoint-")
        if number.isdecimal():
            found[int(number)] = state.parent
    return [found[step] for step in sorted(found)]


def checkpoint_to_resume(resume: str | bool | None, output_dir: str, max_steps: int = -1) -> str | None:
    """
    Returns the folder from which the trainer goes on, or `None` if it starts anew. A script calls this before it makes
    its trainer.

    Args:
        resume (`str` or `bool`, *optional*):
            `resume_from_checkpoint`: true for the last checkpoint of `output_dir`, or a folder.
        output_dir (`str`): The folder in which the run saves its checkpoints.
        max_steps (`int`): The steps after which the run ends, if they are known (above 0).
    """
    text = str(resume).strip()
    if text.lower() in ("none", "false", "no", ""):
        return None
    there = checkpoints(output_dir)
    latest = text.lower() in ("true", "yes")
    found = there[-1] if latest and there else Path(text)
    if (found / "trainer_state.json").is_file() and (there or not latest):
        steps = json.loads((found / "trainer_state.json").read_text(encoding="utf-8")).get("global_step", 0)
        if 0 < max_steps < steps:
            raise ValueError(
                f"resume_from_checkpoint={text!r}: {found} has made {steps} steps, and max_steps={max_steps}. Raise "
                "max_steps, or, if it is another run's, use another output_dir."
            )
        return str(found)
    what = f"there is no checkpoint in {output_dir}" if latest else "it is no folder of a checkpoint"
    exists = f"There is: {', '.join(map(str, there))}." if there else "None was saved there."
    fix = "Remove the argument to start anew, or give the folder of a checkpoint."
    raise ValueError(f"resume_from_checkpoint={text!r}: {what}. {'' if latest else exists + ' '}{fix}")


def how_it_starts(checkpoint: str | None, output_dir: str) -> str:
    """Returns what to say before the first step: where a run goes on, or whose checkpoints lie in its folder."""
    if checkpoint is not None:
        return f"The run goes on from {checkpoint}."
    there = checkpoints(output_dir)
    if not there:
        return ""
    return (
        f"The run starts anew, and {output_dir} holds {there[-1].name} of an earlier one. --resume_from_checkpoint "
        "true goes on from that; another --output_dir keeps the two apart."
    )


def how_to_go_on(output_dir: str) -> str:
    """Returns the sentence that names the last checkpoint of a run, and how to go on from it."""
    there = checkpoints(output_dir)
    if not there:
        return (
            f"There is no checkpoint in {output_dir} yet (--save_steps says how often); the same command starts anew."
        )
    return f"The last checkpoint is {there[-1]}; the same command with --resume_from_checkpoint true goes on from it."


def wait_for_the_first_rank() -> None:
    """
    A rank calls this before it ends with a message that most likely all ranks have: the first one says it and ends,
    and its launcher then ends the others, which are still here. On a busy machine the first one may be seconds behind.
    """
    if int(os.environ.get("RANK", 0)):
        time.sleep(FIRST_RANK_SECONDS)


def name_of(number: int) -> str:
    """Returns a signal's name, as a user knows it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class Ending:
    """
    A script makes this before its slow imports, and does everything inside `with ending:`, so that the process ends as
    the module says. A launcher sends signals to each rank, and a terminal to each process; the first one counts. A
    second one, a second later, ends the process at once.
    """

    def __init__(self):
        self.command = os.environ.get(COMMAND) or Path(sys.argv[0]).name
        self.rank = int(os.environ.get("RANK", 0))
        self.last_word = COMMAND not in os.environ and self.rank == 0
        self.output_dir: str | None = None
        self.running = False  # inside of `with`
        self.stopped_by, self.stopped_at, self.process = 0, 0.0, os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell script
                signal.signal(number, self.stop)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals."""
        if os.getpid() != self.process:  # a worker that was forked from this process
            os._exit(128 + number)
        if not self.stopped_by:
            self.stopped_by, self.stopped_at = number, time.monotonic()
            if self.running:
                raise Stopped
            self.say_how_to_go_on()
            os._exit(128 + number)
        if time.monotonic() - self.stopped_at > 1:
            os._exit(128 + self.stopped_by)

    def say_how_to_go_on(self) -> None:
        """The last line, unless another process has it."""
        if self.last_word:
            then = f" {how_to_go_on(self.output_dir)}" if self.output_dir else ""
            print(f"\n{self.command}: stopped by {name_of(self.stopped_by)}.{then}", file=sys.stderr, flush=True)

    def __enter__(self):
        self.running = True
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.running = False
        if self.stopped_by and error is not None:  # whatever the signal, or the end of another rank, has caused
            self.say_how_to_go_on()
            sys.exit(128 + self.stopped_by)
        if isinstance(error, Refusal):
            self.refuse(str(error), REFUSED)
        if isinstance(error, ValueError | ArithmeticError | RuntimeError) and raised_on_purpose(error):
            self.refuse(str(error), 1)  # while it trains

    def refuse(self, text: str, code: int) -> NoReturn:
        """End with a message, once for all ranks."""
        wait_for_the_first_rank()
        of = f" (rank {self.rank})" if self.rank else ""
        print(f"{self.command}{of}: error: {text}", file=sys.stderr, flush=True)
        sys.exit(code)
