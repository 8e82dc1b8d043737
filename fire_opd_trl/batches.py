"""A window in TRL's layout: take rows out of it trimmed, cut it into the micro-batches of its optimizer steps."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.utils import pad, split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from .lines import rounded
from .moves import PER_ROW, PER_TOKEN, moved
from .slices import dealt, padded_tokens, shortest, slices, step_N
from .stages import Rollout, World, global_row_B, row_scale


# The tensors of a batch in TRL's layout: prompts end, and completions begin, in one column.
PROMPT_KEYS = ("prompt_ids", "prompt_mask")
COMPLETION_KEYS = ("completion_mask", *PER_TOKEN)
WHOLE_KEYS = ("token_type_ids", "mm_token_type_ids")
VISION_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "image_position_ids",
)
RAGGED_KEYS = ("teacher_hidden", "top_ids", "top_logps")  # one tensor a row, of the row's own length
ROW_KEYS = (*PER_ROW, *RAGGED_KEYS)

Batch = dict[str, Any]


def lengths(batch: Batch) -> list[int]:
    """Tokens of each row, prompt and completion; with images, in TRL's rectangle, behind the longest prompt of all."""
    prompt_B = batch["prompt_mask"].sum(dim=1)
    prompt_B = prompt_B.max().expand(len(prompt_B)) if model_kwargs(batch) else prompt_B
    return (prompt_B + batch["completion_mask"].sum(dim=1)).tolist()


def model_kwargs(batch: Batch) -> dict[str, Any]:
    """What a forward needs beside ids and mask: images, token types."""
    return {key: batch[key] for key in (*WHOLE_KEYS, *VISION_KEYS) if key in batch}


def take(batch: Batch, rows: list[int], multiple: int = 1) -> Batch:
    """
    Some rows of a batch, trimmed to their own longest prompt and completion.

    Args:
        batch (`dict`): Tensors in TRL's layout; keys that a forward or the loss does not need are left out.
        rows (`list[int]`): The rows, at least one.
        multiple (`int`): Round both lengths up to a multiple of this where the batch is long enough.

    Returns:
        `dict`: The same keys for these rows.
    """
    width_P, width_C = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    index = torch.tensor(rows, device=batch["prompt_ids"].device)
    masks = batch["prompt_mask"][index], batch["completion_mask"][index]
    longest = torch.stack([mask.sum(dim=1).max() for mask in masks]).tolist()
    prompt, completion = (
        min(width, max(1, rounded(length, multiple)))
        for length, width in zip(longest, (width_P, width_C), strict=True)
    )
    split = split_pixel_values_by_grid(batch)
    taken: Batch = {}
    for key, value in split.items():
        if key in PROMPT_KEYS:
            taken[key] = value[index, width_P - prompt :]
        elif key in COMPLETION_KEYS:
            taken[key] = value[index, :completion]
        elif key in WHOLE_KEYS:
            taken[key] = value[index, width_P - prompt : width_P + completion]
        elif key in VISION_KEYS or key in ROW_KEYS:
            taken[key] = [value[row] for row in rows] if isinstance(value, list) else value[index]
    return unsplit_pixel_values_by_grid(taken)


def with_prompts(batch: Batch, prompts: list[list[int] | None], pad_token_id: int) -> Batch:
    """The same completions after other prompts; a row without one keeps its own."""
    if all(ids is None for ids in prompts):
        return batch
    device = batch["prompt_ids"].device
    own = [ids[mask.bool()] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    rows = [mine if ids is None else torch.tensor(ids, device=device) for mine, ids in zip(own, prompts, strict=True)]
    other = {key: value for key, value in batch.items() if key not in (*WHOLE_KEYS, *VISION_KEYS)}
    return {
        **other,
        "prompt_ids": pad(rows, padding_value=pad_token_id, padding_side="left"),
        "prompt_mask": pad([torch.ones_like(ids) for ids in rows], padding_value=0, padding_side="left"),
    }


def rollout_of(
    batch: Batch,
    stop_ids: list[int],
    group_size: int,
    reward_BF: torch.Tensor | None,
    reward_weights: torch.Tensor,
    world: World,
) -> Rollout:
    """
    The window as the pipeline sees it. A completion of nothing but EOS or padding says nothing: its row is empty, and
    so is one without the reward that the method reads.

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
    )


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
) -> list[Batch]:
    """
    The survivors of a window as the micro-batches of its optimizer steps: dealt to the steps at random, inside a step
    sorted by length and cut into equally many slices on every rank.

    Args:
        batch (`dict`): The window, with `keep` `[B]` and `train_mask` `[B, T]`.
        steps (`int`): Optimizer steps that share the window.
        per_step (`int`): Slices of one step (gradient accumulation steps).
        loss_type (`str`): See [`~fire_opd_trl.stages.row_scale`].
        world, seed, multiple: All ranks, the window's seed, see [`take`].
        balance (`str`): `"tokens"`: a step is cut from the rows of all ranks together, and a row goes where its slice
            is, except from windows with images or with whole distributions of the teacher, which are large. `"none"`:
            every rank trains on the rows that it sampled.

    Returns:
        `list[dict]`: `steps * per_step` slices; each carries `scale` `[rows]`, the window-exact normaliser (times the
        ranks, since DDP, ZeRO and FSDP average over them), 0 for the row that a rank runs when it has none left, and
        `rows_in_step`, survivors of its step on all ranks.
    """
    line_B, own, trained_B = lengths(batch), world.own(len(batch["keep"])), batch["train_mask"].sum(dim=1)
    counts_B2 = torch.stack([trained_B, trained_B.new_tensor(line_B)], dim=1)
    trained_N, line_N = world.gather(counts_B2).unbind(dim=1)
    number_N, length_N = step_N(world.gather(batch["keep"]), steps, seed), line_N.tolist()
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
            for cuts, more in zip(plan, dealt(rows, length_N, per_step, world.ranks), strict=True):
                cuts += more
        else:
            mine = [row for row in rows if own.start <= row < own.stop]
            plan[world.rank] += slices(mine, length_N, per_step)

    home, place = batch, {row: row - own.start for row in range(own.start, own.stop)}
    if together:
        home, place = moved(batch, [[row for cut in cuts for row in cut] for cuts in plan], world)
    parts, filler = [], shortest(line_B)
    for number, cut in enumerate(plan[world.rank]):
        part = take(home, [place[row] for row in cut], multiple) if cut else take(batch, [filler], multiple)
        rows_in_step = len(rows_of_step[number // per_step])
        parts.append({**part, "scale": part["scale"] * bool(cut), "rows_in_step": rows_in_step})
    return parts


def layout_metrics(parts: list[Batch], world: World) -> dict[str, float]:
    """
    How well the update of a window is laid out: `padding`, the share of its tokens that are none, and `rank_excess`,
    by how much the rank with the most of them exceeds the mean.
    """
    cuts = [lengths(part) for part in parts]
    padded = sum(padded_tokens(list(range(len(cut))), cut) for cut in cuts)
    known = torch.tensor([padded, sum(map(sum, cuts))], device=parts[0]["scale"].device)
    total, most = world.sum(known).tolist(), world.max(known).tolist()
    return {"padding": 1 - total[1] / total[0], "rank_excess": most[0] * world.ranks / total[0] - 1}


class StandStill(TrainerCallback):
    """
    An optimizer step without any trajectory on any rank has gradient zero; momentum and weight decay must not move the
    weights either. DeepSpeed steps inside `backward`, so that a step cannot be left out alike everywhere: its learning
    rates are zero instead, and given back between optimizer and scheduler.
    """

    patience = 5  # windows in a row with nothing to train on

    def __init__(self):
        self.empty_windows = 0
        self.held: list[tuple[dict[str, Any], float]] = []

    def count(self, any_survivor: bool, step: int) -> None:
        """Stop a run whose windows are all empty."""
        self.empty_windows = 0 if any_survivor else self.empty_windows + 1
        if self.empty_windows == self.patience:
            raise RuntimeError(
                f"step {step}: nothing was left to train on in {self.patience} windows in a row: see fire/empty, "
                "fire/nonfinite_teacher, and fire/keep_ratio for what the filter left. Look at the completions with "
                "log_completions=True."
            )

    def hold(self, groups: list[dict[str, Any]]) -> None:
        """Set the learning rates of the step under way to zero."""
        self.held = self.held or [(group, group["lr"]) for group in groups]
        for group in groups:
            group["lr"] = 0.0

    def on_optimizer_step(self, args, state, control, **kwargs):
        for group, rate in self.held:
            group["lr"] = group["lr"] or rate  # DeepSpeed's scheduler has already set the next one
        self.held = []


def filled_holes(output: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """An empty completion as one padding token, which TRL can measure and which never trains."""
    holes = [row for row, ids in enumerate(output["completion_ids"]) if len(ids) == 0]
    output = dict(output)
    for key, token in (("completion_ids", pad_token_id), ("logprobs", 0.0), ("env_mask", 0)):
        if holes and output.get(key) is not None:
            output[key] = [[token] if row in holes else list(ids) for row, ids in enumerate(output[key])]
    return output


def without_holes(rollout_func: Callable, pad_token_id: int) -> Callable:
    """A rollout function whose empty completions are filled."""
    return lambda prompts, trainer: filled_holes(rollout_func(prompts, trainer), pad_token_id)
