"""Two signals that must be equal to the bit."""

import torch

from fire_opd_trl import Context, Signal


CONTEXT = Context(seed=7)


def tensors(signal: Signal) -> dict[str, torch.Tensor]:
    """What is said of each token."""
    named = {name: vars(signal)[name] for name in ("weight_BT", "advantage_BT", "divergence_BT")}
    return {name: value_BT for name, value_BT in named.items() if value_BT is not None}


def assert_bitwise(one: Signal, other: Signal):
    assert torch.equal(one.keep_B, other.keep_B)
    assert tensors(one).keys() == tensors(other).keys()
    assert all(torch.equal(value_BT, tensors(other)[name]) for name, value_BT in tensors(one).items())
    assert one.metrics == other.metrics  # equal floats; a NaN equals nothing
