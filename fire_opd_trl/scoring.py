"""Models and rollouts -> log-probability and entropy of each sampled token, in short batches of similar length."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .batches import Batch, lengths, take, with_prompts
from .slices import cuts_within, longest_first, shortest, slices
from .stages import World


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
    """

    mode: str
    teacher_B: torch.Tensor
    prompts: list[list[int] | None]
    scored: list[tuple] = field(default_factory=list)
    taught: tuple = ()


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
    Score rows of a batch under one model: sorted by length, trimmed, at most `token_budget` padded tokens at a time,
    and equally many forwards on every rank (sharded models communicate in each).

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
    prompt_B, completion_B = lengths(batch)
    rows = list(range(len(prompt_B))) if rows is None else rows
    wanted = len(cuts_within(longest_first(rows, prompt_B, completion_B), prompt_B, completion_B, token_budget))
    device = batch["completion_ids"].device
    count = int(world.max(torch.tensor(wanted, device=device)))
    strange = torch.tensor(sorted(unknown), dtype=torch.long, device=device)
    logp_BT = torch.zeros(batch["completion_ids"].shape, dtype=torch.float32, device=device)
    entropy_BT = torch.zeros_like(logp_BT)
    seen: dict[str, list[torch.Tensor]] = {}
    for cut in slices(rows, prompt_B, completion_B, count):
        part = take(batch, cut or [shortest(prompt_B, completion_B)], multiple)
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
                ragged = seen.setdefault(name, [values.new_zeros((0, *values.shape[2:]))] * len(prompt_B))
                for row, value in zip(cut, values, strict=True):
                    ragged[row] = value[: completion_B[row]].clone()
    return logp_BT, entropy_BT, seen


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
