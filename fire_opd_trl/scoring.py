"""Models and rollouts -> log-probability and entropy of each sampled token, in short batches of similar length."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from .batches import Batch, lengths, take, with_prompts
from .heads import Observer, observed
from .lines import in_lines
from .pipeline import Context, Method, Rollout, Scores, survivors
from .slices import cheapest_cuts, filled_up, shortest
from .stages import World, mean_teacher_logp


@dataclass
class Window:
    """
    What is known so far of the window that is being scored.

    Args:
        mode (`str`): `"train"` or `"eval"`.
        teacher_B (`torch.Tensor`): Number of each row's teacher.
        prompts (`list`): Tokens of each row's prompt as its teacher reads it; `None` where that is the student's.
        scored (`list[tuple]`): What GRPO asked for: student, reference.
        taught (`tuple`): The teachers' log-probabilities and entropies, and what else was seen of them.
        scored_rows (`list[int]`, *optional*): Rows that the student scored, if not all.
    """

    mode: str
    teacher_B: torch.Tensor
    prompts: list[list[int] | None]
    scored: list[tuple] = field(default_factory=list)
    taught: tuple = ()
    scored_rows: list[int] | None = None


# What a forward costs beside its tokens, in tokens: little where kernels are slow, much where launching them is.
FORWARD = {"cpu": 128, "cuda": 1024}


@torch.no_grad()
def token_scores(
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
    cuts = cheapest_cuts(rows, length_B, token_budget, FORWARD.get(device.type, 1024))
    count = int(world.max(torch.tensor(len(cuts), device=device)))
    strange = torch.tensor(sorted(unknown), dtype=torch.long, device=device)
    logp_BT = torch.zeros(batch["completion_ids"].shape, dtype=torch.float32, device=device)
    entropy_BT = torch.zeros_like(logp_BT)
    seen: dict[str, list[torch.Tensor]] = {}
    for cut in filled_up(cuts, length_B, count):
        part = take(batch, cut or [shortest(length_B)], multiple)
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


def line_scores(
    model: torch.nn.Module,
    base: PreTrainedModel,
    part: Batch,
    observer: Observer | None,
    router: bool,
    multiple: int,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor] | None, torch.Tensor | None]:
    """
    One forward of a slice without images, its rows in lines (see [`in_lines`]).

    A causal model does not look ahead at the padding behind a row, so that no mask is needed, and attention is fast
    without one. Only the router's loss asks which tokens exist.

    Args:
        model (`torch.nn.Module`): The wrapped model.
        base (`PreTrainedModel`): The same, unwrapped.
        router (`bool`): Whether to compute the router's loss.

    Returns:
        Log-probabilities and, if the head computes them, entropies of the completion tokens, 0 elsewhere; what
        `observer` saw; the router's loss.
    """
    ids_BL, mask_BL, label_BL, column_BC = in_lines(part, multiple)
    options = {"output_router_logits": True} if router else {}
    attended = mask_BL.long() if router else torch.ones_like(ids_BL)
    with observed(base, observer, column_BC):
        output = model(input_ids=ids_BL, attention_mask=attended, labels=label_BL, fused_lm_head=True, **options)
        seen, inside_BC = base.seen, part["completion_mask"].bool()

    def in_place(value: torch.Tensor) -> torch.Tensor:
        return torch.where(inside_BC, value.gather(1, column_BC + value.shape[1]), 0.0)

    entropy_BC = None if output.entropy is None else in_place(output.entropy)
    return in_place(output.log_probs), entropy_BC, seen, output.aux_loss


def taught(trainer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[torch.Tensor]]]:
    """
    Every row by its own teacher, after the prompt that this teacher reads: once for each window. Every teacher runs
    equally often on every rank, also where it has no row.

    Returns:
        The teachers' log-probabilities and entropies, and by name what the loss must have seen of them.
    """
    window = trainer.window
    if not window.taught:
        teacher_B, read = (
            window.teacher_B.tolist(),
            with_prompts(batch, window.prompts, trainer.checked.tokenizer.pad_token_id),
        )
        scored = []
        for number, (name, teacher) in enumerate(trainer.teachers.items()):
            rows = [row for row, owner in enumerate(teacher_B) if owner == number]
            with teacher.speaking(trainer) as module:
                scored.append(trainer._token_scores(name, module, read, rows, teacher.unknown))
        names = {name for *_, seen in scored for name in seen}
        seen = {name: [scored[owner][2][name][row] for row, owner in enumerate(teacher_B)] for name in names}
        window.taught = sum(logp for logp, *_ in scored), sum(entropy for _, entropy, _ in scored), seen
    return window.taught


@torch.no_grad()
def rows_to_score(rollout: Rollout, taught: tuple, method: Method, context: Context) -> list[int] | None:
    """
    The rows of this rank that the student must score: all (`None`), or, where the filter drops some and needs nothing
    but what the teacher said, the survivors. [`distil`] filters again, by the same numbers.
    """
    known = ("teacher_logp_BT", "teacher_entropy_BT")
    unknown = [name for name in method.signals if name not in known and not name.startswith("student")]
    if method.score is not mean_teacher_logp or unknown:  # a filter reads nothing but the scores and the rollout
        return None
    teacher = Scores(taught[0], taught[0], taught[1]).only(known)
    usable, _, kept = survivors(rollout, teacher, method, context)
    return None if torch.equal(usable.alive_B, kept.alive_B) else kept.alive_B.nonzero().flatten().tolist()


def refuse_unscored(keep_B: torch.Tensor, rows: list[int] | None, world: World) -> None:
    """A filter that keeps other trajectories when it is asked again would train on what the student has not scored."""
    unscored_B = keep_B.clone()
    unscored_B[slice(None) if rows is None else rows] = False
    if world.max(unscored_B.any().long()):
        raise ValueError(
            "The method's filter kept other trajectories of the same window when it was called again. It must depend "
            "on its arguments alone: draw random numbers from context.seed, as stages.uniform_hash does."
        )
