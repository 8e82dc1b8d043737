"""The run: GRPO's rollouts, this library's signal and loss."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .trainer import FiReOPDTrainer

__all__ = ["FiReOPDTrainer"]


def __getattr__(name: str):
    # The trainer pulls in trl (seconds), which those who only start and end a run do not need.
    if name == "FiReOPDTrainer":
        from .trainer import FiReOPDTrainer

        return FiReOPDTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
