"""Runs of the comparison that were never trained."""

from fire_opd_trl.evaluation.compare import runs
from fire_opd_trl.evaluation.compare.presets import ARMS


def invented(name: str, seed: int, after: float, **changes) -> dict:
    """A run that nobody made."""
    arm = ARMS[name]
    return {
        "arm": {"name": arm.name, **arm.trained_with},
        "seed": seed,
        "settings": runs.shared_settings(60, 2000, 500, 10),
        "versions": {"trl": "1.16.0"},
        **{"before": 0.5, "before_greedy": 0.8, "teacher": 0.98, "teacher_greedy": 1.0},
        **{"after": after, "after_greedy": 0.9, "curve": [[0, 0.5], [60, after]], "cpu_seconds_per_step": 0.5},
        **{"kept_token_ratio": None, "advantage_abs": None, "response_length": None, "history": []},
        **changes,
    }
