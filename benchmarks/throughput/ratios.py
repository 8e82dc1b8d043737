"""Paired ratios with their intervals, and the exponents of growth. Numbers in, numbers out."""

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from fire_opd_trl.evaluation.statistics import estimate


@dataclass(frozen=True)
class Ratio:
    """
    A ratio of two times of the same round, over the rounds.

    Args:
        median (`float`): The middle one.
        low, high (`float`, *optional*):
            The 95 % t-interval of the mean logarithm; `None` where the rounds cannot tell.
        least, most (`float`): The smallest and the largest.
        n (`int`): Number of rounds.
    """

    median: float
    low: float | None
    high: float | None
    least: float
    most: float
    n: int


def ratio(above: list[float], below: list[float]) -> Ratio:
    """The ratios of two lists, round by round."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    logarithms = estimate([math.log(value) for value in values])
    low = high = None
    if logarithms.half_width is not None:
        low = math.exp(logarithms.mean - logarithms.half_width)
        high = math.exp(logarithms.mean + logarithms.half_width)
    return Ratio(median(values), low, high, min(values), max(values), len(values))


def exponent(values: list[float], seconds: list[float]) -> float:
    """The `p` of `seconds ~ values ** p`, by least squares of the logarithms."""
    x, y = [math.log(value) for value in values], [math.log(second) for second in seconds]
    middle_x, middle_y = fmean(x), fmean(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread


def step_seconds(rounds: list[dict[str, Any]]) -> list[float]:
    """Seconds of whole steps."""
    return [answer["seconds"] for answer in rounds]


def without_rollout(rounds: list[dict[str, Any]]) -> list[float]:
    """Seconds of scoring and update."""
    return [answer["seconds"] - answer["phases"]["rollout"] for answer in rounds]


def phase_seconds(rounds: list[dict[str, Any]], *phases: str) -> list[float]:
    """Seconds of some phases."""
    return [sum(answer["phases"][phase] for phase in phases) for answer in rounds]
