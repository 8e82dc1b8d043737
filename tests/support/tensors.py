"""Small tensors, masks and scores, written by hand."""

import torch

from fire_opd_trl import Context, Scores
from fire_opd_trl.stages import (
    World,
)


CONTEXT = Context()


class Later(World):
    """One process whose rows come after `before` others, which it cannot see."""

    def __init__(self, before: int):
        self.before = before

    def local_slice(self, rows: int) -> slice:
        return slice(self.before, self.before + rows)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask(*rows: str) -> torch.Tensor:
    """`mask("110", "001")`: one string for each row."""
    return torch.tensor([[token == "1" for token in row] for row in rows])


def scores_of(mask_BT: torch.Tensor, **signals) -> Scores:
    """Scores in which everything that is not named is zero."""
    zero_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
    return Scores(**{"teacher_logp_BT": zero_BT, "student_logp_BT": zero_BT, **signals})


def ragged_mask(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random masks with holes; every row has a token."""
    mask_BT = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask_BT[~mask_BT.any(dim=1), 0] = True
    return mask_BT
