"""One sampled answer, graded: what the whole room counts, compares and shows."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """
    One completion of one problem.

    Args:
        task (`str`): Name of the task.
        problem (`str`): `Problem.id`.
        sample (`int`): Which of the `n` samples of the problem, from 1.
        seed (`int`): The seed that it was sampled with, from [`seed_of`].
        text (`str`): The completion, special tokens stripped.
        answer (`str`, *optional*): The final answer found in it.
        verdict (`str`): One of `grading.VERDICTS`.
        stop (`str`): `"stop"` (the end token), `"length"` (the limit of new tokens, or of the context) or `"error"`.
        tokens (`int`): Tokens that were generated: the end token is one, padding is none.
        seconds (`float`, *optional*): From when it was asked for until it came; others were sampled meanwhile.
    """

    task: str
    problem: str
    sample: int
    seed: int
    text: str
    answer: str | None
    verdict: str
    stop: str
    tokens: int
    seconds: float | None = None

    @property
    def right(self) -> bool:
        return self.verdict == "right"

    @property
    def failed(self) -> bool:
        """Whether it was not sampled, because of an error: it then counts as missing, not as wrong."""
        return self.stop == "error"


def seed_of(seed: int, problem_id: str, sample: int) -> int:
    """
    Returns the seed of one sample, 31 bits of a hash. Engines and the callback call this: no two samples of a task
    share random numbers, and which other samples run, in which order, changes nothing. Problems of one id in two tasks
    do share them: the task is no part of it, so that a task may be renamed.
    """
    digest = hashlib.sha256(f"{seed}/{problem_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def in_order(samples: Iterable[Sample], problems: Iterable[str]) -> list[Sample]:
    """Returns the samples in the order of their problems and numbers, whatever order they were finished in."""
    place = {problem: index for index, problem in enumerate(problems)}
    return sorted(samples, key=lambda sample: (place[sample.problem], sample.sample))


def to_row(sample: Sample) -> dict[str, Any]:
    """Returns a sample as a line of `OUT/samples`. Its time is left out, so that equal runs write equal files."""
    return {name: value for name, value in asdict(sample).items() if name != "seconds"}
