"""
Every method but `fire` (see `test_against_the_paper.py`) once more, in plain floats, one trajectory and one token at a
time, written from the formulas of the papers.
"""

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest
import torch
from support.windows import (
    INF,
    NAN,
    emptied,
    hash_in_plain_python,
    on_ranks,
    parts_of,
    rows_of,
    trimmed,
    window,
    with_value,
)

from fire_opd_trl import METHODS, Context, Rollout, Scores, distil
from fire_opd_trl.stages import World


SEED = 11


# A window in plain floats


@dataclass
class Row:
    """One trajectory: what is known of its tokens, and what a reference below says of it."""

    number: int
    columns: list[int]
    teacher: list[float]
    student: list[float]
    teacher_entropy: list[float]
    student_entropy: list[float]
    reference: list[float]
    reverse_kl: list[float]
    prompt: int
    reward: float
    keep: bool = True
    weight: list[float] = field(default_factory=list)
    advantage: list[float] = field(default_factory=list)
    divergence: list[float] | None = None

    @property
    def a(self) -> list[float]:
        """a_t = log pi_T(y_t) - log pi_old(y_t)."""
        return [teacher - student for teacher, student in zip(self.teacher, self.student, strict=True)]

    @property
    def correct(self) -> bool:
        return self.reward > 0


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def deviation(values: list[float]) -> float:
    """Of the population."""
    return math.sqrt(mean((value - mean(values)) ** 2 for value in values))


def quantile(values: list[float], share: float) -> float:
    """Linear between neighbours."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


def floor_of(share: float, count: int) -> int:
    """floor(share count), the share meant in decimals."""
    return math.floor(Fraction(str(share)) * count)


def plain_rows(rollout: Rollout, scores: Scores) -> list[Row]:
    """The rows that have a token and whose teacher signals are finite."""
    rows = []
    for number, mask in enumerate(rollout.mask_BT.tolist()):
        columns = [column for column, inside in enumerate(mask) if inside]
        values = [vars(scores)[name][number, columns].tolist() for name in vars(Scores(None, None))]
        if columns and all(math.isfinite(value) for signal in values for value in signal):
            teacher, student, teacher_entropy, student_entropy, reference, reverse_kl = values
            reward, prompt = rollout.reward_B[number].item(), rollout.group_B[number].item()
            row = Row(
                number,
                columns,
                teacher,
                student,
                teacher_entropy,
                student_entropy,
                reference,
                reverse_kl,
                prompt,
                reward,
            )
            rows.append(row)
    return rows


def of_prompt(rows: list[Row], row: Row) -> list[Row]:
    return [other for other in rows if other.prompt == row.prompt]


# The methods. Each fills in `keep`, `weight`, `advantage` (weighted) and `divergence` of every row.


def even_tokens(rows):
    for row in rows:
        row.weight = [1.0] * len(row.columns)


def times_a(rows):
    for row in rows:
        row.advantage = [w * a for w, a in zip(row.weight, row.a, strict=True)]


def minimised_alone(rows):
    """The divergence with the weights of the tokens, and no policy gradient."""
    for row in rows:
        row.divergence, row.advantage = row.weight, [0.0] * len(row.weight)


def highest(values: list[float], share: float) -> list[float]:
    """The floor(share T) highest, at least one, ties by position, and T over their number as the weight of each."""
    count = max(1, floor_of(share, len(values)))
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token))
    return [len(values) / count if token in ranked[:count] else 0.0 for token in range(len(values))]


def fire(rows, drop="0.2", alpha=1.0, beta=1.0, soft_rows=False, keep_tokens=None):
    """18: rank by the mean teacher log-probability, drop the lowest; (1 + a c^T)(1 + b c^S) over its mean."""
    ranked = sorted(rows, key=lambda row: mean(row.teacher))
    dropped = floor_of(drop, len(rows))
    least = mean(ranked[dropped].teacher)
    for row in ranked[:dropped]:
        row.keep = soft_rows
    kept = [row for row in rows if row.keep]
    max_teacher = max(h for row in kept for h in row.teacher_entropy)
    max_student = max(h for row in kept for h in row.student_entropy)
    for row in kept:
        raw = [
            (1 + alpha * (1 - teacher / max_teacher)) * (1 + beta * student / max_student)
            for teacher, student in zip(row.teacher_entropy, row.student_entropy, strict=True)
        ]
        row.weight = [w / mean(raw) for w in raw]
        if keep_tokens:
            row.weight = highest(row.weight, keep_tokens)
    if soft_rows:  # sigmoid of the distance to the least likely trajectory that a hard filter would keep
        spread = deviation([mean(row.teacher) for row in rows])
        likely = [1 / (1 + math.exp(-(mean(row.teacher) - least) / spread)) for row in rows]
        for row, share in zip(rows, likely, strict=True):
            row.weight = [w * share / mean(likely) for w in row.weight]
    times_a(kept)


def fire_full(rows):
    fire(rows)
    minimised_alone([row for row in rows if row.keep])


def exopd(rows, extrapolation=1.25):
    """2: lambda (lpT - lpF) - (lpO - lpF)."""
    even_tokens(rows)
    for row in rows:
        signals = zip(row.teacher, row.reference, row.student, strict=True)
        row.advantage = [extrapolation * (lpT - lpF) - (lpO - lpF) for lpT, lpF, lpO in signals]


def unit_range(rows, name: str, clip: float) -> list[list[float]]:
    everything = [value for row in rows for value in getattr(row, name)]
    top, low = quantile(everything, clip), min(everything)
    return [[(min(value, top) - low) / (top - low) for value in getattr(row, name)] for row in rows]


def tip(rows, keep="0.5", clip=0.98, full=True):
    """3: clip at the 98th percentile of the window, min-max to [0, 1], soft or, the top half of each rollout."""
    for row, h, d in zip(
        rows, unit_range(rows, "student_entropy", clip), unit_range(rows, "reverse_kl", clip), strict=True
    ):
        row.weight = highest([x + y - x * y for x, y in zip(h, d, strict=True)], keep)
    minimised_alone(rows) if full else times_a(rows)


def eopd(rows, threshold=0.8, coef=1.0):
    """4: the policy gradient everywhere, the forward KL added where H_T > tau."""
    even_tokens(rows)
    times_a(rows)
    for row in rows:
        row.divergence = [coef if h > threshold else 0.0 for h in row.teacher_entropy]


def reopold(rows, lam=0.2, keep=0.5, refine=False):
    """5: max(R_t, log(lambda / (1 - lambda))) on the chosen tokens, 1 / sum M as the normaliser."""
    floor = math.log(lam / (1 - lam))
    everything = [h for row in rows for h in row.student_entropy]
    least = quantile(everything, 1 - keep)
    for row in rows:
        row.weight = [float(h >= least) for h in row.student_entropy] if refine else [float(a >= floor) for a in row.a]
    chosen = sum(sum(row.weight) for row in rows)
    for row in rows:
        row.weight = [w * len(everything) / chosen for w in row.weight]
        row.advantage = [w * max(a, floor) for w, a in zip(row.weight, row.a, strict=True)]


def margin_of(rows, row: Row, statistic: str) -> float:
    right = [mean(other.a) for other in of_prompt(rows, row) if other.correct]
    wrong = [mean(other.a) for other in of_prompt(rows, row) if not other.correct]
    if not right or not wrong:
        return INF
    return mean(right) - mean(wrong) if statistic == "mean" else min(right) - max(wrong)


def uni_opd(rows, margin=0.4, statistic="mean", direction="both"):
    """6, the code: s = delta - gap > 0 is shared between correct and wrong rows."""
    even_tokens(rows)
    for row in rows:
        s = max(margin - margin_of(rows, row, statistic), 0.0)
        up, down = {"both": (s / 2, s / 2), "correct_up": (s, 0.0), "incorrect_down": (0.0, s)}[direction]
        row.advantage = [a + (up if row.correct else -down) for a in row.a]


def uni_opd_mask(rows, margin=0.4, statistic="minmax"):
    """6, the paper: m(q) < delta masks the prompt."""
    even_tokens(rows)
    times_a(rows)
    for row in rows:
        row.keep = margin_of(rows, row, statistic) >= margin


def opd_full(rows):
    even_tokens(rows)
    minimised_alone(rows)


def iw_opd(rows, gamma=0.5):
    """17a: w_t = 1 + gamma (1 - F_t), F_t the share of |a| strictly before t."""
    for row in rows:
        total = math.fsum(abs(a) for a in row.a) + 1e-8
        row.weight = [1 + gamma * (1 - math.fsum(abs(a) for a in row.a[:t]) / total) for t in range(len(row.a))]
    times_a(rows)


def power_opd(rows, alpha=5.0):
    """19.2: pi_T^alpha - pi_S^alpha."""
    even_tokens(rows)
    for row in rows:
        pairs = zip(row.teacher, row.student, strict=True)
        row.advantage = [math.exp(lpT) ** alpha - math.exp(lpS) ** alpha for lpT, lpS in pairs]


def z_score(value: float, values: list[float]) -> float:
    return (value - mean(values)) / deviation(values) if deviation(values) >= 1e-6 else 0.0


def gc_opd(rows, beta=0.1, largest=10.0):
    """19.1: A'_t = A_t + beta (1 + tanh(u_t / 2)) (z(R) - z(s)), clipped."""
    even_tokens(rows)
    for row in rows:
        group = of_prompt(rows, row)
        rho = z_score(row.reward, [other.reward for other in group])
        rho -= z_score(mean(row.a), [mean(other.a) for other in group])
        for a in row.a:
            c = 1 + math.tanh((a - mean(row.a)) / max(deviation(row.a), 1e-6) / 2)
            row.advantage.append(min(max(a + beta * c * rho, -largest), largest))


def scope(rows, tau=1.0, imitate=True):
    """7: PPL_S^(1/tau) among the correct, PPL_T^(-1/tau) among the wrong rows of a prompt, each of mean 1."""

    def raw(row: Row) -> float:
        if row.correct:
            return math.exp(-mean(row.student)) ** (1 / tau)
        return math.exp(-mean(row.teacher)) ** (-1 / tau)

    for row in rows:
        path = [raw(other) for other in of_prompt(rows, row) if other.correct == row.correct]
        row.weight = [raw(row) / mean(path)] * len(row.columns)
    times_a(rows)
    for row in rows:
        if row.correct and imitate:
            row.advantage = row.weight


def opdvr(rows, conflict=0.0, group=False):
    """19.4: ReLU(a_t) on correct, -ReLU(-a_t) on wrong rollouts; GRPD skips prompts of one outcome."""
    for row in rows:
        row.keep = not group or len({other.correct for other in of_prompt(rows, row)}) == 2
        row.weight = [1.0 if (a > 0 if row.correct else a < 0) else conflict for a in row.a]
    times_a(rows)


def tropd(rows, outliers="forward_kl"):
    """9: M_t ~ Bernoulli(min(pi_T / pi_S, 1)), with the coin of the row, the token's number, and 1."""
    for row in rows:
        coins = [hash_in_plain_python(SEED, row.number, token + 1, 1) for token in range(len(row.columns))]
        row.weight = [float(coin < min(math.exp(a), 1)) for coin, a in zip(coins, row.a, strict=True)]
        if outliers == "forward_kl":
            row.divergence = [1 - m for m in row.weight]
    times_a(rows)


CASES = {
    "fire": (fire, {}, {}),
    "fire, soft rows": (fire, {"soft_rows": True}, {"rows": "soft"}),
    "fire, hard tokens": (fire, {"keep_tokens": "0.3"}, {"tokens": "hard", "keep_tokens": 0.3}),
    "fire, both": (
        fire,
        {"drop": "0.4", "alpha": 2.0, "beta": 0.5, "soft_rows": True, "keep_tokens": "0.5"},
        {"drop_fraction": 0.4, "confidence": 2.0, "confusion": 0.5, "rows": "soft", "tokens": "hard"},
    ),
    "fire_full": (fire_full, {}, {}),
    "exopd": (exopd, {}, {}),
    "exopd, 0.5": (exopd, {"extrapolation": 0.5}, {"extrapolation": 0.5}),
    "tip": (tip, {}, {}),
    "tip, a fifth": (tip, {"keep": "0.2", "clip": 0.7}, {"keep": 0.2, "clip_quantile": 0.7}),
    "tip, sampled": (tip, {"full": False}, {"full": False}),
    "eopd": (eopd, {}, {}),
    "eopd, 2 nats": (eopd, {"threshold": 2.0, "coef": 0.25}, {"threshold": 2.0, "coef": 0.25}),
    "reopold": (reopold, {}, {}),
    "reopold, 0.4": (reopold, {"lam": 0.4}, {"floor": 0.4}),
    "reopold, refining": (reopold, {"refine": True}, {"switch": 0.0}),
    "reopold, refining a fifth": (reopold, {"refine": True, "keep": 0.2}, {"switch": 0.0, "keep": 0.2}),
    "uni_opd": (uni_opd, {}, {}),
    "uni_opd, correct_up": (uni_opd, {"direction": "correct_up"}, {"direction": "correct_up"}),
    "uni_opd, incorrect_down": (uni_opd, {"direction": "incorrect_down"}, {"direction": "incorrect_down"}),
    "uni_opd, minmax": (uni_opd, {"statistic": "minmax", "margin": 1.0}, {"statistic": "minmax", "margin": 1.0}),
    "uni_opd, paper": (uni_opd_mask, {}, {"statistic": "minmax", "calibrate": "mask"}),
    "uni_opd, masked by means": (uni_opd_mask, {"statistic": "mean"}, {"calibrate": "mask"}),
    "opd_full": (opd_full, {}, {}),
    "iw_opd": (iw_opd, {}, {}),
    "iw_opd, 2": (iw_opd, {"gamma": 2.0}, {"strength": 2.0}),
    "power_opd": (power_opd, {}, {}),
    "power_opd, 0.1": (power_opd, {"alpha": 0.1}, {"power": 0.1}),
    "gc_opd": (gc_opd, {}, {}),
    "gc_opd, clamped": (gc_opd, {"beta": 2.0, "largest": 1.5}, {"strength": 2.0, "largest": 1.5}),
    "scope": (scope, {}, {}),
    "scope, warm": (scope, {"tau": 3.0, "imitate": False}, {"temperature": 3.0, "imitate": False}),
    "opdvr": (opdvr, {}, {}),
    "opdvr, group": (opdvr, {"group": True}, {"group": True}),
    "opdvr, soft": (opdvr, {"conflict": 0.25}, {"conflict": 0.25}),
    "tropd": (tropd, {}, {}),
    "tropd, mask": (tropd, {"outliers": "mask"}, {"outliers": "mask"}),
}


def difficult_window(seed: int) -> tuple[Rollout, Scores]:
    """Prompts that do not stand together, of which some are decided; an empty row, and one whose teacher is broken."""
    rollout, scores = window(seed, rows=37)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(seed))
    rollout = emptied(replace(rollout, group_B=rollout.group_B[order], reward_B=rollout.reward_B[order]), [8])
    for name in ("teacher_logp_BT", "teacher_entropy_BT", "reference_logp_BT", "reverse_kl_BT"):
        scores = with_value(scores, name, 21, 0, NAN)
    return rollout, scores


def expected(rows: list[Row], shape: torch.Size) -> dict[str, torch.Tensor]:
    """What the reference said, as tensors."""
    said = {name: torch.zeros(shape, dtype=torch.float64) for name in ("weight", "advantage", "divergence")}
    said["keep"] = torch.zeros(shape[0], dtype=torch.bool)
    for row in rows:
        said["keep"][row.number] = row.keep
        for name in ("weight", "advantage", "divergence"):
            if row.keep and getattr(row, name) is not None:
                said[name][row.number, row.columns] = torch.tensor(getattr(row, name), dtype=torch.float64)
    return said


def test_every_method_has_a_reference():
    assert {name.split(",")[0] for name in CASES} == set(METHODS) - {"opd", "fire_released", "random"}


@pytest.mark.parametrize("sizes", [[37], [9, 1, 20, 7]], ids=["one rank", "four ragged ranks"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_a_method_is_what_its_paper_says(name, seed, sizes):
    reference, said, settings = CASES[name]
    rollout, scores = difficult_window(seed)
    rows, method = plain_rows(rollout, scores), METHODS[name.split(",")[0]](**settings)
    reference(rows, **said)
    wanted = expected(rows, rollout.mask_BT.shape)
    parts = parts_of(sizes)
    pieces = (
        [trimmed(*rows_of(rollout, scores, part))[:2] for part in parts] if len(sizes) > 1 else [(rollout, scores)]
    )

    def work(rank: int, world: World):
        return distil(*pieces[rank], method, Context(world=world, seed=SEED))

    assert len(rows) == 35
    for signal, part in zip(on_ranks(len(sizes), work) if len(sizes) > 1 else [work(0, World())], parts, strict=True):
        width = signal.weight_BT.shape[1]
        assert torch.equal(signal.keep_B, wanted["keep"][part])
        assert (signal.divergence_BT is None) == all(row.divergence is None for row in rows)
        divergence_BT = torch.zeros_like(signal.weight_BT) if signal.divergence_BT is None else signal.divergence_BT
        for key, value_BT in (
            ("weight", signal.weight_BT),
            ("advantage", signal.advantage_BT),
            ("divergence", divergence_BT),
        ):
            torch.testing.assert_close(
                value_BT, wanted[key][part][:, :width], rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )
