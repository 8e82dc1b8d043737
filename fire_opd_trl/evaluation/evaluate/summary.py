"""What samples say of one model on one task, and what separates two models on the same problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import isnan, nan
from statistics import fmean
from typing import TYPE_CHECKING

from ..statistics import LEVEL, holm, mean_and_error, paired_bootstrap, pass_at_k, share_interval
from .grading import normalised


if TYPE_CHECKING:
    from .samples import Sample

Counts = dict[str, tuple[int, int]]  # of each problem: its right samples, and all of them


@dataclass(frozen=True)
class Summary:
    """
    One model on one task. Every problem counts alike, however many of its samples there are; problems without any
    are left out. What cannot be said is `nan`: a spread needs two problems.

    Attributes:
        problems (`int`): Number of problems that have samples: those that the numbers are over.
        n (`int`): Samples for each problem that were asked.
        avg (`float`): Avg@n, the mean share of right samples.
        stderr (`float`): Its standard error over the problems.
        interval (`tuple[float, float]`): Its 95 % interval, see [`share_interval`].
        pass_at (`dict[int, float]`):
            Unbiased pass@k for k = 1, 2, 4 ... and n, each over the problems that have k samples.
        pass_at_stderr (`dict[int, float]`): Their standard errors over the problems.
        maj_at_n (`float`):
            The share of problems whose most frequent answer is right; where several are the most frequent, the
            probability to draw a right one of them.
        maj_stderr (`float`): Its standard error over the problems.
        truncated (`float`): Share of samples that were cut at the limit of tokens.
        no_answer (`float`): Share of samples in which no answer was found.
        timeouts (`int`): Answers that math-verify did not finish in time; like the next two, they count as wrong.
        deaths (`int`): Answers that a grader died of.
        unparsed (`int`): Answers that are no mathematics to math-verify.
        mean_tokens (`float`): Mean length.
        tokens_stderr (`float`): Its standard error over the problems.
        missing (`int`): Samples that were not run or ended in an error; with any, the result is partial.
    """

    problems: int
    n: int
    avg: float
    stderr: float
    interval: tuple[float, float]
    pass_at: dict[int, float]
    pass_at_stderr: dict[int, float]
    maj_at_n: float
    maj_stderr: float
    truncated: float
    no_answer: float
    timeouts: int
    deaths: int
    unparsed: int
    mean_tokens: float
    tokens_stderr: float
    missing: int


@dataclass(frozen=True)
class Difference:
    """
    What separates two models on the problems that both have samples of.

    Attributes:
        first (`str`): Name of the first model.
        second (`str`): Name of the second model.
        difference (`float`): Avg@n of the second, less that of the first.
        interval (`tuple[float, float]`): Its 95 % interval, see [`paired_bootstrap`].
        p (`float`): Two-sided probability of a difference this far from 0 if there were none.
        p_holm (`float`): The same after Holm's adjustment for all differences of the table.
        problems (`int`): Number of problems that both have samples of.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    problems: int

    @property
    def verdict(self) -> str:
        """What may be said of the second model, seen from the first: a key of `style.VERDICTS`."""
        if isnan(self.p_holm):
            return "none"
        return "unclear" if self.p_holm > LEVEL else "higher" if self.difference > 0 else "lower"


def summarize(samples: Iterable[Sample], n: int, problems: int | None = None) -> Summary:
    """
    Returns the summary of one model on one task; `run` calls it after every task, and after an interruption.

    Args:
        samples (`list[Sample]`): All samples that there are, in any order. Those that ended in an error are missing.
        n (`int`): Samples for each problem that were asked.
        problems (`int`, *optional*):
            Number of problems that were asked. By default those that occur in `samples`, also with errors alone.
    """
    samples = list(samples)
    rows = list(by_problem(samples).values())
    done = [sample for row in rows for sample in row]
    asked = len({sample.problem for sample in samples}) if problems is None else problems
    shares = [fmean(sample.right for sample in row) for row in rows]
    avg, stderr = mean_and_error(shares)
    passes: dict[int, tuple[float, float]] = {}
    for k in sorted({*(2**power for power in range(n.bit_length())), n}):
        if long := [row for row in rows if len(row) >= k]:
            passes[k] = mean_and_error([pass_at_k(len(row), sum(one.right for one in row), k) for row in long])
    maj, maj_stderr = mean_and_error([majority_right(row) for row in rows])
    tokens, tokens_stderr = mean_and_error([fmean(sample.tokens for sample in row) for row in rows])

    def part(of: Callable[[Sample], bool]) -> float:
        return fmean(map(of, done)) if done else nan

    def count(verdict: str) -> int:
        return sum(sample.verdict == verdict for sample in done)

    return Summary(
        problems=len(rows),
        n=n,
        avg=avg,
        stderr=stderr,
        interval=share_interval(shares),
        pass_at={k: mean for k, (mean, _) in passes.items()},
        pass_at_stderr={k: error for k, (_, error) in passes.items()},
        maj_at_n=maj,
        maj_stderr=maj_stderr,
        truncated=part(lambda sample: sample.stop == "length"),
        no_answer=part(lambda sample: sample.verdict == "no answer"),
        timeouts=count("timeout"),
        deaths=count("died"),
        unparsed=count("unparsed"),
        mean_tokens=tokens,
        tokens_stderr=tokens_stderr,
        missing=asked * n - len(done),
    )


def by_problem(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Returns the samples of each problem that did not end in an error, in the order of their numbers."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.problem, sample.sample)):
        if sample.stop != "error":
            found.setdefault(sample.problem, []).append(sample)
    return found


def largest(row: Iterable[Sample]) -> list[list[Sample]]:
    """
    Returns the most frequent answers to one problem, each as its samples: one, several that are tied, or none without
    any answer. Those without an answer do not vote. All right answers are one, for they are all equal to the gold one.
    Wrong ones are one if they are the same but for spelling and the form of a number ([`normalised`]); to ask
    math-verify of every pair would take hours.
    """
    found: dict[tuple, list[Sample]] = {}
    for sample in row:
        if sample.right or sample.answer and sample.verdict != "no answer":
            found.setdefault((sample.right, sample.right or normalised(sample.answer or "")), []).append(sample)
    most = max(map(len, found.values()), default=0)
    return [group for group in found.values() if len(group) == most]


def majority_right(row: Iterable[Sample]) -> float:
    """Returns the probability that the most frequent answer is right, where ties are decided by lot."""
    tied = largest(row)
    return fmean(group[0].right for group in tied) if tied else 0.0


def majority_answer(samples: Iterable[Sample]) -> str | None:
    """Returns the most frequent answer to one problem as it was first written; of tied ones, the one found first."""
    tied = largest(samples)
    return tied[0][0].answer if tied else None


def compare_all(models: dict[str, Counts]) -> list[Difference]:
    """
    Returns the differences of all models to the first one on one task, with Holm's adjustment over them all. `results`
    calls it for each table and task.
    """
    first, *others = models
    found = [compare(models, first, second) for second in others]
    adjusted = holm({one.second: one.p for one in found if not isnan(one.p)})
    return [replace(one, p_holm=adjusted.get(one.second, nan)) for one in found]


def compare(models: dict[str, Counts], first: str, second: str) -> Difference:
    """Returns the difference of two models, paired over the problems that both have samples of; not adjusted."""
    ours, theirs = models[first], models[second]
    common = sorted(ours.keys() & theirs.keys())
    differences = [theirs[id][0] / theirs[id][1] - ours[id][0] / ours[id][1] for id in common]
    n = min((counts[id][1] for counts in (ours, theirs) for id in common), default=1)
    low, high, p = paired_bootstrap(differences, n)
    return Difference(first, second, fmean(differences) if common else nan, (low, high), p, p, len(common))
