"""What must hold of a rollout and its scores before a stage reads them, and of what a stage returns."""

from collections.abc import Sequence

import torch

from .rollout import Rollout
from .score import Scores, finite_B
from .world import World


def usable_B(rollout: Rollout, scores: Scores, signals: Sequence[str]) -> torch.Tensor:
    """Rows in which everything that a method reads of the teacher is finite, `[B]`."""
    read = [vars(scores)[name] for name in signals if not name.startswith("student")]
    return torch.stack([finite_B(value_BT, rollout.mask_BT) for value_BT in read]).all(dim=0)


def refuse_incomplete(name: str, signals: Sequence[str]) -> None:
    """Refuse signals without the two log-probabilities of the sampled token, from which every method is logged."""
    if lacking := [field for field in ("teacher_logp_BT", "student_logp_BT") if field not in signals]:
        raise ValueError(f"method={name!r}: signals lacks {', '.join(lacking)}, which every method reads. Add it.")


def refuse_missing(name: str, rollout: Rollout, scores: Scores, needs: Sequence[str], signals: Sequence[str]) -> None:
    """Refuse a window that lacks a signal of the method; to fall back to another method in silence would be worse."""
    refuse_incomplete(name, signals)
    for where, record, fields in (("rollout", rollout, needs), ("scores", scores, signals)):
        if missing := [field for field in fields if vars(record).get(field) is None]:
            raise ValueError(
                f"method={name!r} reads {', '.join(missing)}, which `{where}` lacks. Compute and pass it."
            )
    tokens_BT, logp_BT = list(rollout.mask_BT.shape), list(scores.teacher_logp_BT.shape)
    if tokens_BT != logp_BT:
        raise ValueError(
            f"scores has the shape {logp_BT}, and the mask of rollout {tokens_BT}. Give both the same rows (B) and "
            "sampled tokens (T)."
        )


def checked_output(name: str, stage: str, value: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """
    What a stage returned, with 0 outside the mask. A wrong shape is refused here, because it would otherwise
    broadcast, or fail far from the user's function that returned it.
    """
    rows, tokens = rollout.mask_BT.shape
    wanted = (rows,) if stage in ("score", "filter", "row_weight") else (rows, tokens)
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"method={name!r}: {stage} returned a {type(value).__name__}. It must be a tensor.")
    if tuple(value.shape) != wanted:
        raise ValueError(
            f"method={name!r}: {stage} returned a tensor of shape {tuple(value.shape)}. It must be {wanted}: one "
            f"value for each {'trajectory' if len(wanted) == 1 else 'token of each trajectory'}."
        )
    return value if len(wanted) == 1 else torch.where(rollout.mask_BT, value, 0.0)


def refuse_broken_student(rollout: Rollout, scores: Scores, signals: Sequence[str], world: World) -> None:
    """A student that answers NaN is lost; all ranks stop alike, before anything is updated."""
    read = [vars(scores)[name] for name in signals if name.startswith("student")]
    broken = torch.stack([~finite_B(value_BT, rollout.mask_BT) for value_BT in read]).any(dim=0).sum()
    if count := int(world.sum(broken)):
        raise FloatingPointError(
            f"The student's own log-probabilities or entropies are NaN or infinite in {count} trajectories. Its "
            "weights have probably diverged: resume from the last checkpoint with a lower learning_rate, or check the "
            "precision."
        )
