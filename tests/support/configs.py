"""Configurations for tests that need no models."""

import torch

from fire_opd_trl import FiReOPDConfig


def cut(logits_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Nucleus sampling: the fewest tokens that hold `top_p` of the probability."""
    prob_NV, order_NV = logits_NV.softmax(dim=1).sort(dim=1, descending=True)
    outside_NV = prob_NV.cumsum(dim=1) - prob_NV >= top_p
    return logits_NV.masked_fill(outside_NV.gather(1, order_NV.argsort(dim=1)), -torch.inf)


def config(**kwargs) -> FiReOPDConfig:
    return FiReOPDConfig("output", **{"use_cpu": True, "bf16": False, **kwargs})
