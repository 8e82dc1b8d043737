"""The stages of on-policy distillation, in the order in which data flows through them; each imports torch alone."""

from .advantage import (
    DIRECTIONS,
    STATISTICS,
    combined,
    extrapolated,
    floored,
    group_calibrated,
    imitate_correct,
    margin_shifted,
    mixture_floor,
    no_policy_gradient,
    power_difference,
)
from .divergence import Divergence, distrusted, trusted, uncertain_teacher
from .filter import as_many_at_random, drop_lowest, enough_margin, keep_all, mixed_outcomes
from .group import correct_B, group_mean_B, group_z_B, mixed_outcome_B, outcome_margin_B, over_group_B, over_same_B
from .loss import LOSS_TYPES, aggregate, clipped_surrogate, reference_kl, row_scale
from .metrics import metrics_by_teacher, window_metrics
from .repetition import looped_tail_B
from .reweight import (
    confidence_and_confusion,
    early_tokens,
    likely_rows,
    mean_one_BT,
    share_of_max_BT,
    shuffled_inside_rows,
    shuffled_over_rows,
    surprising_or_plausible,
    uniform,
)
from .rollout import Rollout, masked_mean_B, masked_sum_B
from .scope import SCOPES, scope_B, scope_max_B, window_quantile
from .score import Scores, finite_B, log_ratio, mean_log_ratio, mean_teacher_logp
from .select import (
    agreeing_with_verifier,
    explore_then_refine,
    highest_weights,
    top_share_BT,
    unit_range_BT,
    unsure_or_far,
)
from .soundness import checked_output, refuse_broken_student, refuse_incomplete, refuse_missing, usable_B
from .watchdogs import WATCHDOGS
from .world import Context, World, failing_alike, global_row_B, order_by_draw, random_order_N, uniform_hash


def __getattr__(name: str):
    """The names that some functions had before they were named plainly; methods of one's own may import them."""
    if name == "nothing":
        return no_policy_gradient
    renamed = {"even": uniform, "mixed": combined, "sound": checked_output}
    if name in renamed:
        return renamed[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
