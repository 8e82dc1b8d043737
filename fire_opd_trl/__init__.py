"""
On-policy distillation for TRL that filters trajectories and reweights tokens. In the order of the data:

    trainer    FiReOPDTrainer(GRPOTrainer): samples, scores, distils, slices, steps
    scoring    models + rollouts -> log-probability and entropy of each sampled token
    vocabulary top-k and full-vocabulary divergences, without [B, T, V] and without a second forward
    pipeline   distil(rollout, scores, method, context) -> Signal: the algorithm on one screen
    methods    the recipes: METHODS["fire"](drop_fraction=0.2) -> Method
    stages     rollout, score, filter, reweight, advantage, divergence, loss: pure functions of tensors
    slices     which surviving rows go into which micro-batch
    teachers   which ones, from where, and which row is whose
    tokens     what ids mean to student and teacher
    views      what a teacher reads before the student's answer
    placement  teachers where they run: partitioned, replicated, on the host
    preflight  what can be wrong without weights, in one table
    config     FiReOPDConfig(GRPOConfig): every field with help, wrong values refused
    compare    methods side by side on the embedded task, over seeds
"""

from typing import TYPE_CHECKING

from .methods import METHODS, control
from .pipeline import Context, Divergence, Method, Rollout, Scores, Signal, distil


if TYPE_CHECKING:
    from .config import FiReOPDConfig
    from .trainer.trainer import FiReOPDTrainer

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Context",
    "Divergence",
    "FiReOPDConfig",
    "FiReOPDTrainer",
    "Method",
    "Rollout",
    "Scores",
    "Signal",
    "control",
    "distil",
]


def __getattr__(name: str):
    # Config and trainer pull in trl and transformers (seconds); the mathematics needs torch alone.
    if name == "FiReOPDConfig":
        from .config import FiReOPDConfig

        return FiReOPDConfig
    if name == "FiReOPDTrainer":
        from .trainer.trainer import FiReOPDTrainer

        return FiReOPDTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
