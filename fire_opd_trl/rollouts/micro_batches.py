"""The survivors of a window as the micro-batches of its optimizer steps."""

from collections.abc import Sequence

import torch

from ..stages import World, row_scale
from .exchange import exchange_rows
from .layout import RAGGED_KEYS, Batch, lengths, model_kwargs, take
from .packing import cut_into_micro_batches, deal_to_ranks, optimizer_step_N, padded_tokens, shortest_row


def micro_batches(
    batch: Batch,
    *,
    steps: int,
    per_step: int,
    loss_type: str,
    world: World,
    seed: int,
    multiple: int,
    balance: str = "none",
    bounds: Sequence[int] = (),
) -> list[Batch]:
    """
    The trainer calls this when a window is distilled. It deals the survivors to the optimizer steps at random; inside
    a step they are sorted by length and cut into equally many micro-batches on every rank.

    Args:
        batch (`dict`): The window, with `keep` `[B]` and `train_mask` `[B, T]`.
        steps (`int`): Optimizer steps that share the window.
        per_step (`int`): Micro-batches of one step (gradient accumulation steps).
        loss_type (`str`): See [`~fire_opd_trl.stages.row_scale`].
        world, seed, multiple: All ranks, the window's seed, see [`take`].
        balance (`str`): With `"tokens"` the rows of all ranks are cut together, and a row goes to the rank that trains
            its micro-batch; windows with images or with whole distributions of the teacher stay, since those are
            large. With `"none"` every rank trains on the rows that it sampled.
        bounds (`Sequence[int]`): See [`~.packing.of_like_length`].

    Returns:
        `list[dict]`: `steps * per_step` micro-batches. Each carries `scale` `[rows]`, the window-exact normaliser
        (times the ranks, since DDP, ZeRO and FSDP average over them), which is 0 for the row that a rank runs when it
        has none left; `rows_in_step`, the survivors of its step on all ranks; and `share_in_step`, its weight in a
        mean over the step's micro-batches that hold a survivor (times the ranks): 0 for the others.
    """
    line_B, own, trained_B = lengths(batch), world.local_slice(len(batch["keep"])), batch["train_mask"].sum(dim=1)
    counts_B2 = torch.stack([trained_B, trained_B.new_tensor(line_B)], dim=1)
    trained_N, line_N = world.gather(counts_B2).unbind(dim=1)
    number_N, length_N = optimizer_step_N(world.gather(batch["keep"]), steps, seed), line_N.tolist()
    rows_of_step = [(number_N == step).nonzero().flatten() for step in range(steps)]
    scale_N = torch.zeros(len(number_N), device=number_N.device)
    for step_rows in rows_of_step:
        tokens_of_row, count = trained_N[step_rows], torch.tensor(len(step_rows))
        scale_N[step_rows] = row_scale(tokens_of_row, count, tokens_of_row.sum(), loss_type) * world.ranks
    batch = {**batch, "scale": scale_N[own]}

    plan: list[list[list[int]]] = [[] for _ in range(world.ranks)]
    large = bool(model_kwargs(batch)) or any(key in batch for key in RAGGED_KEYS)
    stays = torch.tensor(balance == "none" or world.ranks == 1 or large, device=number_N.device)
    together = not world.max(stays.long())
    for step_rows in rows_of_step:
        rows = step_rows.tolist()
        if together:
            for cuts, more in zip(plan, deal_to_ranks(rows, length_N, per_step, world.ranks, bounds), strict=True):
                cuts += more
        else:
            mine = [row for row in rows if own.start <= row < own.stop]
            plan[world.rank] += cut_into_micro_batches(mine, length_N, per_step, bounds)

    home, place = batch, {row: row - own.start for row in range(own.start, own.stop)}
    if together:
        home, place = exchange_rows(batch, [[row for cut in cuts for row in cut] for cuts in plan], world)
    parts, filler = [], shortest_row(line_B)
    own_cuts = torch.tensor([bool(cut) for cut in plan[world.rank]], device=number_N.device)
    cuts_in_step = world.sum(own_cuts.reshape(steps, per_step).sum(dim=1)).tolist()
    for number, cut in enumerate(plan[world.rank]):
        part = take(home, [place[row] for row in cut], multiple) if cut else take(batch, [filler], multiple)
        step = number // per_step
        parts.append(
            {
                **part,
                "scale": part["scale"] * bool(cut),
                "rows_in_step": len(rows_of_step[step]),
                "share_in_step": world.ranks / cuts_in_step[step] if cut else 0.0,
            }
        )
    return parts


def layout_metrics(parts: list[Batch], world: World) -> dict[str, float]:
    """
    The trainer logs this for each window: `padding`, the share of the update that is padding, and `rank_excess`, by
    how much the rank with the most tokens exceeds the mean.
    """
    cuts = [lengths(part) for part in parts]
    padded = sum(padded_tokens(list(range(len(cut))), cut) for cut in cuts)
    known = torch.tensor([padded, sum(map(sum, cuts))], device=parts[0]["scale"].device)
    total, most = world.sum(known).tolist(), world.max(known).tolist()
    return {"padding": 1 - total[1] / total[0], "rank_excess": most[0] * world.ranks / total[0] - 1}
