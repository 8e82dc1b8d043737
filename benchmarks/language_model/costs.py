"""What metrics, watchdogs and records cost in a step of a real run: each is timed where the trainer calls it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from fire_opd_trl import pipeline
from fire_opd_trl.rollouts import from_trl
from fire_opd_trl.trainer import FiReOPDTrainer
from fire_opd_trl.trainer.watchdogs import WatchdogCallback

from ..observing import noting


PARTS: dict[str, list[tuple[Any, str]]] = {
    "metrics of the window": [(pipeline, "window_metrics"), (from_trl, "looped_tail_B")],
    "watchdogs": [(WatchdogCallback, "see"), (WatchdogCallback, "on_step_end")],
    "records": [(FiReOPDTrainer, "_record_rows")],
}


@contextmanager
def timed() -> Iterator[dict[str, list[float]]]:
    """Yields the seconds of every call of each part so far, while the block runs."""
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, noting(seconds[part].append, getattr(owner, name))))
        yield seconds


def costs(seconds: dict[str, list[float]], logs: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Returns the seconds of a step and of each part in it, and the part's share, over the steps of this process.

    Args:
        seconds (`dict`): From [`timed`]; the records were written once a step.
        logs (`list[dict]`): The log of every step, also of those before the run went on.
    """
    steps = [log["step_time"] for log in logs if "step_time" in log][-len(seconds["records"]) :]
    parts = {part: sum(calls) for part, calls in seconds.items()}
    return {
        "steps": len(steps),
        "step": sum(steps) / len(steps),
        "parts": {part: {"seconds": t / len(steps), "share": t / sum(steps)} for part, t in parts.items()},
    }
