"""How a forward sees the rows of a slice: each in one line, or in TRL's rectangle."""

import torch


def rounded(length: int, multiple: int) -> int:
    """Up to a multiple of `multiple`."""
    return -(-length // multiple) * multiple


def in_lines(part: dict, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Each row in one line, completion right behind prompt, padding last. The rectangle is as wide as the longest row,
    not as the longest prompt and the longest completion together; positions count from the row's first token, as in
    generation; and a causal model never looks at the padding, whatever it holds.

    Args:
        part (`dict`): Rows in TRL's layout.
        multiple (`int`): Round the width up to a multiple of this.

    Returns:
        `ids_BL`, `mask_BL` (true on the row's tokens), `label_BL` (-100 but on completion tokens, of which only those
        that train where that is known: what a tool wrote needs no head), and `column_BC`:
        which of the line's next-token predictions is about each completion token, from the right end, -1 the last: a
        student's virtual tokens stand on the left.
    """
    prompt_B1 = part["prompt_mask"].sum(dim=1, keepdim=True).clamp(min=1)  # an empty prompt is one padding token
    end_B1, width_P = prompt_B1 + part["completion_mask"].sum(dim=1, keepdim=True), part["prompt_ids"].shape[1]
    column_L = torch.arange(max(2, rounded(int(end_B1.max()), multiple)), device=end_B1.device)
    both = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
    ids_BL = both.gather(1, (column_L + width_P - prompt_B1).clamp(max=both.shape[1] - 1)) * (column_L < end_B1)
    place_BL, wanted_BC = (
        column_L - prompt_B1,
        part["train_mask" if "train_mask" in part else "completion_mask"].bool(),
    )
    wanted_BL = wanted_BC.gather(1, place_BL.clamp(0, wanted_BC.shape[1] - 1)) & (place_BL >= 0) & (column_L < end_B1)
    label_BL = torch.where(wanted_BL, ids_BL, -100)
    column_C = torch.arange(part["completion_ids"].shape[1], device=end_B1.device)
    return ids_BL, column_L < end_B1, label_BL, (prompt_B1 - len(column_L) + column_C).clamp(max=-1)


def in_a_rectangle(part: dict) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """TRL's layout as one rectangle: ids, mask, width of the completions, and the columns that are about them."""
    ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
    mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
    width = part["completion_ids"].shape[1]
    return ids, mask, width, torch.arange(-width, 0, device=ids.device).expand(len(ids), -1)
