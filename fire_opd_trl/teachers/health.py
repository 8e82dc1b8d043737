"""Teachers whose values are broken, or no better than guesses, stop the run."""

import math
from typing import Any

import torch
from accelerate.utils import gather_object

from ..pipeline import Rollout, Scores, Signal
from ..stages import World, usable_B


ENOUGH_TOKENS = 100  # of a window, before its teacher is called broken
# Mean distance of a token's log-probability from -ln V, as a share of ln V, that no trained teacher has.
GUESSING = 0.2


def refuse_broken_teacher(
    inputs: list[dict[str, Any]],
    rollout: Rollout,
    scores: Scores,
    signal: Signal,
    *,
    signals: tuple[str, ...],
    limit: float,
    step: int,
) -> None:
    """
    The trainer calls this once for each window. A teacher whose values are not finite in too large a share of it stops
    all ranks, and the error names the prompts.

    Args:
        inputs (`list[dict]`): The rows of the dataset that were sampled from.
        rollout ([`Rollout`]): The window.
        scores ([`Scores`]): What the models say of it.
        signal ([`Signal`]): What became of it.
        signals (`tuple[str, ...]`): Fields of `scores` that the method reads.
        limit (`float`): The share of the window that may be broken.
        step (`int`): The step that the error names.
    """
    share = signal.metrics["nonfinite_teacher"] / signal.metrics["rows"]
    if share <= limit:
        return
    broken_B = rollout.alive_B & ~usable_B(rollout, scores, signals)
    prompts = gather_object([inputs[row]["prompt"] for row in broken_B.nonzero().flatten().tolist()])
    shown = ", ".join(repr(prompt)[:80] for prompt in prompts[:8])
    raise FloatingPointError(
        f"step {step}: the teacher's values are NaN or infinite in {share:.0%} of the window "
        f"(teacher_nonfinite_limit={limit}), for the prompts {shown}. Check the teacher's weights and its precision "
        "(teacher_model_init_kwargs={'dtype': 'float32'}), and whether the student writes tokens that the teacher "
        "does not know (`fire-opd preflight`)."
    )


def refuse_guessing_teacher(
    names: list[str],
    rollout: Rollout,
    scores: Scores,
    *,
    token_rows: int,
    temperature: float,
    world: World,
    step: int,
) -> None:
    """
    The trainer calls this once for each window. A teacher that finds every token about as likely as any other, at
    -ln V, has lost its weights, and stops all ranks.

    Args:
        names (`list[str]`): The teachers, by number.
        rollout ([`Rollout`]): The window, with the number of each row's teacher.
        scores ([`Scores`]): What the models say of it.
        token_rows (`int`): V, among how many tokens a guess would choose.
        temperature (`float`): Log-probabilities are of logits / temperature.
        world ([`World`]): All ranks.
        step (`int`): The step that the error names.
    """
    guess = -math.log(token_rows)
    share = min(0.5, GUESSING / min(1.0, temperature))
    known_BT = rollout.mask_BT & scores.teacher_logp_BT.isfinite()
    above_BT = torch.where(known_BT, scores.teacher_logp_BT - guess, 0.0)
    columns_B3 = torch.stack([part_BT.sum(dim=1).float() for part_BT in (known_BT, above_BT, above_BT.abs())], dim=1)
    assert rollout.teacher_B is not None
    sums_K3 = columns_B3.new_zeros((len(names), 3)).index_add(0, rollout.teacher_B, columns_B3)
    for name, (tokens, above, off) in zip(names, world.sum(sums_K3).tolist(), strict=True):
        if tokens >= ENOUGH_TOKENS and off / tokens < share * -guess:
            raise FloatingPointError(
                f"step {step}: teacher {name!r} gives the tokens of a window a log-probability "
                f"of {guess + above / tokens:.2f} in the mean, and hardly any token another one; guessing among "
                f"{token_rows} tokens gives {guess:.2f}. Its weights are random or lost: load it "
                "alone and look at what it writes. allow_guessing_teacher=True trains with it all the same."
            )
