"""By how much two computations of the same numbers differ, beside a bound that was stated before."""

from typing import Any

import torch


Numbers = torch.Tensor | list[torch.Tensor]


def difference(
    what: str, setting: str, found: Numbers, expected: Numbers, bound: float, of: str, why: str
) -> dict[str, Any]:
    """
    A row of a table of differences.

    Args:
        what (`str`): The quantity.
        setting (`str`): In which precision, by which kernel it was computed.
        found, expected (`torch.Tensor` or `list[torch.Tensor]`): The numbers, and what they are compared with.
        bound (`float`): What the figure that `of` names must not exceed.
        of (`str`): `"max"` or `"mean"`, of the absolute difference; or `"relative"`: the norm of the difference over
            the norm of what was expected.
        why (`str`): Where the bound comes from.
    """
    found, expected = ([one] if isinstance(one, torch.Tensor) else one for one in (found, expected))
    largest, total, squares, norm, count = 0.0, 0.0, 0.0, 0.0, 0
    for one, other in zip(found, expected, strict=True):  # one at a time: in float64 all of a gradient may be too much
        other = other.detach().double()
        gap = one.detach().double() - other
        largest = torch.tensor([largest, gap.abs().max().item()]).max().item()  # unlike Python's, it keeps NaN
        total, count = total + gap.abs().sum().item(), count + gap.numel()
        squares, norm = squares + gap.square().sum().item(), norm + other.square().sum().item()
    figures = {"max": largest, "mean": total / count, "relative": (squares / norm) ** 0.5 if norm else squares**0.5}
    holds = figures[of] <= bound  # NaN is within no bound
    return {"what": what, "setting": setting, **figures, "of": of, "bound": bound, "why": why, "holds": holds}


def not_compared(what: str, setting: str, reason: str) -> dict[str, Any]:
    """A row for what could not be computed here."""
    return {"what": what, "setting": setting, "skipped": reason}
