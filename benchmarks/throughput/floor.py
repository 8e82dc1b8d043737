"""The floor: what the matrix products of a step would take at the rates that this machine reaches in the same run."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .phases import Work
from .sizes import Size


HEAD_TILE = 8192  # columns of the head that are multiplied at a time when its rate is taken
REPEATS = 5
COPIED_BYTES = 2**26
OPTIMIZER_PASSES = 7  # AdamW reads weight, gradient and two moments, and writes all but the gradient


def products(size: Size) -> dict[str, tuple[int, int]]:
    """The products of a forward with weights: inner and outer dimension, `[tokens, inner] x [inner, outer]`."""
    query, key = size.heads * size.head_dim, size.kv_heads * size.head_dim
    return {
        "query": (size.hidden, query),
        "key": (size.hidden, key),
        "value": (size.hidden, key),
        "output": (query, size.hidden),
        "gate": (size.hidden, size.intermediate),
        "up": (size.hidden, size.intermediate),
        "down": (size.intermediate, size.hidden),
        "head": (size.hidden, size.vocabulary),
    }


def flops(size: Size, work: Work) -> dict[str, int]:
    """
    Floating-point operations of a forward by product, two for a multiplication and an addition. Layers run over all
    tokens but padding, the head over completion tokens, attention over the pairs that a causal mask leaves.
    """
    counts = {
        name: 2 * inner * outer * (work.scored if name == "head" else size.layers * work.tokens)
        for name, (inner, outer) in products(size).items()
    }
    counts["attention"] = size.layers * 2 * 2 * size.heads * size.head_dim * work.pairs
    return counts


def shape_key(inner: int, outer: int) -> str:
    """The name of a shape among the rates."""
    return f"{inner}x{min(outer, HEAD_TILE)}"


def forward_floor(size: Size, work: Work, rates: dict[str, Any], passes: int = 1) -> float:
    """
    A lower bound of the seconds of one forward, or of a forward and a backward with `passes=3`.

    Each product at the best rate of its own shape, attention at the best of all; or, if that takes longer, reading the
    weights once at the rate of a copy. The larger of both, since they may overlap.
    """
    counts, best = flops(size, work), max(rates["products"].values())
    speed = {name: rates["products"][shape_key(*shape)] for name, shape in products(size).items()}
    computed = sum(count / speed.get(name, best) for name, count in counts.items())
    return max(passes * computed, size.parameters * rates["element_bytes"] / rates["copy"])


def floors(size: Size, works: dict[str, Work], rates: dict[str, Any]) -> dict[str, float]:
    """
    Lower bounds of the phases of a step. The update adds what AdamW moves, in float32, after the last backward.

    Args:
        size ([`Size`]): The models.
        works (`dict[str, Work]`): The work of `"teacher"`, `"student"`, `"update"`; what was not done is absent.
        rates (`dict`): From [`measured_rates`].
    """
    found = {name: forward_floor(size, work, rates, 3 if name == "update" else 1) for name, work in works.items()}
    if "update" in found:
        found["update"] += OPTIMIZER_PASSES * 4 * size.parameters / rates["copy"]
    return found


def measured_rates(size: Size, device: torch.device) -> dict[str, Any]:
    """
    Operations a second of a matrix product by its shape, and bytes a second of a copy, read and written: the best of a
    few each, for they bound from below.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = min(8192 if device.type == "cuda" else 2048, size.useful_tokens)
    rates = {}
    for inner, outer in dict.fromkeys(products(size).values()):
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
    """Seconds of the fastest of a few calls, after one that does not count."""
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
