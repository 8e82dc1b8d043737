"""One forward of a model: each row in a line of its own, or in TRL's rectangle with images."""

from typing import NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..rollouts.layout import COMPANION, WHOLE_KEYS, Batch, model_kwargs, round_up
from .heads import Observer, observing


class ForwardOutput(NamedTuple):
    """
    What one forward says of the completion tokens of its rows.

    Args:
        logp_BC (`torch.Tensor`): Log-probabilities of the sampled tokens.
        entropy_BC (`torch.Tensor`, *optional*): Entropies of the next-token distributions, if the head computes them.
        observed (`dict`): What the observer saw, by name.
        router_loss (`torch.Tensor`, *optional*): The auxiliary loss of a mixture of experts.
    """

    logp_BC: torch.Tensor
    entropy_BC: torch.Tensor | None
    observed: dict[str, torch.Tensor]
    router_loss: torch.Tensor | None


def rope_kinds(config: PretrainedConfig) -> dict[str, dict]:
    """Returns the parameters of a model's rotary embeddings by their kind; layers may have embeddings of several."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    several = [kind for kind in given.values() if isinstance(kind, dict)]
    return {str(kind.get("rope_type") or kind.get("type")): kind for kind in several or [given]}


def length_bounds(config: PretrainedConfig, multiple: int = 1) -> tuple[int, ...]:
    """
    Returns the lengths above which a model reads a whole forward otherwise. With `longrope` the longest row chooses
    the frequencies of all rows, the short factors or the long ones: what such a model says of a row must not depend on
    the rows beside it, so that rows on either side of a bound are never in one forward.

    Args:
        config (`PretrainedConfig`): The text model's.
        multiple (`int`): To which the width of a forward is rounded up.
    """
    longrope = rope_kinds(config).get("longrope")
    bound = longrope and longrope.get("original_max_position_embeddings")
    bound = bound or longrope and getattr(config, "original_max_position_embeddings", None)
    return (bound - bound % multiple,) if bound else ()


def rows_in_lines(part: dict, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Puts each row in one line, completion right behind prompt, padding last. The rectangle is as wide as the longest
    row, not as the longest prompt and the longest completion together; positions count from the row's first token, as
    in generation; and a causal model never looks at the padding, whatever it holds.

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
    column_L = torch.arange(max(2, round_up(int(end_B1.max()), multiple)), device=end_B1.device)
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


def trl_rectangle(part: dict) -> tuple[torch.Tensor, torch.Tensor, int, dict, torch.Tensor]:
    """
    Returns TRL's rectangle: ids, mask, width of the completions, images and token types, and the columns that are
    about the completions. Rows without images may have a companion with images, which then is the last row.
    """
    ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
    mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
    rows, width = part["completion_ids"].shape
    images = model_kwargs(part)
    if companion := part.get(COMPANION):
        ids, mask = stack_left_padded(ids, companion["ids"]), stack_left_padded(mask, companion["mask"])
        images = model_kwargs(companion)
        for key in ("num_images", "num_tiles"):
            if key in images:
                images[key] = [0] * rows + images[key]
        for key in WHOLE_KEYS:
            if key in images:
                images[key] = stack_left_padded(torch.zeros_like(ids[:rows]), images[key])
    return ids, mask, width, images, torch.arange(-width, 0, device=ids.device).expand(rows, -1)


def stack_left_padded(rows: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Returns the rows of both, with zeros on the left of the shorter ones."""
    length = max(rows.shape[1], more.shape[1])
    return torch.cat([torch.nn.functional.pad(value, (length - value.shape[1], 0)) for value in (rows, more)])


def score_lines(
    model: torch.nn.Module,
    base: PreTrainedModel,
    part: Batch,
    observer: Observer | None,
    router: bool,
    multiple: int,
) -> ForwardOutput:
    """
    One forward over rows without images, each row in a line (see [`rows_in_lines`]).

    A causal model does not look ahead at the padding behind a row, so that it needs no mask, and attention is fast
    without one. Only the router's loss asks which tokens exist.

    Args:
        model (`torch.nn.Module`): The wrapped model.
        base (`PreTrainedModel`): The same model, unwrapped.
        part (`dict`): The rows.
        observer ([`Observer`], *optional*): What looks at the forward.
        router (`bool`): Whether to compute the router's loss.
        multiple (`int`): The width of the lines is rounded up to a multiple of this.

    Returns:
        [`ForwardOutput`]: Its values are 0 outside of the completions.
    """
    ids_BL, mask_BL, label_BL, column_BC = rows_in_lines(part, multiple)
    options = {"output_router_logits": True} if router else {}
    attended = mask_BL.long() if router else torch.ones_like(ids_BL)
    with observing(base, observer, column_BC) as observation:
        output = model(input_ids=ids_BL, attention_mask=attended, labels=label_BL, fused_lm_head=True, **options)
    inside_BC = part["completion_mask"].bool()

    def in_place(value: torch.Tensor) -> torch.Tensor:
        return torch.where(inside_BC, value.gather(1, column_BC + value.shape[1]), 0.0)

    entropy_BC = None if output.entropy is None else in_place(output.entropy)
    return ForwardOutput(in_place(output.log_probs), entropy_BC, observation.observed, output.aux_loss)
