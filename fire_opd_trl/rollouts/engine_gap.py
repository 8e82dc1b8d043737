"""The engine that samples against the model that trains: do they still have one distribution?"""

import math
import warnings
from dataclasses import dataclass

import torch

from ..config import FiReOPDConfig
from ..pipeline import Rollout, Scores
from ..stages import World


ERRORS = 3.0  # standard errors by which a mean must exceed its bound
ONE_SIDED = 0.9  # share of the gap that is KL, above which the distribution must have been cut
UNKNOWN = 0.1  # share of tokens without a log-probability, above which nothing can be said


@dataclass(frozen=True)
class Gap:
    """
    By how much an engine's log-probabilities of its own tokens differ from those of training.

    Args:
        tokens (`int`): Tokens at which both are known.
        unknown (`int`): Trained tokens whose log-probability the engine did not give.
        mean (`float`): Mean absolute difference.
        kl (`float`): Mean difference, an estimate of KL(engine || student).
        error (`float`): Standard error of that estimate, tokens of one row taken together.
    """

    tokens: int
    unknown: int
    mean: float
    kl: float
    error: float

    @classmethod
    def of(cls, sums: list[float]) -> "Gap":
        """Makes a gap from the sums over rows that [`row_sums`] names."""
        tokens, unknown, absolute, total, squares, products, lengths = sums
        count = max(1.0, tokens)
        kl = total / count
        spread = squares - 2 * kl * products + kl * kl * lengths  # sum over rows of (their sum - kl x their tokens)^2
        return cls(int(tokens), int(unknown), absolute / count, kl, math.sqrt(max(0.0, spread)) / count)

    @property
    def silent(self) -> float:
        """Share of the trained tokens without a log-probability."""
        return self.unknown / max(1, self.tokens + self.unknown)

    def level(self, limit: float) -> float:
        """
        How far the gap is beyond the limit, which is 1: by its mean, or by its KL, whichever is more. Normal noise
        whose mean gap is the limit has KL = pi / 4 limit^2, since mean |d| = s sqrt(2 / pi) and KL = s^2 / 2. The KL
        is what finds distributions that differ at few tokens, or to one side.
        """
        return max(self.mean / limit, (self.kl - ERRORS * self.error) / (math.pi / 4 * limit**2))


def row_sums(sampled_BT: torch.Tensor, student_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """
    Returns what [`Gap.of`] needs of this rank's rows: tokens, unknown ones, |d|, d, and over rows (sum d)^2, sum d x
    tokens, tokens^2.

    Args:
        sampled_BT (`torch.Tensor`): The engine's log-probabilities; not finite where it gave none.
        student_BT (`torch.Tensor`): Those of training, of the same weights.
        mask_BT (`torch.Tensor`): Tokens that train.
    """
    known_BT = mask_BT & sampled_BT.isfinite() & student_BT.isfinite()
    gap_BT = torch.where(known_BT, sampled_BT - student_BT, 0.0).float()
    unknown_B = (mask_BT & ~sampled_BT.isfinite()).sum(dim=1)
    tokens_B, gap_B = known_BT.sum(dim=1).float(), gap_BT.sum(dim=1)
    parts = (tokens_B, unknown_B, gap_BT.abs(), gap_B, gap_B.square(), gap_B * tokens_B, tokens_B.square())
    return torch.stack([part.sum().float() for part in parts])


def engine_gaps(
    sampled_BT: torch.Tensor, student_BT: torch.Tensor, mask_BT: torch.Tensor, world: World
) -> tuple[Gap, list[Gap]]:
    """Returns the gap over all ranks, and that of each rank: in colocation each has an engine of its own."""
    sums_R7 = world.gather(row_sums(sampled_BT, student_BT, mask_BT).unsqueeze(0)).double().cpu()
    return Gap.of(sums_R7.sum(dim=0).tolist()), [Gap.of(sums) for sums in sums_R7.tolist()]


@dataclass
class EngineMonitor:
    """
    Warns when the engine that samples and the model that trains drift apart.

    Args:
        args ([`FiReOPDConfig`]): The configuration: the limit, and what may drive them apart.
        first (`float`, *optional*): The mean gap of the first window.
        warned (`float`): How far beyond the limit the last warning was; the next comes at twice that. A window in
            order sets it back.
    """

    args: FiReOPDConfig
    first: float | None = None
    warned: float = 0.0

    def observe(
        self,
        sampled_BT: torch.Tensor | None,
        rollout: Rollout,
        scores: Scores,
        world: World,
        step: int,
    ) -> dict[str, float]:
        """
        The trainer calls this once for each window. It returns the gap as metrics, and warns if that is too large.

        Args:
            sampled_BT (`torch.Tensor`, *optional*): The log-probabilities that the engine reported, if it did.
            rollout ([`Rollout`]): The window.
            scores ([`Scores`]): What the models say of it.
            world ([`World`]): All ranks.
            step (`int`): The step that is named in the warning.
        """
        if sampled_BT is None:
            return {}
        gap, of_ranks = engine_gaps(sampled_BT, scores.student_logp_BT, rollout.mask_BT, world)
        metrics = {"sampling_unknown": float(gap.unknown)}
        if gap.tokens:
            metrics |= {"sampling_gap": gap.mean, "sampling_kl": gap.kl}
            self.first = gap.mean if self.first is None else self.first
        if limit := self.args.sampling_gap_limit:
            rank, worst = max(enumerate(of_ranks), key=lambda numbered: numbered[1].level(limit))
            level = max(worst.level(limit), gap.level(limit))
            if gap.silent > UNKNOWN:
                level = max(level, 1 + gap.silent)
            if level > 1 and level >= 2 * self.warned:
                self.warned = level
                if world.rank == 0:
                    warnings.warn(self.warning(gap, rank, worst, step), stacklevel=2)
            self.warned = self.warned if level > 1 else 0.0
        return metrics

    def warning(self, gap: Gap, rank: int, worst: Gap, step: int) -> str:
        """Returns what a user is told: the figures, then what usually makes them."""
        limit = self.args.sampling_gap_limit
        assert limit is not None
        if gap.silent > UNKNOWN:
            return (
                f"step {step}: the engine that samples gave no log-probability for {gap.unknown} of "
                f"{gap.tokens + gap.unknown} tokens. They train without a correction, and whether it samples what "
                "trains cannot be seen. Look at its version and precision, and at fire/sampling_unknown."
            )
        alone = f"; rank {rank} alone by {worst.mean:.3g}" if gap.level(limit) <= 1 else ""
        one_sided = max(gap, worst, key=lambda one: one.level(limit))
        causes = likely_causes(self.args, cut=one_sided.kl > ONE_SIDED * one_sided.mean)
        return (
            f"step {step}: the log-probabilities of sampling and training differ by {gap.mean:.3g} a token in mean "
            f"({self.first:.3g} in the first window, sampling_gap_limit={limit:g}{alone}), and KL(engine || student) "
            f"is about {one_sided.kl:.2g}. Either {'; or '.join(causes)}. Look at fire/sampling_gap."
        )


def likely_causes(args: FiReOPDConfig, cut: bool) -> list[str]:
    """Returns what usually drives engine and trainer apart. `cut`: whether every token is likelier to the engine."""
    causes = ["it samples with other settings than the config's: temperature, top_p, top_k, min_p, penalties"]
    if cut:
        causes = ["the engine cuts its distribution, since its tokens are all likelier to it: top_p, top_k or min_p"]
    if args.use_vllm:
        asleep = ", or sleep mode lost them (vllm_enable_sleep_mode: false)" if args.vllm_enable_sleep_mode else ""
        causes.append(f"its weights are stale: they were not synced after a step{asleep}")
    if args.use_vllm and args.vllm_mode == "server":
        causes.append("the server was started without `--logprobs-mode processed_logprobs`, or with another model")
    return [*causes, "it computes in another precision than the trainer"]
