"""Student, teachers and reference on one window, each once."""

from dataclasses import dataclass, field

import torch

from ..pipeline import Context, Method, Rollout, Scores, survivors
from ..rollouts.layout import Batch, with_prompts
from ..stages import World


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
            with teacher.active(trainer) as module:
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
    if method.score or unknown:  # a filter reads nothing but the scores and the rollout
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
