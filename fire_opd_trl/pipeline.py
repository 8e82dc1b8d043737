"""The algorithm on one screen: score, filter, reweight, advantage."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .stages import (
    Context,
    Divergence,
    Rollout,
    Scores,
    checked_output,
    keep_all,
    log_ratio,
    mean_teacher_logp,
    refuse_broken_student,
    refuse_missing,
    uniform,
    usable_B,
    window_metrics,
)


@dataclass(frozen=True)
class Method:
    """
    A recipe with its arguments: which function stands at each stage. Any function with the same signature may take a
    place.

    Example, FiRe-OPD with weights of one's own:

    ```python
    >>> from dataclasses import replace
    >>> from fire_opd_trl import METHODS
    >>> def where_the_teacher_is_sure(rollout, scores, context):
    ...     return (rollout.mask_BT & (scores.teacher_entropy_BT < 0.01)).float()
    >>> method = replace(METHODS["fire"](drop_fraction=0.1), name="sure", reweight=where_the_teacher_is_sure)
    ```

    Args:
        name (`str`): Its name in logs and model cards.
        signals (`tuple[str, ...]`): Fields of [`Scores`] that it reads. Only these are computed; none may be absent.
        score (`Callable`, *optional*): `(rollout, scores, context) -> score_B`, one number for each trajectory.
            `None`: how likely the teacher finds it, `mean_teacher_logp`.
        filter (`Callable`, *optional*): `(score_B, rollout, context) -> keep_B`, which of them train.
            `None`: all of them.
        reweight (`Callable`, *optional*): `(rollout, scores, context) -> weight_BT`, how much each of their tokens
            counts. `None`: all tokens count 1.
        row_weight (`Callable`, *optional*): `(rollout, scores, context) -> weight_B`, how much a trajectory counts.
            `None`: all count 1.
        advantage (`Callable`, *optional*): `(rollout, scores, context) -> advantage_BT`, which way each token moves.
            `None`: there is no policy gradient, and the method learns from its divergence alone.
        divergence ([`Divergence`], *optional*): What is minimised beside the policy gradient, and at which tokens.
        rollout_correction (`bool`): Whether the importance ratio between training and rollout engine applies.
        needs (`tuple[str, ...]`): Fields of [`Rollout`] that it reads: `"reward_B"`, `"group_B"`.
        paper (`str`, *optional*): The arXiv number of the paper that it comes from; a model card cites it.
    """

    name: str
    signals: tuple[str, ...] = ("teacher_logp_BT", "student_logp_BT")
    score: Callable[[Rollout, Scores, Context], torch.Tensor] | None = None
    filter: Callable[[torch.Tensor, Rollout, Context], torch.Tensor] | None = None
    reweight: Callable[[Rollout, Scores, Context], torch.Tensor] | None = None
    row_weight: Callable[[Rollout, Scores, Context], torch.Tensor] | None = None
    advantage: Callable[[Rollout, Scores, Context], torch.Tensor] | None = log_ratio
    divergence: Divergence | None = None
    rollout_correction: bool = True
    needs: tuple[str, ...] = ()
    paper: str | None = None

    def __post_init__(self):
        # A method that spells out what `None` stands for is the same method.
        for stage, default in (("score", mean_teacher_logp), ("filter", keep_all), ("reweight", uniform)):
            if getattr(self, stage) is default:
                object.__setattr__(self, stage, None)

    def unfiltered(self) -> "Method":
        """The same method on every trajectory, as evaluation sees it."""
        return replace(self, filter=None)

    @property
    def reads_whole_distributions(self) -> bool:
        """Whether it compares student and teacher over the whole vocabulary."""
        divergence = self.divergence
        return "reverse_kl_BT" in self.signals or (divergence is not None and not divergence.top_k)


@dataclass(frozen=True, eq=False)
class Signal:
    """
    What the loss needs to know of a window: what [`distil`] returns. Nothing in it carries a gradient.

    Example, with two answers, of two tokens and of one:

    ```python
    >>> from fire_opd_trl import METHODS, Rollout, Scores, distil
    >>> rollout = Rollout(mask_BT=[[1, 1], [1, 0]])
    >>> scores = Scores(teacher_logp_BT=[[-0.5, -1.0], [-3.0, 0.0]], student_logp_BT=[[-1.0, -0.5], [-1.0, 0.0]])
    >>> distil(rollout, scores, METHODS["opd"]()).advantage_BT
    tensor([[ 0.5000, -0.5000],
            [-2.0000,  0.0000]])
    >>> distil(rollout, scores, METHODS["fire"](drop_fraction=0.5, confidence=0, confusion=0)).keep_B
    tensor([ True, False])
    ```

    Args:
        keep_B (`torch.Tensor`): True for trajectories that train.
        weight_BT (`torch.Tensor`): Token weights, 0 outside the mask and for dropped rows.
        advantage_BT (`torch.Tensor`): Weighted advantages, 0 outside the mask and for dropped rows.
        metrics (`dict[str, float]`): Statistics of the window over all ranks.
        divergence_BT (`torch.Tensor`, *optional*): Weights of the divergence, 0 outside the mask and for dropped rows.
        score_B (`torch.Tensor`, *optional*): By what the filter chose; without meaning for rows that were no longer
            there: empty ones, and those with teacher values that are not finite.
    """

    keep_B: torch.Tensor
    weight_BT: torch.Tensor
    advantage_BT: torch.Tensor
    metrics: dict[str, float]
    divergence_BT: torch.Tensor | None = None
    score_B: torch.Tensor | None = None


def refuse_other_than_method(value: Any) -> None:
    """Called where a method is asked for: a name, or a recipe that was not called, is refused with what to write."""
    if isinstance(value, Method):
        return
    if isinstance(value, str):
        fix = f"is a name. Pass the recipe of that name, called: METHODS[{value!r}]()."
    elif callable(value) and not isinstance(value, type):
        name = getattr(value, "__name__", "recipe")
        fix = f"is a recipe that was not called. Add parentheses, and its arguments if you like: {name}()."
    else:
        fix = f"is of the type {type(value).__name__}. Pass a Method, for example METHODS['fire']()."
    raise ValueError(f"method={value!r} {fix}")


def refuse_other_arguments(rollout: Any, scores: Any, method: Any, context: Any) -> None:
    """`distil` calls this, so that arguments in a wrong order or of another kind are refused with what to pass."""
    for name, value, kind in (
        ("rollout", rollout, Rollout),
        ("scores", scores, Scores),
        ("context", context, Context),
    ):
        if not isinstance(value, kind):
            raise ValueError(
                f"distil: {name} is of the type {type(value).__name__}. Call distil(rollout, scores, method, context) "
                f"with a {kind.__name__} there."
            )
    refuse_other_than_method(method)


def survivors(
    rollout: Rollout, scores: Scores, method: Method, context: Context
) -> tuple[Rollout, torch.Tensor, Rollout]:
    """Stages 2 and 3: the trajectories whose teacher values are finite, their scores, and those that are kept."""
    usable = rollout.only(usable_B(rollout, scores, method.signals))  # a broken value costs its own row, no other
    score, keep = method.score or mean_teacher_logp, method.filter or keep_all
    score_B = checked_output(method.name, "score", score(usable, scores, context), usable)
    keep_B = checked_output(method.name, "filter", keep(score_B, usable, context), usable)
    return usable, score_B, usable.only(keep_B.bool())


@torch.no_grad()
def distil(rollout: Rollout, scores: Scores, method: Method, context: Context | None = None) -> Signal:
    """
    The algorithm: turn what was sampled and scored into what is learned (FiRe-OPD, Algorithm 1). Every statistic is
    taken over the whole window on all ranks. On one process, with lists, arrays or tensors:
    `distil(Rollout(mask_BT), Scores(teacher_logp_BT, student_logp_BT), METHODS["opd"]()).advantage_BT`.

    Args:
        rollout ([`Rollout`]): The sampled trajectories of this rank.
        scores ([`Scores`]): What teacher and student say about their tokens.
        method ([`Method`]): The recipe, with its arguments: `METHODS["fire"](drop_fraction=0.1)`.
        context ([`Context`], *optional*): The other ranks, the progress of training, the seed.

    Returns:
        [`Signal`]: Survivors, token weights, weighted advantages, metrics. Its help has an example.
    """
    context = context if context is not None else Context()
    refuse_other_arguments(rollout, scores, method, context)
    name = method.name
    refuse_missing(name, rollout, scores, method.needs, method.signals)
    scores = scores.only(method.signals)
    refuse_broken_student(rollout, scores, method.signals, context.world)

    usable, score_B, kept = survivors(rollout, scores, method, context)

    def applied(stage: str, function: Callable) -> torch.Tensor:
        return checked_output(name, stage, function(kept, scores, context), kept)

    row_B1 = applied("row_weight", method.row_weight).unsqueeze(1) if method.row_weight else 1.0
    weight_BT = row_B1 * applied("reweight", method.reweight or uniform)
    advantage_BT = weight_BT * (applied("advantage", method.advantage) if method.advantage else 0.0)
    divergence = method.divergence
    divergence_BT = row_B1 * applied("divergence", divergence.weight or uniform) if divergence else None
    metrics = window_metrics(rollout, usable, kept, scores, score_B, weight_BT, advantage_BT, divergence_BT, context)
    return Signal(kept.alive_B, weight_BT, advantage_BT, metrics, divergence_BT, score_B)
