"""The stages of on-policy distillation, in the order in which data flows through them; each imports torch alone."""

from .advantage import log_ratio, mixed
from .filter import drop_lowest, keep_all
from .loss import LOSS_TYPES, aggregate, clipped_surrogate, reference_kl, row_scale
from .metrics import window_metrics
from .reweight import confidence_and_confusion, even, mean_one_BT, share_of_max_BT, shuffled_inside_rows
from .rollout import Rollout, masked_mean_B, masked_sum_B
from .scope import SCOPES, scope_B, scope_max_B
from .score import Scores, finite_B, mean_teacher_logp, random_score
from .world import Context, World, global_row_B, uniform_hash


__all__ = [
    "LOSS_TYPES",
    "SCOPES",
    "Context",
    "Rollout",
    "Scores",
    "World",
    "aggregate",
    "clipped_surrogate",
    "confidence_and_confusion",
    "drop_lowest",
    "even",
    "finite_B",
    "global_row_B",
    "keep_all",
    "log_ratio",
    "masked_mean_B",
    "masked_sum_B",
    "mixed",
    "mean_one_BT",
    "mean_teacher_logp",
    "random_score",
    "reference_kl",
    "row_scale",
    "scope_B",
    "scope_max_B",
    "share_of_max_BT",
    "shuffled_inside_rows",
    "uniform_hash",
    "window_metrics",
]
