"""Which teacher scores which row."""

from typing import Any

import torch

from ..rollouts.prompts import refuse_malformed, refuse_unrouted, teacher_of


def route_to_teachers(
    inputs: list[dict[str, Any]], names: list[str], columns: tuple[str, str], device: torch.device
) -> torch.Tensor:
    """
    The trainer calls this before a window is sampled. It returns the number of each row's teacher. Rows that nobody
    has checked beforehand may come, so a row that names no teacher, or holds a malformed prompt for its teacher, is
    refused.

    Args:
        columns (`tuple`): The column that names the teacher, and the one with a prompt for it alone.
    """
    column, prompt_column = columns
    for index, row in enumerate(inputs):
        refuse_unrouted(row, index, "window", column, names)
        if row.get(prompt_column) is not None:
            refuse_malformed(row, index, "window", prompt_column)
    return torch.tensor([names.index(teacher_of(row, column, names)) for row in inputs], device=device)
