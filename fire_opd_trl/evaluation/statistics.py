"""Intervals over seeds, paired by seed, and what may be concluded from many of them. Numbers in, numbers out."""

import math
import random
from dataclasses import dataclass
from statistics import fmean, stdev


LEVEL = 0.05
RESAMPLES = 2000


def scipy_special():
    """Return `scipy.special`, which has Student's t. A command calls this first, before it computes for hours."""
    try:
        from scipy import special
    except ImportError:
        raise ImportError("Intervals over seeds need scipy: pip install fire-opd-trl[report]", name="scipy") from None
    return special


def t_two_sided(t: float, df: int) -> float:
    """Probability that a Student t variable with `df` degrees of freedom is at least as far from 0 as `t`."""
    return float(scipy_special().betainc(df / 2, 0.5, df / (df + t * t)))


def t_quantile(df: int, level: float = LEVEL) -> float:
    """The `t` at which `t_two_sided(t, df)` is `level`: half the width of an interval, in standard errors."""
    return float(-scipy_special().stdtrit(df, level / 2))


@dataclass(frozen=True)
class Estimate:
    """
    A mean over seeds.

    Args:
        mean (`float`): The mean.
        half_width (`float`, *optional*): Half the 95 % interval; `None` where the seeds cannot tell.
        p (`float`, *optional*): Two-sided probability of a mean this far from 0 if it were 0.
        n (`int`): Number of seeds.
    """

    mean: float
    half_width: float | None
    p: float | None
    n: int


def estimate(values: list[float]) -> Estimate:
    """
    Mean of `values` with its t-interval, `mean +- t sd / sqrt(n)`.

    One value has no spread to judge by. Nor have equal values other than 0: that a few seeds agree to the last digit
    is chance, and an interval of width 0 would claim certainty. Values that are all 0 are no difference, exactly.
    """
    n, mean = len(values), fmean(values)
    if not any(values):
        return Estimate(0.0, 0.0 if n > 1 else None, 1.0 if n > 1 else None, n)
    error = stdev(values) / math.sqrt(n) if n > 1 else 0.0
    if error <= 1e-12 * abs(mean):
        return Estimate(mean, None, None, n)
    return Estimate(mean, t_quantile(n - 1) * error, t_two_sided(mean / error, n - 1), n)


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Estimate | None:
    """The mean difference `ours - theirs` over the seeds that both have; `None` if there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """
    Holm's adjustment: to call those at most 0.05 different is wrong for any of them in at most 5 % of tables.

    The smallest of `m` is multiplied by `m`, the next by `m - 1`, and so on; none may end below an earlier one.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def band(curves: list[list[float]]) -> tuple[list[float], list[float], list[float]]:
    """Mean, lower and upper end at each point of several curves; where the seeds cannot tell, all three are equal."""
    points = [estimate(list(values)) for values in zip(*curves, strict=True)]
    return (
        [point.mean for point in points],
        [point.mean - (point.half_width or 0.0) for point in points],
        [point.mean + (point.half_width or 0.0) for point in points],
    )


def ratio_interval(sums: list[float], counts: list[float], seed: int) -> tuple[float, float]:
    """
    The 95 % interval of `sum(sums) / sum(counts)`, a mean over tokens that come in clusters (answers to one prompt):
    whole clusters are drawn again and again, with replacement, and the outer 2.5 % on either side are cut off.
    """
    if not sums:
        return math.nan, math.nan
    draw, clusters = random.Random(seed), range(len(sums))
    ratios = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(clusters, k=len(sums))
        ratios.append(sum(sums[one] for one in drawn) / sum(counts[one] for one in drawn))
    ratios.sort()
    cut = round(LEVEL / 2 * RESAMPLES)
    return ratios[cut], ratios[-1 - cut]
