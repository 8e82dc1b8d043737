"""
Intervals over seeds and over problems, paired by either, and what may be concluded from many of them. Numbers in,
numbers out.
"""

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


# Over the problems of a benchmark. Problems are a sample of those that might have been asked; how good a model is on
# them is a share of right answers each, so that the spread of these shares holds both what problems differ by and
# what samples of one problem do.


def pass_at_k(n: int, right: int, k: int) -> float:
    """
    The probability that one of `k` samples is right, where `right` of `n` were: the share of all sets of `k` of them
    that have a right one. Its mean over many runs is the true probability, for any `k` up to `n`.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean over problems and its standard error; `nan` where there is nothing to judge by."""
    mean = fmean(values) if values else math.nan
    return mean, stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def share_interval(shares: list[float]) -> tuple[float, float]:
    """
    The 95 % interval of a mean over problems of numbers from 0 to 1, such as Avg@n or pass@k.

    It is the t-interval over the problems and two more: one with 0, one with 1. Without these it would have no width
    where all are solved, and would hold the true value in 10 to 60 of 100 evaluations of models that solve most or
    few of the problems; with them it does in 93 to 100 of 100, at any size (see docs/evaluate_statistics.md).
    """
    if len(shares) < 2:
        return math.nan, math.nan
    mean, error = mean_and_error([*shares, 0.0, 1.0])
    half_width = t_quantile(len(shares) + 1) * error
    return max(0.0, mean - half_width), min(1.0, mean + half_width)


def paired_bootstrap(
    differences: list[float], n: int, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float, float]:
    """
    The 95 % interval of the mean difference of two models over the same problems, and its two-sided p.

    Problems are drawn again and again, with replacement, and the outer ends of the means are cut off. Two corrections
    make it hold for few problems as well. Two more problems, with the differences that one sample makes by chance,
    `+-1 / sqrt(n)`, are among those that are drawn: two models that answer all alike are not proven to be equal. And
    a little less than 2.5 % are cut off on either side, as much less as Student's t is wider than the normal. The p is
    the level at which the interval would end at 0.

    Args:
        differences (`list[float]`): The difference of the two shares of right answers, for each problem.
        n (`int`): The number of samples that a share is of.
        seed (`int`, *optional*): Of the drawing.
        resamples (`int`, *optional*): How often problems are drawn.
    """
    if len(differences) < 2:
        return math.nan, math.nan, math.nan
    import numpy as np

    special, draw = scipy_special(), np.random.default_rng(seed)
    values = np.array([*differences, 1 / math.sqrt(n), -1 / math.sqrt(n)])
    size = len(values)
    means = np.concatenate(
        [
            draw.choice(values, (min(500, resamples - done), size)).mean(axis=1)  # in pieces, which need less memory
            for done in range(0, resamples, 500)
        ]
    )
    wider = math.sqrt(size / (size - 1))
    cut = special.ndtr(-wider * t_quantile(size - 1))
    low, high = np.quantile(means, [cut, 1 - cut])
    beyond = (min((means < 1e-12).sum(), (means > -1e-12).sum()) + 1) / (resamples + 1)
    t = float(special.ndtri(beyond)) / wider
    return float(low), float(high), t_two_sided(t, size - 1) if t < 0 else 1.0
