"""What the tests expect of every method: one entry for each, and the only table that a new method must be added to."""

import math
from dataclasses import dataclass, field
from typing import Any


INF = math.inf
ENTROPIES = ("teacher_entropy_BT", "student_entropy_BT")
OUTCOMES = ("reward_B", "group_B")
GROUP = {"generations": 4, "rewards": True}
FIRE = {"drop_fraction": 0.2, "confidence": 1.0, "confusion": 1.0}  # p = 20 %, alpha = beta = 1
NO_FIRE = {"drop_fraction": 0, "confidence": 0, "confusion": 0}


@dataclass(frozen=True)
class Expected:
    """
    Args:
        section (`str`): Section of the notes on the literature.
        defaults (`dict`): The arguments of the recipe, with what stands there.
        neutral (`tuple`): Settings in which it is plain distillation, each with the method that it then is.
        reads (`tuple`): What it reads beside the two log-probabilities.
        needs (`tuple`): What it reads of the rollout.
        controls (`str`): What of it can be made random: `"filter"`, `"tokens"`, `"both"` or `"none"`.
        layout (`dict`): Of `support.worker`, how it is trained on the embedded pair.
    """

    section: str
    defaults: dict[str, Any]
    neutral: tuple[tuple[dict[str, Any], str], ...]
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    controls: str = "none"
    layout: dict[str, Any] = field(default_factory=dict)


EXPECTED = {
    "opd": Expected("1a", {}, (({}, "opd"),)),
    "fire": Expected(
        "18",
        {**FIRE, "scope": "batch", "rows": "hard", "tokens": "soft", "keep_tokens": 0.5},
        ((NO_FIRE, "opd"), ({**NO_FIRE, "rows": "soft"}, "opd")),
        ENTROPIES,
        controls="both",
    ),
    "fire_released": Expected("18", FIRE, ((NO_FIRE, "opd"),), ENTROPIES, controls="both"),
    "fire_full": Expected(
        "18 and 1b, ours", {**FIRE, "scope": "batch"}, ((NO_FIRE, "opd_full"),), ENTROPIES, controls="both"
    ),
    "random": Expected("18, its control", {**FIRE, "scope": "batch"}, ((NO_FIRE, "opd"),), ENTROPIES, controls="both"),
    "exopd": Expected("2", {"extrapolation": 1.25}, (({"extrapolation": 1}, "opd"),), ("reference_logp_BT",)),
    "tip": Expected(
        "3",
        {"keep": 0.5, "clip_quantile": 0.98, "full": True},
        (({"keep": 1, "full": False}, "opd"), ({"keep": 1}, "opd_full")),
        ("student_entropy_BT", "reverse_kl_BT"),
        controls="tokens",
    ),
    "eopd": Expected(
        "4",
        {"threshold": 0.8, "top_k": 16, "coef": 1.0},
        (({"coef": 0}, "opd"),),
        ("teacher_entropy_BT",),
        controls="tokens",
        # The embedded teacher is hardly ever as unsure as EOPD's 0.8 nats, and has 16 tokens.
        layout={"config": {"method_kwargs": {"threshold": 0.02, "top_k": 4}}},
    ),
    "reopold": Expected(
        "5",
        {"floor": 0.2, "keep": 0.5, "switch": 0.5},
        (({"floor": 0, "keep": 1}, "opd"),),
        ("student_entropy_BT",),
        controls="tokens",
    ),
    "uni_opd": Expected(
        "6",
        {"margin": 0.4, "statistic": "mean", "direction": "both", "calibrate": "shift"},
        (({"margin": -INF}, "opd"), ({"margin": -INF, "calibrate": "mask", "statistic": "minmax"}, "opd")),
        needs=OUTCOMES,
        layout=GROUP,
    ),
    # Never `opd`: of that it is the expectation.
    "opd_full": Expected("1b", {"mixture": 1.0}, (({}, "opd_full"),)),
    "iw_opd": Expected("17a", {"strength": 0.5}, (({"strength": 0}, "opd"),), controls="tokens"),
    "power_opd": Expected("19.2", {"power": 5.0}, (({"power": 0}, "opd"),)),
    "gc_opd": Expected(
        "19.1",
        {"strength": 0.1, "largest": 10.0},
        (({"strength": 0, "largest": INF}, "opd"),),
        needs=OUTCOMES,
        layout=GROUP,
    ),
    "scope": Expected(
        "7",
        {"temperature": 1.0, "imitate": True},
        (({"temperature": INF, "imitate": False}, "opd"),),
        needs=OUTCOMES,
        controls="filter",
        layout=GROUP,
    ),
    "opdvr": Expected(
        "19.4",
        {"conflict": 0.0, "group": False},
        (({"conflict": 1}, "opd"),),
        needs=("reward_B",),
        controls="tokens",
        layout=GROUP,
    ),
    "tropd": Expected(
        "9",
        {"top_k": 64, "outliers": "forward_kl"},
        (({"outliers": "opd"}, "opd"),),
        controls="tokens",
        layout={"config": {"method_kwargs": {"top_k": 4}}},
    ),
}
