"""What TRL sampled, as the pipeline sees it."""

from collections.abc import Callable
from typing import Any

import torch

from ..stages import Rollout, World, failing_alike, global_row_B, looped_tail_B
from .layout import Batch


def rollout_from_trl(
    batch: Batch,
    stop_ids: list[int],
    group_size: int,
    reward_BF: torch.Tensor | None,
    reward_weights: torch.Tensor,
    world: World,
) -> Rollout:
    """
    The trainer calls this when TRL has sampled a window; it returns the window as the pipeline sees it. A completion
    that holds only EOS or padding says nothing, so its row has an empty mask. So has a row without the reward that the
    method reads.

    Args:
        stop_ids (`list[int]`): Ids that end a completion, and padding.
        group_size (`int`): Completions of one prompt.
        reward_BF (`torch.Tensor`, *optional*): The rewards, if the method reads them; NaN where nothing could be said.
        reward_weights (`torch.Tensor`): How they add up.
    """
    mask_BT = batch["completion_mask"].bool()
    if "tool_mask" in batch:
        mask_BT = mask_BT & batch["tool_mask"].bool()
    stop_BT = torch.isin(batch["completion_ids"], torch.tensor(stop_ids, device=mask_BT.device))
    mask_BT = mask_BT & (mask_BT & ~stop_BT).any(dim=1, keepdim=True)
    reward_B = None
    if reward_BF is not None:
        reward_B = (reward_BF * reward_weights.to(reward_BF.device)).nansum(dim=1)
        mask_BT = mask_BT & (~reward_BF.isnan().all(dim=1) & reward_B.isfinite()).unsqueeze(1)
    last_B = (batch["completion_mask"].sum(dim=1, keepdim=True) - 1).clamp(min=0)
    return Rollout(
        mask_BT,
        teacher_B=batch["teacher_number"],
        group_B=global_row_B(len(mask_BT), world, mask_BT.device) // group_size,
        reward_B=reward_B,
        finished_B=stop_BT.gather(1, last_B).squeeze(1) & mask_BT.any(dim=1),
        looped_B=looped_tail_B(batch["completion_ids"], mask_BT & ~stop_BT),
    )


def fill_empty_completions(output: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """
    The trainer calls this on what was sampled. An empty completion becomes one padding token, which TRL can measure
    and which never trains.
    """
    holes = [row for row, ids in enumerate(output["completion_ids"]) if len(ids) == 0]
    output = dict(output)
    for key, token in (("completion_ids", pad_token_id), ("logprobs", 0.0), ("env_mask", 0)):
        if holes and output.get(key) is not None:
            output[key] = [[token] if row in holes else list(ids) for row, ids in enumerate(output[key])]
    return output


def wrap_rollout_func(rollout_func: Callable, pad_token_id: int, world: World, device: torch.device) -> Callable:
    """
    A rollout function of the user whose empty completions are filled, and whose error stops all ranks; TRL calls it
    with prompts and itself.
    """

    def wrapped(prompts: list, caller: Any) -> dict[str, Any]:
        with failing_alike(world, device):
            output = fill_empty_completions(rollout_func(prompts, caller), pad_token_id)
        return output

    return wrapped
