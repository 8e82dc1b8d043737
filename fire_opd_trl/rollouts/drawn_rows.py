"""Some rows of a window, drawn at random over all ranks, with what is known of their tokens, brought to one rank."""

from typing import Any

import torch

from ..pipeline import Method, Rollout, Scores, Signal
from ..stages import World, uniform_hash, usable_B
from .exchange import from_bytes, to_bytes
from .layout import Batch
from .records import NUMBERS


DRAW = 0x5EED  # a key of its own: a method draws with the same seed
FATES = (None, "empty", "nonfinite_teacher", "filter")  # why a row was dropped, by number; None: it was not


def drawn_rows(rows: int, count: int, seed: int) -> list[int]:
    """Returns `count` of the rows of all ranks in their order, or all if there are fewer; equal on all ranks."""
    draw_N = uniform_hash(seed, torch.arange(rows), torch.tensor(DRAW))
    return sorted(draw_N.argsort(stable=True)[:count].tolist())


def fate_B(rollout: Rollout, scores: Scores, method: Method, keep_B: torch.Tensor) -> torch.Tensor:
    """Returns for each row the number of its fate in `FATES`."""
    usable = usable_B(rollout, scores, method.signals)
    fate = torch.where(keep_B, 0, FATES.index("filter"))
    fate = torch.where(usable, fate, FATES.index("nonfinite_teacher"))
    return torch.where(rollout.alive_B, fate, FATES.index("empty"))


def weighted_reward_B(reward_BF: torch.Tensor, reward_weights: torch.Tensor) -> torch.Tensor:
    """Returns how the rewards of several functions add up, NaN where no function said anything, `[B]`."""
    reward_B = (reward_BF * reward_weights.to(reward_BF.device)).nansum(dim=1)
    return torch.where(reward_BF.isnan().all(dim=1), torch.nan, reward_B)


def numbers_of_tokens(
    scores: Scores, signal: Signal, method: Method, advantage_BT: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """
    Returns what is known of each token, by column. The weight is that of the policy gradient, and where a method has
    none that of its divergence.
    """
    values = (
        scores.student_logp_BT,
        scores.teacher_logp_BT,
        scores.student_entropy_BT,
        scores.teacher_entropy_BT,
        signal.weight_BT if method.advantage else signal.divergence_BT,
        advantage_BT,
    )
    return {name: value for name, value in zip(NUMBERS, values, strict=True) if value is not None}


def bring_rows(
    batch: Batch,
    rollout: Rollout,
    scores: Scores,
    signal: Signal,
    method: Method,
    *,
    advantage_BT: torch.Tensor | None,
    reward_B: torch.Tensor | None,
    count: int,
    seed: int,
    world: World,
) -> list[dict[str, Any]]:
    """
    The trainer calls this on every rank for a window that is recorded. Only the drawn rows travel, without padding.

    Args:
        batch (`dict`): The window in TRL's layout.
        rollout, scores, signal, method: The window, and what `distil` made of it.
        advantage_BT (`torch.Tensor`, *optional*): The advantages as the loss uses them, if it uses any.
        reward_B (`torch.Tensor`, *optional*): The rewards, NaN where there is none.
        count (`int`): How many rows are wanted.
        seed (`int`): The window's.
        world ([`World`]): All ranks.

    Returns:
        `list[dict]`: On the first rank the rows by column, in their order; on others nothing. The teacher is its
        number.
    """
    assert rollout.teacher_B is not None and rollout.group_B is not None and rollout.finished_B is not None
    own = world.local_slice(len(rollout.mask_BT))
    rows = drawn_rows(len(world.gather(signal.keep_B)), count, seed)
    mine = torch.tensor([row - own.start for row in rows if own.start <= row < own.stop], dtype=torch.long)
    index, alive_B = mine.to(rollout.mask_BT.device), rollout.alive_B
    fate, score_B = fate_B(rollout, scores, method, signal.keep_B), signal.score_B
    assert score_B is not None
    of_rows = {
        "row": torch.arange(own.start, own.stop, device=alive_B.device),
        "group": rollout.group_B,
        "teacher": rollout.teacher_B,
        "fate": fate,
        "score": torch.where((fate == 0) | (fate == FATES.index("filter")), score_B.float(), torch.nan),
        "finished": rollout.finished_B,
        "truncated": alive_B & ~rollout.finished_B,
        "looped": alive_B & rollout.looped_B if rollout.looped_B is not None else torch.zeros_like(alive_B),
        **({} if reward_B is None else {"reward": reward_B.float()}),
    }
    numbers = numbers_of_tokens(scores, signal, method, advantage_BT)
    of_tokens = {"token_ids": batch["completion_ids"].int(), "trains": rollout.mask_BT}
    of_tokens |= {name: value.float() for name, value in numbers.items()}
    prompt_BP, completion_BC = batch["prompt_mask"][index].bool(), batch["completion_mask"][index].bool()
    content = {
        "prompt_lengths": prompt_BP.sum(dim=1),
        "lengths": completion_BC.sum(dim=1),
        "prompt_ids": batch["prompt_ids"][index][prompt_BP].int(),
        **{name: value[index] for name, value in of_rows.items()},
        **{name: value[index][completion_BC] for name, value in of_tokens.items()},
    }
    nothing = torch.empty(0, dtype=torch.uint8)
    parcels = [to_bytes(content) if len(mine) and not rank else nothing for rank in range(world.ranks)]
    arrived = [from_bytes(parcel, torch.device("cpu")) for parcel in world.swap(parcels) if len(parcel)]
    return [row for parcel in arrived for row in unpacked(parcel, ragged=tuple(of_tokens))]


def unpacked(parcel: dict[str, torch.Tensor], ragged: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the rows of one rank's parcel by column."""
    tokens, prompts = parcel.pop("lengths").tolist(), parcel.pop("prompt_lengths").tolist()
    sizes = {"prompt_ids": prompts, **dict.fromkeys(ragged, tokens)}
    columns = {
        name: [part.numpy() for part in value.split(sizes[name])] if name in sizes else value.tolist()
        for name, value in parcel.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
