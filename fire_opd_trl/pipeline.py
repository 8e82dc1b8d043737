"""The algorithm on one screen: score, filter, reweight, advantage."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .stages import Context, Rollout, Scores, even, finite_B, keep_all, log_ratio, mean_teacher_logp, window_metrics


@dataclass(frozen=True)
class Method:
    """
    A recipe: which function stands at each stage. Any function with the same signature may take a place.

    Args:
        name (`str`): Its name in logs and model cards.
        signals (`tuple[str, ...]`): Fields of [`Scores`] it reads; only those are computed, none may be absent.
        score (`Callable`): `(rollout, scores, context) -> score_B`, one number for each trajectory.
        filter (`Callable`): `(score_B, rollout, context) -> keep_B`, which trajectories train.
        reweight (`Callable`): `(rollout, scores, context) -> weight_BT`, how much each of their tokens counts.
        advantage (`Callable`): `(rollout, scores, context) -> advantage_BT`, which way each token moves.
        rollout_correction (`bool`): Whether the importance ratio between training and rollout engine applies.
    """

    name: str
    signals: tuple[str, ...] = ("teacher_logp_BT", "student_logp_BT")
    score: Callable[[Rollout, Scores, Context], torch.Tensor] = mean_teacher_logp
    filter: Callable[[torch.Tensor, Rollout, Context], torch.Tensor] = keep_all
    reweight: Callable[[Rollout, Scores, Context], torch.Tensor] = even
    advantage: Callable[[Rollout, Scores, Context], torch.Tensor] = log_ratio
    rollout_correction: bool = True

    def unfiltered(self) -> "Method":
        """The same method on every trajectory, as evaluation sees it."""
        return replace(self, filter=keep_all)


@dataclass(frozen=True)
class Signal:
    """
    What the loss needs to know of a window. Nothing in it carries a gradient.

    Args:
        keep_B (`torch.Tensor`): True for trajectories that train.
        weight_BT (`torch.Tensor`): Token weights, 0 outside the mask and for dropped rows.
        advantage_BT (`torch.Tensor`): Weighted advantages, 0 outside the mask and for dropped rows.
        metrics (`dict[str, float]`): Statistics of the window over all ranks.
    """

    keep_B: torch.Tensor
    weight_BT: torch.Tensor
    advantage_BT: torch.Tensor
    metrics: dict[str, float]


@torch.no_grad()
def distil(rollout: Rollout, scores: Scores, method: Method, context: Context | None = None) -> Signal:
    """
    From what was sampled and scored to what is learned (FiRe-OPD, Algorithm 1), over the whole window on all ranks.

    Args:
        rollout ([`Rollout`]): The sampled trajectories of this rank.
        scores ([`Scores`]): What teacher and student say about their tokens.
        method ([`Method`]): The recipe.
        context ([`Context`], *optional*): The other ranks, the progress of training, the seed.

    Returns:
        [`Signal`]: Survivors, token weights, weighted advantages, metrics.
    """
    context = context or Context()
    refuse_missing_signals(scores, method)
    scores = scores.only(method.signals)
    refuse_broken_student(rollout, scores, method, context)

    usable = rollout.only(usable_B(rollout, scores, method))  # a broken teacher value costs its own row, no other
    score_B = method.score(usable, scores, context)
    keep_B = method.filter(score_B, usable, context) & usable.alive_B
    kept = usable.only(keep_B)
    weight_BT = method.reweight(kept, scores, context)
    advantage_BT = weight_BT * method.advantage(kept, scores, context)

    metrics = window_metrics(rollout, usable, kept, scores, score_B, weight_BT, advantage_BT, context)
    return Signal(keep_B, weight_BT, advantage_BT, metrics)


def usable_B(rollout: Rollout, scores: Scores, method: Method) -> torch.Tensor:
    """Rows in which everything that the method reads of the teacher is finite, `[B]`."""
    read = [vars(scores)[name] for name in method.signals if not name.startswith("student")]
    return torch.stack([finite_B(value_BT, rollout.mask_BT) for value_BT in read]).all(dim=0)


def refuse_missing_signals(scores: Scores, method: Method) -> None:
    """A signal that is absent is an error; falling back to another method in silence would be worse."""
    if missing := [name for name in method.signals if vars(scores)[name] is None]:
        raise ValueError(
            f"method={method.name!r} reads {', '.join(missing)}, which `scores` lacks. Compute and pass it."
        )


def refuse_broken_student(rollout: Rollout, scores: Scores, method: Method, context: Context) -> None:
    """A student that answers NaN is lost; all ranks stop alike, before anything is updated."""
    read = [vars(scores)[name] for name in method.signals if name.startswith("student")]
    broken = torch.stack([~finite_B(value_BT, rollout.mask_BT) for value_BT in read]).any(dim=0).sum()
    if count := int(context.world.sum(broken)):
        raise FloatingPointError(
            f"The student's own log-probabilities or entropies are NaN or infinite in {count} trajectories. Its "
            "weights have probably diverged: resume from the last checkpoint with a lower learning_rate, or check the "
            "precision."
        )
