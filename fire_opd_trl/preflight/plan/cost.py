"""
What a step costs at least: the time of its matrix products at the rates that this machine reaches. The benchmark sets
every measured step beside it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


HEAD_TILE = 8192  # columns of the head that are multiplied at a time when its rate is taken
REPEATS = 5
COPIED_BYTES = 2**26
OPTIMIZER_PASSES = 7  # AdamW reads weight, gradient and two moments, and writes all but the gradient


@dataclass(frozen=True)
class DenseShape:
    """
    The shape of a decoder with grouped-query attention, gated layers, and embeddings that are tied to the head.

    Args:
        hidden (`int`): Width of the hidden states.
        layers (`int`): Number of layers.
        heads, kv_heads, head_dim (`int`): Heads of the queries, heads of keys and values, and the width of each.
        intermediate (`int`): Width inside a gated layer.
        vocabulary (`int`): Number of tokens.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights of the model, without the norms: those that are multiplied, and the tied embedding once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocabulary * self.hidden


@dataclass
class Work:
    """
    What passes through a model in one forward or in several: the numbers that decide how much its products compute.

    Args:
        rows (`int`): Rows.
        tokens (`int`): Tokens of prompts and completions.
        padded (`int`): The same with padding.
        pairs (`int`): Pairs of a token and one that it attends to, itself among them.
        scored (`int`): Completion tokens, at which the head is applied.
    """

    rows: int = 0
    tokens: int = 0
    padded: int = 0
    pairs: int = 0
    scored: int = 0

    def add(self, lengths: list[int], width: int, prompt: int) -> None:
        """Add a forward over rows of these lengths, padded to `width`, whose prompts have `prompt` tokens each."""
        self.rows += len(lengths)
        self.tokens += sum(lengths)
        self.padded += len(lengths) * width
        self.pairs += sum(length * (length + 1) // 2 for length in lengths)
        self.scored += sum(length - prompt for length in lengths)


def products(shape: DenseShape) -> dict[str, tuple[int, int]]:
    """The products of a forward with weights: inner and outer dimension, `[tokens, inner] x [inner, outer]`."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "query": (shape.hidden, query),
        "key": (shape.hidden, key),
        "value": (shape.hidden, key),
        "output": (query, shape.hidden),
        "gate": (shape.hidden, shape.intermediate),
        "up": (shape.hidden, shape.intermediate),
        "down": (shape.intermediate, shape.hidden),
        "head": (shape.hidden, shape.vocabulary),
    }


def flops(shape: DenseShape, work: Work) -> dict[str, int]:
    """
    Floating-point operations of a forward by product, two for a multiplication and an addition. Layers run over all
    tokens but padding, the head over completion tokens, attention over the pairs that a causal mask leaves.
    """
    counts = {
        name: 2 * inner * outer * (work.scored if name == "head" else shape.layers * work.tokens)
        for name, (inner, outer) in products(shape).items()
    }
    counts["attention"] = shape.layers * 2 * 2 * shape.heads * shape.head_dim * work.pairs
    return counts


def shape_key(inner: int, outer: int) -> str:
    """The name of a product's shape among the rates."""
    return f"{inner}x{min(outer, HEAD_TILE)}"


def forward_floor(shape: DenseShape, work: Work, rates: dict[str, Any], passes: int = 1) -> float:
    """
    A lower bound of the seconds of one forward, or of a forward and a backward with `passes=3`.

    Each product runs at the best rate of its own shape, attention at the best of all. The bound is their time or, if
    that takes longer, the time to read the weights once at the rate of a copy: both may overlap.
    """
    counts, best = flops(shape, work), max(rates["products"].values())
    speed = {name: rates["products"][shape_key(*dimensions)] for name, dimensions in products(shape).items()}
    computed = sum(count / speed.get(name, best) for name, count in counts.items())
    return max(passes * computed, shape.parameters * rates["element_bytes"] / rates["copy"])


def floors(shape: DenseShape, works: dict[str, Work], rates: dict[str, Any]) -> dict[str, float]:
    """
    Lower bounds of the phases of a step. The update adds what AdamW moves, in float32, after the last backward.

    Args:
        shape ([`DenseShape`]): The models.
        works (`dict[str, Work]`): The work of `"teacher"`, `"student"`, `"update"`; what was not done is absent.
        rates (`dict`): From [`measure_rates`].
    """
    found = {name: forward_floor(shape, work, rates, 3 if name == "update" else 1) for name, work in works.items()}
    if "update" in found:
        found["update"] += OPTIMIZER_PASSES * 4 * shape.parameters / rates["copy"]
    return found


def measure_rates(shape: DenseShape, tokens: int, device: torch.device) -> dict[str, Any]:
    """
    Measure operations a second of a matrix product by its shape, and bytes a second of a copy, read and written. The
    best of a few is taken, since the floor is a lower bound.

    Args:
        shape ([`DenseShape`]): The model.
        tokens (`int`): Tokens that a forward has; the products are measured with at most so many rows.
        device (`torch.device`): Where the model would compute.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = min(8192 if device.type == "cuda" else 2048, tokens)
    rates = {}
    for inner, outer in dict.fromkeys(products(shape).values()):
        outer = min(outer, HEAD_TILE)
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(outer, inner, device=device, dtype=dtype).t()  # as a linear layer holds it
        result = torch.empty(rows, outer, device=device, dtype=dtype)
        seconds = fastest(partial(torch.mm, left, right, out=result), device)
        rates[shape_key(inner, outer)] = 2 * rows * inner * outer / seconds
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy = 2 * COPIED_BYTES / fastest(partial(target.copy_, source), device)
    return {"products": rates, "copy": copy, "element_bytes": dtype.itemsize, "rows": rows}


def fastest(action: Callable[[], Any], device: torch.device) -> float:
    """Call an action a few times, after one call that does not count; return the seconds of the fastest."""
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
