"""Teachers that are broken, and stop the run."""

import math
from typing import Any

import torch
from accelerate.utils import gather_object

from ..pipeline import Rollout, Scores, Signal
from ..stages import usable_B


ENOUGH_TOKENS = 100  # of a window, before its teacher is called broken
# Mean distance of a token's log-probability from -ln V, as a share of ln V, that no trained teacher has.
GUESSING = 0.2


def refuse_broken_teacher(
    trainer, inputs: list[dict[str, Any]], rollout: Rollout, scores: Scores, signal: Signal
) -> None:
    """A teacher whose values are not finite in too large a share of a window stops all ranks, naming the prompts."""
    share, limit = signal.metrics["nonfinite_teacher"] / signal.metrics["rows"], trainer.args.teacher_nonfinite_limit
    if share <= limit:
        return
    broken_B = rollout.alive_B & ~usable_B(rollout, scores, trainer.method.signals)
    prompts = gather_object([inputs[row]["prompt"] for row in broken_B.nonzero().flatten().tolist()])
    shown = ", ".join(repr(prompt)[:80] for prompt in prompts[:8])
    raise FloatingPointError(
        f"step {trainer.state.global_step}: the teacher's values are NaN or infinite in {share:.0%} of the window "
        f"(teacher_nonfinite_limit={limit}), for the prompts {shown}. Check the teacher's weights and its precision "
        "(teacher_model_init_kwargs={'dtype': 'float32'}), and whether the student writes tokens that the teacher "
        "does not know (`fire-opd preflight`)."
    )


def refuse_guessing_teacher(trainer, rollout: Rollout, scores: Scores) -> None:
    """A teacher that finds every token about as likely as any other, at -ln V, has lost its weights."""
    if trainer.args.allow_guessing_teacher:
        return
    guess = -math.log(trainer.checked.student_rows)
    share = min(0.5, GUESSING / min(1.0, trainer.temperature))  # log-probabilities are of logits / temperature
    known_BT = rollout.mask_BT & scores.teacher_logp_BT.isfinite()
    above_BT = torch.where(known_BT, scores.teacher_logp_BT - guess, 0.0)
    columns_B3 = torch.stack([part_BT.sum(dim=1).float() for part_BT in (known_BT, above_BT, above_BT.abs())], dim=1)
    sums_K3 = columns_B3.new_zeros((len(trainer.teachers), 3)).index_add(0, trainer.window.teacher_B, columns_B3)
    sums = zip(trainer.teachers, trainer.world.sum(sums_K3).tolist(), strict=True)
    for name, (tokens, above, off) in sums:
        if tokens >= ENOUGH_TOKENS and off / tokens < share * -guess:
            raise FloatingPointError(
                f"step {trainer.state.global_step}: teacher {name!r} gives the tokens of a window a log-probability "
                f"of {guess + above / tokens:.2f} in the mean, and hardly any token another one; guessing among "
                f"{trainer.checked.student_rows} tokens gives {guess:.2f}. Its weights are random or lost: load it "
                "alone and look at what it writes. allow_guessing_teacher=True trains with it all the same."
            )
