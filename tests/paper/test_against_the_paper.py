"""
A slow reference in plain floats, written from the formulas of the paper (arXiv 2606.02684), one trajectory at a time,
and one of what the released code computes on micro-batches of one trajectory. Nothing here uses the package but the
comparison.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fire_opd_trl import METHODS, Rollout, Scores, distil
from fire_opd_trl.stages import aggregate, clipped_surrogate, row_scale


EPSILON = 0.2
SMALLEST_MAX = 1e-6
GARBAGE = (math.nan, math.inf, -math.inf, 1e30)


def trajectories(seed: int, rows: int, longest: int) -> list[dict[str, list[float]]]:
    """Ragged trajectories; entropies are skewed as those of language models are, many of the teacher's nearly 0."""
    random = np.random.default_rng(seed)
    window = []
    for _ in range(rows):
        length = int(random.integers(1, longest + 1))
        old = -random.exponential(1.0, length)
        window.append(
            {
                "teacher": (-random.exponential(random.uniform(0.5, 3.0), length)).tolist(),
                "old": old.tolist(),
                "now": (old + random.normal(0.0, 0.25, length)).tolist(),
                "teacher_entropy": (random.exponential(1.0, length) ** 3).tolist(),
                "student_entropy": random.exponential(1.0, length).tolist(),
            }
        )
    return window


# The paper


def kept_by_the_paper(window, drop: str) -> list[int]:
    """s(y) = 1/T sum_t log pi_T(y_t); rank all rollouts of the batch, drop the lowest `drop` of them."""
    score = [math.fsum(y["teacher"]) / len(y["teacher"]) for y in window]
    ranked = sorted(range(len(window)), key=lambda row: score[row])
    return sorted(ranked[math.floor(Fraction(drop) * len(window)) :])


def weights_of_the_paper(batch, alpha: float, beta: float) -> list[list[float]]:
    """
    c^T_t = 1 - H_T(t) / max_{t' in B} H_T, c^S_t = H_S(t) / max_{t' in B} H_S,
    w_t = (1 + alpha c^T_t)(1 + beta c^S_t), and Eq. 8: w_t / mean_{t in y}(w).
    """
    max_teacher = max(max(h for y in batch for h in y["teacher_entropy"]), SMALLEST_MAX)
    max_student = max(max(h for y in batch for h in y["student_entropy"]), SMALLEST_MAX)
    weights = []
    for y in batch:
        w = []
        for teacher_entropy, student_entropy in zip(y["teacher_entropy"], y["student_entropy"], strict=True):
            teacher_confidence = 1.0 - teacher_entropy / max_teacher
            student_confusion = student_entropy / max_student
            w.append((1.0 + alpha * teacher_confidence) * (1.0 + beta * student_confusion))
        mean = math.fsum(w) / len(w)
        weights.append([w_t / mean for w_t in w])
    return weights


def advantages_of_the_paper(batch, weights) -> list[list[float]]:
    """The weighted advantage w_t (log pi_T(y_t) - log pi_old(y_t))."""
    return [
        [w * (teacher - old) for w, teacher, old in zip(w_y, y["teacher"], y["old"], strict=True)]
        for w_y, y in zip(weights, batch, strict=True)
    ]


def loss_of_the_paper(batch, advantages) -> float:
    """Eq. 9: -1/N sum_y 1/T sum_t min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) over the N surviving trajectories."""
    total = 0.0
    for y, advantage_y in zip(batch, advantages, strict=True):
        objective = 0.0
        for now, old, advantage in zip(y["now"], y["old"], advantage_y, strict=True):
            ratio = math.exp(now - old)
            bounded = min(max(ratio, 1.0 - EPSILON), 1.0 + EPSILON)
            objective += min(ratio * advantage, bounded * advantage)
        total += objective / len(y["now"])
    return -total / len(batch)


def slope_of_the_paper(batch, advantages, row: int, token: int, step: float = 1e-6) -> float:
    """d loss / d log pi_theta(y_t) by central differences: the advantages stand still."""
    here, values = batch[row]["now"][token], []
    for value in (here + step, here - step):
        batch[row]["now"][token] = value
        values.append(loss_of_the_paper(batch, advantages))
    batch[row]["now"][token] = here
    return (values[0] - values[1]) / (2 * step)


# The package


def as_tensors(window, layout_seed: int) -> tuple[Rollout, Scores, torch.Tensor, list[list[int]]]:
    """The window padded with garbage, with holes among the tokens; and in which columns each trajectory stands."""
    random = np.random.default_rng(layout_seed)
    width = max(len(y["now"]) for y in window) + 3
    columns = [sorted(random.choice(width, len(y["now"]), replace=False).tolist()) for y in window]
    names = ("teacher", "old", "now", "teacher_entropy", "student_entropy")
    tensors = {name: torch.full((len(window), width), GARBAGE[layout_seed % 4], dtype=torch.float64) for name in names}
    mask_BT = torch.zeros(len(window), width, dtype=torch.bool)
    for row, y in enumerate(window):
        mask_BT[row, columns[row]] = True
        for name in names:
            tensors[name][row, columns[row]] = torch.tensor(y[name], dtype=torch.float64)
    scores = Scores(
        teacher_logp_BT=tensors["teacher"],
        student_logp_BT=tensors["old"],
        teacher_entropy_BT=tensors["teacher_entropy"],
        student_entropy_BT=tensors["student_entropy"],
    )
    return Rollout(mask_BT), scores, tensors["now"], columns


def loss_and_gradient(signal, rollout, scores, now_BT) -> tuple[torch.Tensor, torch.Tensor]:
    """The package's loss, with the scale 1 / (|y| N) in float64, for `row_scale` rounds to float32."""
    train_BT = rollout.mask_BT & signal.keep_B.unsqueeze(1)
    length_B, rows = train_BT.sum(dim=1), signal.keep_B.sum()
    scale_B = 1.0 / (length_B.double().clamp(min=1) * rows)
    torch.testing.assert_close(row_scale(length_B, rows, length_B.sum(), "grpo").double(), scale_B, rtol=3e-7, atol=0)
    now_BT = now_BT.clone().requires_grad_()
    loss_BT, _ = clipped_surrogate(now_BT, scores.student_logp_BT, signal.advantage_BT, train_BT, EPSILON, EPSILON)
    loss = aggregate(loss_BT, train_BT, scale_B)
    (gradient_BT,) = torch.autograd.grad(loss, now_BT)
    return loss.detach(), gradient_BT


def assert_rows_equal(value_BT, expected: dict[int, list[float]], columns):
    """The trajectories of `expected` in their columns, and 0 everywhere else."""
    expected_BT = torch.zeros_like(value_BT)
    for row, values in expected.items():
        expected_BT[row, columns[row]] = torch.tensor(values, dtype=value_BT.dtype)
    torch.testing.assert_close(value_BT, expected_BT, rtol=0, atol=1e-10)


KNOBS = [("0.2", 1.0, 1.0), ("0.29", 0.25, 5.0), ("0.4", 0.0, 2.0), ("0", 3.0, 0.5), ("0.5", 2.0, 0.0)]


@pytest.mark.parametrize(("drop", "alpha", "beta"), KNOBS)
@pytest.mark.parametrize(("rows", "longest"), [(1, 6), (2, 1), (5, 4), (13, 9), (100, 3), (64, 24)])
@pytest.mark.parametrize("seed", range(3))
def test_fire_is_the_paper(drop, alpha, beta, rows, longest, seed):
    window = trajectories(seed, rows, longest)
    keep = kept_by_the_paper(window, drop)
    batch = [window[row] for row in keep]
    weights = weights_of_the_paper(batch, alpha, beta)
    advantages = advantages_of_the_paper(batch, weights)

    rollout, scores, now_BT, columns = as_tensors(window, seed)
    signal = distil(rollout, scores, METHODS["fire"](float(drop), alpha, beta))
    assert signal.keep_B.nonzero().flatten().tolist() == keep
    assert_rows_equal(signal.weight_BT, dict(zip(keep, weights, strict=True)), columns)
    assert_rows_equal(signal.advantage_BT, dict(zip(keep, advantages, strict=True)), columns)
    loss, _ = loss_and_gradient(signal, rollout, scores, now_BT)
    assert loss.item() == pytest.approx(loss_of_the_paper(batch, advantages), abs=1e-10)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize(("drop", "alpha", "beta"), KNOBS)
@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_is_that_of_the_paper(drop, alpha, beta, seed, on_policy):
    window = trajectories(10 + seed, 9, 6)
    for y in window:
        if on_policy:
            y["now"] = list(y["old"])
        else:  # a difference quotient across a kink of the clip means nothing
            ratios = [math.exp(now - old) for now, old in zip(y["now"], y["old"], strict=True)]
            assert all(min(abs(ratio - 0.8), abs(ratio - 1.2)) > 1e-5 for ratio in ratios)
    keep = kept_by_the_paper(window, drop)
    batch = [window[row] for row in keep]
    advantages = advantages_of_the_paper(batch, weights_of_the_paper(batch, alpha, beta))
    slopes = {
        row: [slope_of_the_paper(batch, advantages, number, token) for token in range(len(window[row]["now"]))]
        for number, row in enumerate(keep)
    }

    rollout, scores, now_BT, columns = as_tensors(window, seed)
    signal = distil(rollout, scores, METHODS["fire"](float(drop), alpha, beta))
    _, gradient_BT = loss_and_gradient(signal, rollout, scores, now_BT)
    expected_BT = torch.zeros_like(gradient_BT)
    for row, values in slopes.items():
        expected_BT[row, columns[row]] = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(gradient_BT, expected_BT, rtol=0, atol=1e-8)
    assert gradient_BT.abs().max() > 1e-2


def test_opd_is_the_paper_without_filter_and_weights():
    window = trajectories(3, 20, 8)
    advantages = advantages_of_the_paper(window, [[1.0] * len(y["now"]) for y in window])
    rollout, scores, now_BT, columns = as_tensors(window, 0)
    signal = distil(rollout, scores, METHODS["opd"]())
    assert signal.keep_B.all()
    assert_rows_equal(signal.advantage_BT, dict(enumerate(advantages)), columns)
    loss, _ = loss_and_gradient(signal, rollout, scores, now_BT)
    assert loss.item() == pytest.approx(loss_of_the_paper(window, advantages), abs=1e-10)


def signals(scores: Scores) -> dict[str, torch.Tensor]:
    return {name: value_BT for name, value_BT in vars(scores).items() if value_BT is not None}


# The released code


def released_micro_batch(micro, percentile: float, alpha: float, beta: float):
    """
    What `_compute_entropy_aware_loss` makes of one micro-batch: who passes the threshold, the token weights, the
    weighted advantages, and the token mean of the loss over those who pass.

    The threshold is the linearly interpolated quantile of the scores, in float32; entropy maxima and the mean of the
    weights run over all valid tokens of the micro-batch, those of filtered trajectories included; the log-ratio is
    bounded by 20.
    """
    score = torch.tensor([np.mean(y["teacher"]) for y in micro], dtype=torch.float32)
    passes = (score >= torch.quantile(score, percentile / 100.0)).tolist()
    teacher_entropy = [np.asarray(y["teacher_entropy"]) for y in micro]
    student_entropy = [np.asarray(y["student_entropy"]) for y in micro]
    teacher_max = max(np.concatenate(teacher_entropy).max(), SMALLEST_MAX)
    student_max = max(np.concatenate(student_entropy).max(), SMALLEST_MAX)
    raw = [
        (1 + alpha * np.clip(1 - h_t / teacher_max, 0, 1)) * (1 + beta * np.clip(h_s / student_max, 0, 1))
        for h_t, h_s in zip(teacher_entropy, student_entropy, strict=True)
    ]
    mean = max(np.concatenate(raw).mean(), 1e-6)
    weights = [w / mean for w in raw]
    advantages, losses = [], []
    for y, w, passed in zip(micro, weights, passes, strict=True):
        now, old = np.asarray(y["now"]), np.asarray(y["old"])
        advantage = -(old - np.asarray(y["teacher"])) * w * passed
        ratio = np.exp(np.clip(now - old, -20.0, 20.0))
        advantages.append(advantage)
        if passed:
            losses.append(np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - EPSILON, 1 + EPSILON)))
    return passes, weights, advantages, np.concatenate(losses).mean()


@pytest.mark.parametrize(("percentile", "alpha", "beta"), [(20.0, 1.0, 1.0), (40.0, 0.5, 3.0), (99.0, 2.0, 0.0)])
@pytest.mark.parametrize("seed", range(4))
def test_fire_released_is_the_released_code_at_micro_batch_1(percentile, alpha, beta, seed):
    window = trajectories(seed, 23, 9)
    passes, weights, advantages, accumulated = [], [], [], 0.0
    for y in window:  # gradient accumulation: each micro-batch counts 1 / number of micro-batches
        passed, weight, advantage, loss = released_micro_batch([y], percentile, alpha, beta)
        passes, weights, advantages = passes + passed, weights + weight, advantages + advantage
        accumulated += loss / len(window)
    assert all(passes)  # the quantile of one value is that value

    rollout, scores, now_BT, columns = as_tensors(window, seed)
    signal = distil(rollout, scores, METHODS["fire_released"](percentile / 100, alpha, beta))
    assert signal.keep_B.all()
    assert_rows_equal(signal.weight_BT, dict(enumerate(weights)), columns)
    assert_rows_equal(signal.advantage_BT, dict(enumerate(advantages)), columns)
    loss, _ = loss_and_gradient(signal, rollout, scores, now_BT)
    assert loss.item() == pytest.approx(accumulated, abs=1e-10)
    assert not METHODS["fire_released"]().rollout_correction and METHODS["fire"]().rollout_correction


def test_the_released_statistics_are_not_those_of_the_paper():
    rollout, scores, _, _ = as_tensors(trajectories(0, 40, 9), 0)
    paper, released = (distil(rollout, scores, METHODS[name]()) for name in ("fire", "fire_released"))
    assert (int(paper.keep_B.sum()), int(released.keep_B.sum())) == (32, 40)
    both_BT = rollout.mask_BT & paper.keep_B.unsqueeze(1)
    assert (paper.weight_BT - released.weight_BT)[both_BT].abs().mean() > 0.02


def test_fire_released_is_fire_on_windows_of_one_trajectory():
    window = trajectories(5, 17, 9)
    rollout, scores, _, _ = as_tensors(window, 1)
    released = distil(rollout, scores, METHODS["fire_released"]())
    for row in range(len(window)):
        alone = Scores(**{name: value_BT[row : row + 1] for name, value_BT in signals(scores).items()})
        signal = distil(Rollout(rollout.mask_BT[row : row + 1]), alone, METHODS["fire"]())
        assert signal.keep_B.item()
        torch.testing.assert_close(signal.weight_BT[0], released.weight_BT[row], rtol=0, atol=1e-14)
        torch.testing.assert_close(signal.advantage_BT[0], released.advantage_BT[row], rtol=0, atol=1e-14)


# How many of n trajectories a linearly interpolated 20 % quantile drops, against floor(n / 5).
QUANTILE = {1: 0, 2: 1, 3: 1, 4: 1, 6: 1, 8: 2, 16: 3, 32: 7, 64: 13, 128: 26, 1024: 205}


@pytest.mark.parametrize(("rows", "by_quantile"), QUANTILE.items())
def test_the_filter_counts_where_the_released_quantile_interpolates(rows, by_quantile):
    window = trajectories(rows, rows, 2)
    passes, *_ = released_micro_batch(window, 20.0, 1.0, 1.0)
    assert passes.count(False) == by_quantile
    rollout, scores, _, _ = as_tensors(window, 0)
    keep_B = distil(rollout, scores, METHODS["fire"](drop_fraction=0.2)).keep_B
    assert int((~keep_B).sum()) == rows // 5
