"""What a window looked like: plain numbers over all ranks, returned by the mathematics and logged by the trainer."""

from collections.abc import Sequence

import torch

from .reweight import SMALLEST_MAX
from .rollout import Rollout, masked_mean_B, masked_sum_B
from .score import Scores
from .soundness import usable_B
from .world import Context, World


def window_metrics(
    sampled: Rollout,
    usable: Rollout,
    kept: Rollout,
    scores: Scores,
    score_B: torch.Tensor,
    weight_BT: torch.Tensor,
    advantage_BT: torch.Tensor,
    divergence_BT: torch.Tensor | None,
    context: Context,
) -> dict[str, float]:
    """
    Counts, shares and token means of one window.

    Args:
        sampled ([`Rollout`]): Every row as it was sampled.
        usable ([`Rollout`]): The rows whose teacher values are finite.
        kept ([`Rollout`]): The survivors of the filter.

    Returns:
        `dict[str, float]`: `rows`, `empty`, `nonfinite_teacher`, `kept_rows`; the shares `keep_ratio`,
        `kept_token_ratio` (tokens of survivors), `active_token_ratio` (tokens with any weight), and `keep_ratio` of
        the rows that finished, were truncated or end in a loop: `keep_ratio_finished`, `keep_ratio_truncated`,
        `keep_ratio_looped`; over usable rows `looped_ratio`, `teacher_logp` (row mean of log-probability a token),
        `reverse_kl` (token mean of `log pi_S - log pi_T`, an estimate of KL(student || teacher)) and `terminal_gap`
        (mean over finished rows of `log pi_T - log pi_S` of their last token, which ended them); over survivors
        `reverse_kl_kept` (too low an estimate where the teacher's likelihood chose them), `weight_max`, `weight_ess`
        (effective share of tokens, `(sum w)^2 / (n sum w^2)`), `advantage_abs`, `advantage_top_decile` (see
        [`top_decile_share`]), and, where entropies exist, the means of the entropies, of confidence and of confusion.
        Both are relative to the maximum of the whole window, whatever scope a method takes. What no row could say is
        left out: `keep_ratio_looped` without a loop, `advantage_top_decile` where every advantage is 0.
    """
    world, usable_BT, kept_BT = context.world, usable.mask_BT, kept.mask_BT
    minus_ratio_BT = scores.student_logp_BT - scores.teacher_logp_BT
    both = {"teacher_entropy": scores.teacher_entropy_BT, "student_entropy": scores.student_entropy_BT}
    entropies = {name: value_BT for name, value_BT in both.items() if value_BT is not None}
    sums = {
        "rows": sampled.alive_B.new_ones(sampled.alive_B.shape),
        "alive": sampled.alive_B,
        "usable": usable.alive_B,
        "kept": kept.alive_B,
        "usable_tokens": usable_BT,
        "kept_tokens": kept_BT,
        "reverse_kl": masked_sum_B(minus_ratio_BT, usable_BT),
        "reverse_kl_kept": masked_sum_B(minus_ratio_BT, kept_BT),
        "teacher_logp": masked_mean_B(scores.teacher_logp_BT, usable_BT),
        "weight": weight_BT,
        "weight_squared": weight_BT.square(),
        "advantage_abs": advantage_BT.abs(),
        "active_tokens": (weight_BT if divergence_BT is None else weight_BT.abs() + divergence_BT.abs()) != 0,
        **{name: masked_sum_B(value_BT, kept_BT) for name, value_BT in entropies.items()},
    }
    kinds = {}
    if sampled.finished_B is not None:
        kinds = {"finished": sampled.finished_B, "truncated": ~sampled.finished_B}
        ended_B = usable.alive_B & sampled.finished_B
        sums["terminal_gap"] = torch.where(ended_B, -last_B(minus_ratio_BT, usable_BT), 0.0)
    if sampled.looped_B is not None:
        kinds["looped"] = sampled.looped_B
    for name, rows_B in kinds.items():
        sums[f"usable_{name}"], sums[f"kept_{name}"] = usable.alive_B & rows_B, kept.alive_B & rows_B
    totals = world.sum(torch.stack([value.float().sum() for value in sums.values()])).tolist()
    total: dict[str, float] = dict(zip(sums, totals, strict=True))
    maxima = {"weight": weight_BT, **{n: torch.where(kept_BT, v, 0.0) for n, v in entropies.items()}}
    peaks = world.max(torch.stack([value.float().max() for value in maxima.values()])).tolist()
    largest: dict[str, float] = dict(zip(maxima, peaks, strict=True))

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    metrics = {
        "rows": total["rows"],
        "empty": total["rows"] - total["alive"],
        "nonfinite_teacher": total["alive"] - total["usable"],
        "kept_rows": total["kept"],
        "keep_ratio": share(total["kept"], total["usable"]),
        "kept_token_ratio": share(total["kept_tokens"], total["usable_tokens"]),
        "active_token_ratio": share(total["active_tokens"], total["usable_tokens"]),
        "reverse_kl": share(total["reverse_kl"], total["usable_tokens"]),
        "reverse_kl_kept": share(total["reverse_kl_kept"], total["kept_tokens"]),
        "teacher_logp": share(total["teacher_logp"], total["usable"]),
        "weight_max": largest["weight"],
        "weight_ess": share(total["weight"] ** 2, total["kept_tokens"] * total["weight_squared"]),
        "advantage_abs": share(total["advantage_abs"], total["kept_tokens"]),
    }
    dropped_B = usable.alive_B & ~kept.alive_B
    if total["kept"] < total["usable"]:
        metrics["threshold"] = world.max(torch.where(dropped_B, score_B.float(), -torch.inf).max()).item()
    for name in entropies:
        metrics[name] = share(total[name], total["kept_tokens"])
    if "teacher_entropy" in entropies:
        metrics["confidence"] = 1.0 - metrics["teacher_entropy"] / max(largest["teacher_entropy"], SMALLEST_MAX)
    if "student_entropy" in entropies:
        metrics["confusion"] = metrics["student_entropy"] / max(largest["student_entropy"], SMALLEST_MAX)
    for name in kinds:
        if total[f"usable_{name}"]:
            metrics[f"keep_ratio_{name}"] = total[f"kept_{name}"] / total[f"usable_{name}"]
    if total.get("usable_finished"):
        metrics["terminal_gap"] = total["terminal_gap"] / total["usable_finished"]
    if "looped" in kinds:
        metrics["looped_ratio"] = share(total["usable_looped"], total["usable"])
    decile = top_decile_share(advantage_BT, total["kept_tokens"], world)
    return metrics if decile is None else {**metrics, "advantage_top_decile": decile}


def last_B(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The value at the last token of each row under the mask, `[B]`; of an empty row at its first column."""
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return value_BT.gather(1, (mask_BT * place_T).argmax(dim=1, keepdim=True)).squeeze(1)


def top_decile_share(value_BT: torch.Tensor, tokens: float, world: World) -> float | None:
    """
    The share of `sum |x_t|` over all ranks that the tenth of the tokens with the largest `|x_t|` carry: 0.1 where all
    are equal, 1 where a tenth has everything. It is read from a histogram. A bin holds the float32 numbers that share
    their first 16 bits (sign, exponent, 7 bits of the fraction): how many there are, and the sum of their last 16
    bits, so that each bin's sum is exact. Where the tenth ends inside a bin, which is at most 1/128 wide, its part of
    the bin is taken at the bin's mean: the share is right within 0.8 %. Whole numbers add up the same in any order,
    so it depends on no layout.

    Args:
        value_BT (`torch.Tensor`): 0 outside the mask.
        tokens (`float`): Number of tokens under the mask, on all ranks; those with the value 0 among them.

    Returns:
        `float`, *optional*: The share; `None` where every value is 0, as in a method that learns from its divergence
        alone.
    """
    size = value_BT.float().abs()
    bits_X = size[size > 0].view(torch.int32).long()
    bin_X, low_X, bins = bits_X >> 16, bits_X & 0xFFFF, 2**15
    low_H = bits_X.new_zeros(bins).index_add(0, bin_X, low_X)
    count_H, low_H = world.sum(torch.stack([bin_X.bincount(minlength=bins), low_H])).cpu().double()
    if not count_H.any():
        return None
    first_H = torch.arange(bins, dtype=torch.int32) << 16
    edge_H, middle_H = first_H.view(torch.float32).double(), (first_H + 2**15).view(torch.float32).double()
    mean_H = edge_H + low_H / count_H * (middle_H - edge_H) / 2**15
    order_H = count_H.nonzero().squeeze(1).flip(0)  # from the largest down, where there are any
    count_H, mean_H = count_H[order_H], mean_H[order_H]
    taken_H = (tokens / 10 - (count_H.cumsum(0) - count_H)).clamp(min=0).minimum(count_H)
    return ((taken_H * mean_H).sum() / (count_H * mean_H).sum()).item()


def metrics_by_teacher(
    rollout: Rollout, scores: Scores, signals: Sequence[str], keep_B: torch.Tensor, teachers: int, world: World
) -> list[dict[str, float]]:
    """
    Statistics of each teacher's own rows on all ranks: `rows`, `keep_ratio`, `reverse_kl` (token mean of
    `log pi_S - log pi_T`) and `reverse_kl_kept` (the same over survivors), `teacher_logp` (mean over trajectories),
    and `teacher_entropy`, `looped_ratio` and `terminal_gap` where they are known. A teacher without usable rows has
    `rows` alone.

    Args:
        rollout ([`Rollout`]): Every row as it was sampled; `teacher_B` numbers the teachers.
        signals (`tuple[str]`): What the method reads. A row in which one of them is not finite counts in `rows` alone.
        keep_B (`torch.Tensor`): Survivors of the filter.
        teachers (`int`): How many there are.
    """
    assert rollout.teacher_B is not None
    usable = rollout.only(usable_B(rollout, scores, signals))
    entropy_BT, tokens_B, kept_BT = scores.teacher_entropy_BT, usable.mask_BT.sum(dim=1), usable.only(keep_B).mask_BT
    minus_ratio_BT = scores.student_logp_BT - scores.teacher_logp_BT
    values = [
        torch.ones_like(usable.alive_B),
        usable.alive_B,
        keep_B,
        tokens_B,
        kept_BT.sum(dim=1),
        masked_sum_B(minus_ratio_BT, usable.mask_BT),
        masked_sum_B(minus_ratio_BT, kept_BT),
        masked_mean_B(scores.teacher_logp_BT, usable.mask_BT),
        tokens_B * 0 if entropy_BT is None else masked_sum_B(entropy_BT, usable.mask_BT),
    ]
    zero_B = tokens_B * 0
    values.append(zero_B if rollout.looped_B is None else usable.alive_B & rollout.looped_B)
    ended_B = zero_B.bool() if rollout.finished_B is None else usable.alive_B & rollout.finished_B
    values += [ended_B, torch.where(ended_B, -last_B(minus_ratio_BT, usable.mask_BT), 0.0)]
    value_BX = torch.stack([value_B.float() for value_B in values], dim=1)
    value_NX = value_BX.new_zeros((teachers, len(values))).index_add(0, rollout.teacher_B, value_BX)
    metrics, total_NX = [], world.sum(value_NX).tolist()
    for rows, alive, kept, tokens, kept_tokens, reverse_kl, of_kept, logp, entropy, looped, ended, gap in total_NX:
        metrics.append({"rows": rows})
        if alive and tokens:
            metrics[-1].update(keep_ratio=kept / alive, reverse_kl=reverse_kl / tokens, teacher_logp=logp / alive)
            metrics[-1].update({"reverse_kl_kept": of_kept / kept_tokens} if kept_tokens else {})
            metrics[-1].update({} if entropy_BT is None else {"teacher_entropy": entropy / tokens})
            metrics[-1].update({} if rollout.looped_B is None else {"looped_ratio": looped / alive})
            metrics[-1].update({"terminal_gap": gap / ended} if ended else {})
    return metrics
