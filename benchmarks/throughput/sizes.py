"""What the arms work on: the shape of the models, the window, and the lengths of its completions."""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from fire_opd_trl.preflight.plan.cost import DenseShape


SHORTEST = 2  # a word and the end: a completion of the end alone trains nothing
DOUBLINGS = 3
AXES = ("rows", "mean_length", "vocabulary")
RANKS = (1, 2, 4)


@dataclass(frozen=True)
class Size(DenseShape):
    """
    A Qwen3 student with random weights, its teacher of the same shape, and one window of completions.

    Args:
        hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary (`int`): As in [`DenseShape`].
        rows (`int`): Completions of a window, which is one optimizer step.
        batch (`int`): Rows in a micro-batch of a rank.
        prompt (`int`): Tokens of every prompt.
        mean_length (`int`): Mean tokens of a completion.
        max_to_mean (`float`): The longest completion over the mean; 1 makes all equally long.
    """

    rows: int
    batch: int
    prompt: int
    mean_length: int
    max_to_mean: float = 4.0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion, the shortest first."""
        return completion_lengths(self.rows, self.mean_length, self.max_to_mean)

    @property
    def useful_tokens(self) -> int:
        """Prompt and completion tokens of a window, without padding."""
        return self.rows * self.prompt + sum(self.lengths)

    def accumulation(self, ranks: int = 1) -> int:
        """Micro-batches of one step on each rank."""
        if self.rows % (self.batch * ranks):
            raise ValueError(
                f"{self.rows} rows cannot be cut into micro-batches of {self.batch} on {ranks} rank(s). Give a "
                f"multiple of {self.batch * ranks}."
            )
        return self.rows // (self.batch * ranks)

    def grown(self, axis: str, doublings: int) -> "Size":
        """The same with one number doubled so many times."""
        return replace(self, **{axis: getattr(self, axis) * 2**doublings})


def completion_lengths(rows: int, mean: int, max_to_mean: float) -> list[int]:
    """
    The quantiles `(i + 1/2) / rows` of a log-normal whose largest is `max_to_mean` times their mean.

    Args:
        rows (`int`): How many.
        mean (`int`): Their mean, up to rounding.
        max_to_mean (`float`): At least 1, and less than `rows`: one of `rows` numbers cannot be more of their sum.

    Returns:
        `list[int]`: Rising lengths, none shorter than 2.
    """
    if not 1 <= max_to_mean <= 0.9 * rows and max_to_mean != 1:
        raise ValueError(f"max_to_mean={max_to_mean}: give a number from 1 to {0.9 * rows:g} for {rows} rows.")
    normal = [NormalDist().inv_cdf((row + 0.5) / rows) for row in range(rows)]

    def shape(sigma: float) -> list[float]:
        return [math.exp(sigma * (z - normal[-1])) for z in normal]

    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rows / sum(shape(middle)) < max_to_mean else (low, middle)
    values = shape(low)
    return [max(SHORTEST, round(value * mean * rows / sum(values))) for value in values]


def unlikely_rows(rows: int, share: float = 0.2) -> list[int]:
    """
    The rows that the filter is to drop: one in the middle of each of `floor(share x rows)` equal stretches of the rows
    by length, so that what is dropped is as long as what is kept.
    """
    count = math.floor(share * rows + 1e-9)
    return [math.floor((place + 0.5) * rows / count) for place in range(count)]


@dataclass(frozen=True)
class SizePreset:
    """A size, the smaller one from which growth starts, and the time that all of it takes, in words."""

    size: Size
    growth: Size
    about: str


TINY = Size(32, 2, 2, 1, 16, 64, 500, rows=8, batch=2, prompt=6, mean_length=16)
SMALL = Size(384, 6, 6, 2, 64, 1152, 50_000, rows=32, batch=4, prompt=32, mean_length=64)
MEDIUM = Size(640, 10, 10, 2, 64, 1920, 50_000, rows=64, batch=4, prompt=32, mean_length=128)
QWEN3 = Size(1024, 28, 16, 8, 128, 3072, 151_936, rows=32, batch=2, prompt=64, mean_length=96)
SIZE_PRESETS = {
    "tiny": SizePreset(TINY, TINY, "0.03 M parameters, seconds: for tests of the benchmark"),
    "small": SizePreset(
        SMALL,
        replace(SMALL, rows=8, mean_length=32, vocabulary=12_500),
        "30 M parameters, a 50 000-token vocabulary: about half an hour on two cores (estimated)",
    ),
    "medium": SizePreset(
        MEDIUM,
        replace(MEDIUM, rows=16, mean_length=64, vocabulary=12_500),
        "80 M parameters, a 50 000-token vocabulary: for a GPU, or hours on two cores (estimated)",
    ),
    "qwen3-0.6b": SizePreset(
        QWEN3,
        replace(QWEN3, rows=8, mean_length=64, vocabulary=37_984),
        "600 M parameters, a 151 936-token vocabulary, the shape of Qwen3-0.6B: for a GPU of 80 GB, a few arms",
    ),
}
