"""The run: GRPO's rollouts, this library's signal and loss."""

from .trainer import FiReOPDTrainer


__all__ = ["FiReOPDTrainer"]
