"""Models and rollouts -> log-probability and entropy of each sampled token, in short batches of similar length."""

from collections.abc import Callable

import torch

from ..rollouts.layout import Batch, lengths, take
from ..rollouts.packing import cut_at_least_cost, cut_to_count, shortest_row
from ..stages import World


# What a forward costs beside its tokens, in tokens: little where kernels are slow, much where launching them is.
FORWARD = {"cpu": 128, "cuda": 1024}


@torch.no_grad()
def score_rows(
    forward: Callable[[Batch], tuple],
    batch: Batch,
    token_budget: int,
    world: World,
    vocabulary: int,
    rows: list[int] | None = None,
    multiple: int = 1,
    unknown: frozenset[int] = frozenset(),
) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[torch.Tensor]]]:
    """
    Score rows of a batch under one model: sorted by length, cut where it costs least, at most `token_budget` padded
    tokens at a time, and equally many forwards on every rank (sharded models communicate in each).

    Args:
        forward (`Callable`): Slice -> log-probabilities of its completion tokens, their entropies if computed, and
            what else was seen at them, by name.
        batch (`dict`): The batch.
        token_budget (`int`): Padded tokens in one forward; a longer row goes alone.
        world ([`World`]): All ranks.
        vocabulary (`int`): Token rows of the model. An id beyond them, which a student padded to more rows can sample,
            has no log-probability: it is scored NaN, and its trajectory is dropped and counted like any broken one.
        unknown (`frozenset[int]`): Further ids that mean nothing to the model, and are treated alike.
        rows (`list[int]`, *optional*): Rows to score, by default all.
        multiple (`int`): See [`take`].

    Returns:
        `torch.Tensor`, `torch.Tensor`, `dict`: `logp_BT` and `entropy_BT` in float32, 0 where nothing was computed;
        and by name what else was seen, for each row a tensor of the row's own length.
    """
    length_B, completion_B = lengths(batch), batch["completion_mask"].sum(dim=1).tolist()
    rows = list(range(len(length_B))) if rows is None else rows
    device = batch["completion_ids"].device
    cuts = cut_at_least_cost(rows, length_B, token_budget, FORWARD.get(device.type, 1024))
    count = int(world.max(torch.tensor(len(cuts), device=device)))
    strange = torch.tensor(sorted(unknown), dtype=torch.long, device=device)
    logp_BT = torch.zeros(batch["completion_ids"].shape, dtype=torch.float32, device=device)
    entropy_BT = torch.zeros_like(logp_BT)
    seen: dict[str, list[torch.Tensor]] = {}
    for cut in cut_to_count(cuts, length_B, count):
        part = take(batch, cut or [shortest_row(length_B)], multiple)
        known = (part["completion_ids"] < vocabulary) & ~torch.isin(part["completion_ids"], strange)
        known &= (part["prompt_ids"] < vocabulary).all(dim=1, keepdim=True)
        for name in ("prompt_ids", "completion_ids"):
            part[name] = part[name].clamp(max=vocabulary - 1)
        logp, entropy, more, *_ = forward(part)
        logp = torch.where(known, logp, torch.nan)
        if cut:  # else this rank had no row left, and the forward was for the others
            index, width = torch.tensor(cut, device=device), logp.shape[1]
            logp_BT[index, :width] = logp.float()
            if entropy is not None:
                entropy_BT[index, :width] = entropy.float()
            for name, values in (more or {}).items():
                ragged = seen.setdefault(name, [values.new_zeros((0, *values.shape[2:]))] * len(length_B))
                for row, value in zip(cut, values, strict=True):
                    ragged[row] = value[: completion_B[row]].clone()
    return logp_BT, entropy_BT, seen
