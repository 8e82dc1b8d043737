"""What fails in silence: an engine that samples from another distribution than the one that trains."""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .batches import Batch
from .pipeline import Rollout, Scores
from .stages import World


if TYPE_CHECKING:
    from .config import FiReOPDConfig
    from .trainer import FiReOPDTrainer


ERRORS = 3.0  # standard errors by which a mean must exceed its bound
NOISE = 1e-3  # nats that kernels of one precision may differ in


@dataclass(frozen=True)
class Gap:
    """
    The engine's log-probabilities of its own tokens, less those of training, over all ranks.

    Args:
        tokens (`int`): Tokens at which both are known.
        unknown (`int`): Trained tokens whose log-probability the engine did not give.
        mean (`float`): Mean absolute difference.
        kl (`float`): Mean difference, an estimate of KL(engine || student).
        error (`float`): Standard error of that estimate.
        below (`float`): Share of the tokens that the engine finds less likely than training does.
    """

    tokens: int
    unknown: int
    mean: float
    kl: float
    error: float
    below: float

    def exceeds(self, limit: float) -> bool:
        """
        Whether the mean gap is above the limit, or the two distributions are further apart than noise of that size
        would make them. For normal noise of either sign, mean |d| = s sqrt(2 / pi) and KL = s^2 / 2, hence
        KL = pi / 4 (mean |d|)^2; what cuts or sharpens a distribution has far more KL for its gap.
        """
        return self.mean > limit or self.kl - ERRORS * self.error > math.pi / 4 * limit**2


def sampling_gap(sampled_BT: torch.Tensor, student_BT: torch.Tensor, mask_BT: torch.Tensor, world: World) -> Gap:
    """
    Compare what the engine reports with what training computes.

    Args:
        sampled_BT (`torch.Tensor`): The engine's log-probabilities; not finite where it gave none.
        student_BT (`torch.Tensor`): Those of training, of the same weights.
        mask_BT (`torch.Tensor`): Tokens that train and were scored.
        world ([`World`]): All ranks.
    """
    known_BT = mask_BT & sampled_BT.isfinite() & student_BT.isfinite()
    gap_BT = torch.where(known_BT, sampled_BT - student_BT, 0.0).double()
    unknown_BT, below_BT = mask_BT & ~sampled_BT.isfinite(), gap_BT < -NOISE
    parts = (known_BT, unknown_BT, gap_BT.abs(), gap_BT, gap_BT.square(), below_BT)
    sums = world.sum(torch.stack([part_BT.sum().double() for part_BT in parts])).tolist()
    tokens, unknown, count = int(sums[0]), int(sums[1]), max(1.0, sums[0])
    mean, kl, square, below = (value / count for value in sums[2:])
    return Gap(tokens, unknown, mean, kl, math.sqrt(max(0.0, square - kl * kl) / count), below)


@dataclass
class Canary:
    """
    Warns when the engine that samples and the model that trains drift apart.

    Args:
        first (`float`, *optional*): The mean gap of the first window.
        warned (`float`): The gap of the last warning; the next comes at twice that.
    """

    first: float | None = None
    warned: float = 0.0

    def look(self, trainer: "FiReOPDTrainer", batch: Batch, rollout: Rollout, scores: Scores) -> dict[str, float]:
        """
        The gap of a window, as metrics; nothing if the engine reported no log-probabilities.

        Args:
            batch (`dict`): The window; `sampling_per_token_logps` in it is what the engine reported.
        """
        sampled_BT = batch.get("sampling_per_token_logps")
        if sampled_BT is None:
            return {}
        rows = trainer.window.scored_rows
        scored_B = torch.zeros_like(rollout.alive_B)
        scored_B[slice(None) if rows is None else rows] = True
        mask_BT = rollout.mask_BT & scored_B.unsqueeze(1)
        gap = sampling_gap(sampled_BT, scores.student_logp_BT, mask_BT, trainer.world)
        self.first = gap.mean if self.first is None else self.first
        limit = trainer.args.sampling_gap_limit
        if limit is not None and gap.exceeds(limit) and gap.mean >= 2 * self.warned:
            self.warned = gap.mean
            if trainer.world.rank == 0:
                warnings.warn(self.said(trainer.args, trainer.state.global_step, gap), stacklevel=2)
        return {"sampling_gap": gap.mean, "sampling_kl": gap.kl, "sampling_unknown": float(gap.unknown)}

    def said(self, args: "FiReOPDConfig", step: int, gap: Gap) -> str:
        """What a user is told: the figures, then what usually makes them."""
        causes = []
        if gap.below < 0.01:
            causes.append("the engine cuts its distribution (no token is less likely to it): top_p, top_k or min_p")
        causes.append("it samples with other settings than the config's: temperature, penalties, generation_kwargs")
        if args.use_vllm:
            asleep = ", or sleep mode lost them (vllm_enable_sleep_mode: false)" if args.vllm_enable_sleep_mode else ""
            causes.append(f"its weights are stale: they were not synced after a step{asleep}")
        if args.use_vllm and args.vllm_mode == "server":
            causes.append("the server was started without `--logprobs-mode processed_logprobs`, or with another model")
        causes.append("it computes in another precision than the trainer")
        return (
            f"step {step}: the log-probabilities of sampling and training differ by {gap.mean:.3g} a token in mean "
            f"({self.first:.3g} in the first window, sampling_gap_limit={args.sampling_gap_limit:g}), and "
            f"KL(engine || student) is about {gap.kl:.2g}. Either {'; or '.join(causes)}. Look at fire/sampling_gap."
        )
