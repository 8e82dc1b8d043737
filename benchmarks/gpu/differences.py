"""By how much two computations of the same numbers differ, beside a bound that was stated before."""

from typing import Any

import torch


def difference(
    what: str, setting: str, found: torch.Tensor, expected: torch.Tensor, bound: float, of: str, why: str
) -> dict[str, Any]:
    """
    A row of a table of differences.

    Args:
        what (`str`): The quantity.
        setting (`str`): In which precision, by which kernel it was computed.
        found, expected (`torch.Tensor`): The numbers, and what they are compared with.
        bound (`float`): What the figure that `of` names must not exceed.
        of (`str`): `"max"` or `"mean"`, of the absolute difference; or `"relative"`: the norm of the difference over
            the norm of what was expected.
        why (`str`): Where the bound comes from.
    """
    expected = expected.detach().double()
    gap = found.detach().double() - expected
    figures = {
        "max": gap.abs().max().item(),
        "mean": gap.abs().mean().item(),
        "relative": (gap.norm() / expected.norm()).item(),
    }
    # NaN is within no bound
    return {
        "what": what,
        "setting": setting,
        **figures,
        "of": of,
        "bound": bound,
        "why": why,
        "holds": figures[of] <= bound,
    }


def not_compared(what: str, setting: str, reason: str) -> dict[str, Any]:
    """A row for what could not be computed here."""
    return {"what": what, "setting": setting, "skipped": reason}
