"""
On-policy distillation for TRL that filters trajectories and reweights tokens. The rooms, in the order in which they
build on each other, which is also the order of the data:

    stages               the mathematics, pure functions of tensors: score, filter, reweight, advantage, loss
    spelling             which word was probably meant by one that is none of those it may be
    pipeline             distil(rollout, scores, method, context) -> Signal: the algorithm on one screen
    methods              the recipes: METHODS["fire"](drop_fraction=0.2) -> Method
    refusals             what is wrong together in a configuration, and what to change
    config               FiReOPDConfig(GRPOConfig): every field with its help, its rule and its fix
    rollouts             what was sampled: prompts, TRL's batch, which rows go into which forward and to which rank
    scoring              what the models say of it: log-probabilities, entropies and divergences of every sampled token
    teachers             who says it: which teachers there are, what they read, where they run, whether they are sound
    preflight/plan       what a run takes, from configurations alone: memory and time on each GPU, phase by phase
    preflight            what can be wrong without weights, found before the GPUs start, in one table
    trainer              FiReOPDTrainer(GRPOTrainer): samples, scores, distils, steps, logs
    evaluation           what a look at runs needs: statistics over seeds, files, templates, processes of their own
    evaluation/inspect   a run, or a pair of models before any, on one page: curves, figures, and answers by token
    demo                 the embedded default: a tiny task with a teacher and a student, and a run of it
    real_pair            a real language model that learns sums in words: the task, and how its two models are made
    evaluation/evaluate  is the model better: benchmarks and files of problems, graded, with intervals, on one page
    data                 prompts to train on: made from public sets, and checked, before they are used
    evaluation/compare   methods side by side on the embedded task or on the real pair, over seeds
    cli                  fire-opd: one line for each verb
"""

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config import FiReOPDConfig
    from .methods import METHODS, control
    from .pipeline import Context, Divergence, Method, Rollout, Scores, Signal, distil
    from .trainer import FiReOPDTrainer

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

# Where the public names are, apart from the pipeline's. Nothing is imported before it is asked for: `fire-opd --help`
# needs no torch (seconds), and the mathematics, which needs torch alone, no trl (more seconds).
_MODULES = {"METHODS": "methods", "control": "methods", "FiReOPDConfig": "config", "FiReOPDTrainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'pipeline')}", __name__), name)
