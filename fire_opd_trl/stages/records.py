"""What a record of a window takes: tensors, arrays or lists, of one shape. What would broadcast is refused."""

from typing import Any

import torch


FRACTIONS = "numbers with a fraction"
WHOLE = "whole numbers"
YES_OR_NO = "true or false"
AXES = {"B": "one value for each trajectory, [B]", "BT": "one for each token of each trajectory, [B, T]"}


def take_tensors(record: Any, **kinds: str) -> None:
    """
    A record calls this when it is made: its fields become tensors, and are refused if their shapes differ. The suffix
    of a field names its axes.

    Args:
        record: The record, a frozen dataclass. A field that is `None` stays so.
        kinds (`str`): For each field what it holds: `FRACTIONS`, `WHOLE` or `YES_OR_NO`.
    """
    title, first = type(record).__name__, ""
    for name, kind in kinds.items():
        value = getattr(record, name)
        if value is None:
            continue
        tensor = as_tensor(f"{title}: {name}", value, kind, AXES[name.rsplit("_", 1)[1]])
        object.__setattr__(record, name, tensor)
        first = first or name
        shape, wanted = list(tensor.shape), list(getattr(record, first).shape)
        if shape != wanted[: len(shape)]:
            raise ValueError(
                f"{title}: {name} has the shape {shape}, and {first} {wanted}. Give both the same rows (B) and tokens "
                "(T)."
            )


def as_tensor(what: str, value: Any, kind: str, wanted: str) -> torch.Tensor:
    """Returns the value of one field as a tensor, or says what is wrong with it."""
    literal = isinstance(value, list | tuple) and kind == FRACTIONS  # [[-1, -2]] is meant as numbers with a fraction
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32 if literal else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{what} is a {type(value).__name__} that makes no tensor ({error}). Give a tensor, an array or lists of "
            f"numbers, {wanted}; pad rows to one length, and leave padding out of the mask."
        ) from error
    if tensor.dim() != wanted.count(",", wanted.index("[")) + 1:
        raise ValueError(f"{what} has the shape {list(tensor.shape)}. Give {wanted}.")
    if kind == YES_OR_NO:
        return tensor.bool()
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if whole != (kind == WHOLE):
        raise ValueError(f"{what} holds {str(tensor.dtype).removeprefix('torch.')}. Give {kind}.")
    return tensor
