"""
Stage 5b: the whole distribution, beside the sampled token. Some methods add a divergence between teacher and student
to a token's policy gradient, or put it in the gradient's place; it is differentiated itself. The functions here say
how much of it each token gets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .reweight import uniform
from .rollout import Rollout
from .score import Scores
from .world import Context, global_row_B, uniform_hash


@dataclass(frozen=True)
class Divergence:
    """
    What a [`Method`] minimises directly, beside its policy gradient or in its place, and at which tokens.
    `Divergence()` is KL(student || teacher) of the full vocabulary at every token. `Divergence(top_k=16)` is the
    forward KL, KL(teacher || student), on the teacher's 16 likeliest tokens.

    Example, plain distillation over the whole vocabulary:

    ```python
    >>> from fire_opd_trl import Divergence, Method
    >>> method = Method("whole", advantage=None, divergence=Divergence())
    ```

    Args:
        top_k (`int`): 0: the divergence of the full vocabulary. k: the forward KL on the teacher's k likeliest tokens,
            `sum_v pi_T(v) (log pi_T(v) - log pi_S(v))`, not renormalised.
        mixture (`float`): With the full vocabulary: 1 is KL(student || teacher), 0 is KL(teacher || student), between
            them the generalised Jensen-Shannon divergence.
        weight (`Callable`, *optional*): `(rollout, scores, context) -> weight_BT`, how much of it each token gets.
            `None`: every token gets all of it.
    """

    top_k: int = 0
    mixture: float = 1.0
    weight: Callable[[Rollout, Scores, Context], torch.Tensor] | None = None

    def __post_init__(self):
        if self.weight is uniform:  # what `None` stands for
            object.__setattr__(self, "weight", None)


def uncertain_teacher(
    rollout: Rollout, scores: Scores, context: Context, *, threshold: float, coef: float
) -> torch.Tensor:
    """It acts only where the teacher leaves a choice (EOPD): `alpha 1[H_T(t) > tau]`. Returns `weight_BT`."""
    assert scores.teacher_entropy_BT is not None
    gate_BT = rollout.mask_BT & (scores.teacher_entropy_BT > threshold)
    return torch.where(gate_BT, coef, 0.0).to(scores.teacher_logp_BT.dtype)


def trusted(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """
    Tokens that the teacher would accept from the student (TrOPD), as in speculative decoding:
    `M_t ~ Bernoulli(min(pi_T(y_t) / pi_old(y_t), 1))`.

    Returns:
        `torch.Tensor`: `M_BT`, 1 or 0.
    """
    mask_BT = rollout.mask_BT
    row_B = global_row_B(len(mask_BT), context.world, mask_BT.device)
    coin_BT = uniform_hash(context.seed, row_B.unsqueeze(1), mask_BT.cumsum(dim=1), torch.ones_like(row_B[:, None]))
    ratio_BT = torch.where(mask_BT, scores.teacher_logp_BT - scores.student_logp_BT, 0.0).clamp(max=0.0).exp()
    return (mask_BT & (coin_BT < ratio_BT)).to(ratio_BT.dtype)


def distrusted(rollout: Rollout, scores: Scores, context: Context) -> torch.Tensor:
    """The tokens that `trusted` leaves out, by the same coins: `1 - M_t`. Returns `weight_BT`."""
    return uniform(rollout, scores, context) - trusted(rollout, scores, context)
