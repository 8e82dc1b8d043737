"""
The recipes. Each is a choice of one function for every stage; each names its equation, its source, and the setting in
which it becomes plain on-policy distillation (`opd`), to the bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .pipeline import Method
from .stages import SCOPES, confidence_and_confusion, drop_lowest, random_score, shuffled_inside_rows


def opd() -> Method:
    """
    On-policy distillation: `A_t = log pi_T(y_t) - log pi_old(y_t)` on every token of every trajectory.

    Source: the sampled-token form used as the baseline of FiRe-OPD (arXiv 2606.02684) and of G-OPD's code.
    """
    return Method("opd")


def fire(drop_fraction: float = 0.2, confidence: float = 1.0, confusion: float = 1.0, scope: str = "batch") -> Method:
    """
    FiRe-OPD, "filter, then reweight" (arXiv 2606.02684):

        s(y) = 1/|y| sum_t log pi_T(y_t); drop the floor(drop_fraction N) rows of the window with the lowest s;
        w_t  = (1 + a (1 - H_T(t) / max H_T)) (1 + b H_S(t) / max H_S), divided by its mean in the trajectory (Eq. 8);
        A_t  = w_t (log pi_T(y_t) - log pi_old(y_t)).

    Defaults: the paper's 20 %, `a = confidence = 1`, `b = confusion = 1`. `fire(0, 0, 0)` is `opd`.

    Args:
        drop_fraction (`float`): Share of the window's trajectories to drop, in [0, 1).
        confidence (`float`): `a`, weight of the teacher's confidence, >= 0.
        confusion (`float`): `b`, weight of the student's confusion, >= 0.
        scope (`str`): Where to rank and take maxima: `"batch"` (the paper's text), each `"teacher"`, or each
            `"trajectory"`.
    """
    if not 0 <= drop_fraction < 1:
        raise ValueError(f"drop_fraction={drop_fraction}: give a share in [0, 1), for example 0.2; 0 keeps every row.")
    for name, value in (("confidence", confidence), ("confusion", confusion)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value}: give a finite number of at least 0; 0 switches this factor off.")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown. Use one of: {', '.join(SCOPES)}.")
    entropies = [
        name for name, used in (("teacher_entropy_BT", confidence), ("student_entropy_BT", confusion)) if used
    ]
    return Method(
        "fire",
        signals=("teacher_logp_BT", "student_logp_BT", *entropies),
        filter=partial(drop_lowest, fraction=drop_fraction, scope=scope),
        reweight=partial(confidence_and_confusion, confidence=confidence, confusion=confusion, scope=scope),
    )


def fire_released(drop_fraction: float = 0.2, confidence: float = 1.0, confusion: float = 1.0) -> Method:
    """
    What the authors' released code computes in its own recipes, to be compared with: `fire` with every statistic taken
    inside a micro-batch of one trajectory. One row has no lowest fifth, so nothing is ever dropped; the entropy maxima
    are those of the trajectory; and the importance ratio of the rollout engine is not applied.

    Source: read in the released code (`_compute_entropy_aware_loss`, micro-batch 1). `fire_released(0, 0, 0)` is `opd`
    wherever no rollout engine needs correction.
    """
    method = fire(drop_fraction, confidence, confusion, scope="trajectory")
    return replace(method, name="fire_released", rollout_correction=False)


def random(
    drop_fraction: float = 0.2, confidence: float = 1.0, confusion: float = 1.0, scope: str = "batch"
) -> Method:
    """
    The control for `fire`, at the same budget: as many trajectories are dropped, but at random; the survivors' tokens
    get weights of the same values, but in a random order inside each trajectory. What `fire` gains over this, it gains
    by knowing something. Ours; no paper. `random(0, 0, 0)` is `opd`.
    """
    method = fire(drop_fraction, confidence, confusion, scope)

    def shuffled(rollout, scores, context):
        return shuffled_inside_rows(method.reweight(rollout, scores, context), rollout, context)

    return replace(method, name="random", score=random_score, reweight=shuffled)


METHODS: dict[str, Callable[..., Method]] = {
    "opd": opd,
    "fire": fire,
    "fire_released": fire_released,
    "random": random,
}
