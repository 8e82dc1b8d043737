"""Intervals, tests and corrections, by closed forms and by hand."""

import itertools
import math
import sys

import numpy as np
import pytest

from fire_opd_trl.evaluation import statistics
from fire_opd_trl.evaluation.compare import command as main


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (7, 2.3646), (30, 2.0423), (1000, 1.9623)]
)
def test_t_quantiles_are_those_of_the_tables(df, quantile):
    assert statistics.t_quantile(df) == pytest.approx(quantile, abs=5e-5)


def test_t_probabilities_are_those_of_the_closed_forms():
    # df=1 is Cauchy: P(|t| > 1) = 1/2. df=2: P(|t| > x) = 1 - x / sqrt(2 + x^2).
    assert statistics.t_two_sided(1.0, 1) == pytest.approx(0.5, abs=1e-12)
    assert statistics.t_two_sided(3.0, 2) == pytest.approx(1 - 3 / 11**0.5, abs=1e-12)
    assert statistics.t_two_sided(-3.0, 2) == statistics.t_two_sided(3.0, 2)
    assert statistics.t_two_sided(0.0, 5) == 1.0
    assert statistics.t_quantile(7, level=0.01) == pytest.approx(3.4995, abs=5e-5)


def test_a_paired_difference_worked_by_hand():
    # Seeds 0, 1, 2 are common: differences 1, 2, 3, mean 2, sd 1, error 1/sqrt(3), t = 2 sqrt(3) with df = 2:
    # p = 1 - 2 sqrt(3) / sqrt(2 + 12) = 0.0741799; half width 4.30265 / sqrt(3) = 2.48414.
    found = statistics.paired({0: 2.0, 1: 4.0, 2: 6.0, 3: 99.0}, {2: 3.0, 1: 2.0, 0: 1.0, 4: -99.0})
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(2.48414, abs=1e-5)
    assert found.p == pytest.approx(0.0741799, abs=1e-7)
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "half_width", "p"),
    [([0.3], None, None), ([0.0], None, None), ([0.3, 0.3, 0.3], None, None), ([0.0, 0.0], 0.0, 1.0)],
)
def test_seeds_without_spread_claim_nothing(values, half_width, p):
    found = statistics.estimate(values)
    assert (found.half_width, found.p) == (half_width, p)


def test_missing_scipy_is_said_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit) as exit:
        main.main(["--preset", "smoke", "--output_dir", str(tmp_path)])
    assert exit.value.code == 2 and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.endswith("Intervals over seeds need scipy: pip install fire-opd-trl[report]\n")


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5; none below an earlier one.
    assert statistics.holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5}
    )
    assert statistics.holm({"a": 0.03, "b": 0.02}) == pytest.approx({"b": 0.04, "a": 0.04})  # 0.03 alone is not below
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_a_band_by_hand():
    mean, low, high = statistics.band([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert mean == [2.0, 0.0] and low == pytest.approx([2 - 2.48414, 0], abs=1e-5)
    assert high == pytest.approx([2 + 2.48414, 0], abs=1e-5)


def test_the_interval_of_a_ratio_holds_what_clusters_vary_by():
    # All clusters alike: no interval. Two clusters of 10 tokens with sums 0 and 10: a resample has 0, 1 or 2 of the
    # second, with ratios 0, 0.5, 1 and shares 1/4, 1/2, 1/4, so that the outer 2.5 % lie at 0 and at 1.
    assert statistics.ratio_interval([3.0, 6.0], [10, 20], seed=0) == pytest.approx((0.3, 0.3))
    assert statistics.ratio_interval([0.0, 10.0], [10, 10], seed=0) == (0.0, 1.0)
    assert all(math.isnan(end) for end in statistics.ratio_interval([], [], seed=0))


def test_the_interval_of_a_ratio_is_that_of_the_normal_for_many_clusters():
    # 100 clusters of one token, half 0 and half 1: the mean's deviation is 0.5 / 10, and 1.96 of it are 0.098.
    low, high = statistics.ratio_interval([0.0, 1.0] * 50, [1.0] * 100, seed=1)
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.012)
    assert statistics.ratio_interval([0.0, 1.0] * 50, [1.0] * 100, seed=1) == (low, high)


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_all_sets_with_a_right_one(n):
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        sets = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert statistics.pass_at_k(n, right, k) == pytest.approx(sum(map(any, sets)) / len(sets), abs=1e-12)


def test_pass_at_k_is_unbiased():
    # The mean over how many of 5 are right, each with probability 0.3, is the probability of a right one in 3.
    chance = sum(math.comb(5, c) * 0.3**c * 0.7 ** (5 - c) * statistics.pass_at_k(5, c, 3) for c in range(6))
    assert chance == pytest.approx(1 - 0.7**3, abs=1e-12)
    assert statistics.pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


def test_the_interval_of_shares_by_hand_and_at_its_ends():
    # 0, 1 and 0.5 become 0, 1, 0.5, 0, 1: mean 1/2, deviation 1/2, t(4) = 2.7764, cut at 0 and 1.
    assert statistics.share_interval([0.0, 1.0, 0.5]) == (0.0, 1.0)
    low, high = statistics.share_interval([0.5] * 30)
    assert (low, high) == pytest.approx((0.5 - 2.0395 * (0.5 / 31) ** 0.5 / 32**0.5, 1 - low), abs=1e-4)
    assert all(math.isnan(end) for values in ([], [0.5]) for end in statistics.share_interval(values))
    for size in (2, 10, 30, 500):  # all right: about what the rule of three says
        low, high = statistics.share_interval([1.0] * size)
        assert high == 1.0 and 1 - 7 / (size + 2) < low < 1 - 2.4 / (size + 2)
        assert statistics.share_interval([0.0] * size) == pytest.approx((0.0, 1 - low))


@pytest.mark.parametrize(
    ("size", "n", "hard", "ease"), [(30, 8, 0.0, 0.99), (30, 8, 0.1, 0.98), (60, 1, 0.0, 0.5), (30, 1, 0.05, 1.0)]
)
def test_the_interval_of_shares_holds_the_truth_where_that_of_t_does_not(size, n, hard, ease):
    # A part of the problems is never solved, the others as often as `ease` says. 400 evaluations of such a model.
    draw, truth, held = np.random.default_rng(0), (1 - hard) * ease, 0
    for _ in range(400):
        shares = draw.binomial(n, np.where(draw.random(size) < hard, 0.0, ease)) / n
        low, high = statistics.share_interval(list(shares))
        held += low <= truth <= high
    assert held >= 0.92 * 400


def test_a_paired_bootstrap_is_that_of_t_for_many_problems():
    draw = np.random.default_rng(3)
    differences = list(draw.integers(-4, 6, 400) / 8)
    found, t = statistics.paired_bootstrap(differences, 8), statistics.estimate(differences)
    assert found[:2] == pytest.approx((t.mean - t.half_width, t.mean + t.half_width), abs=0.003)
    shifted = [value - t.mean + 2.2 * t.half_width / 1.966 for value in differences]  # 2.2 errors from 0
    assert statistics.paired_bootstrap(shifted, 8)[2] == pytest.approx(statistics.t_two_sided(2.2, 399), abs=0.006)
    assert found == statistics.paired_bootstrap(differences, 8) != statistics.paired_bootstrap(differences, 8, seed=1)


def test_a_paired_bootstrap_of_all_draws_by_hand():
    # One sample each, and both differences are 0: +-1 joins them. Of the 256 draws of 4 the means -1 and 1 have one
    # each, less than 2.5 % less what few problems take away, so that nothing can be said.
    low, high, p = statistics.paired_bootstrap([0.0, 0.0], 1)
    assert (low, high, p) == (-1.0, 1.0, 1.0)
    assert all(math.isnan(one) for one in statistics.paired_bootstrap([0.5], 1))


def test_the_p_of_a_paired_bootstrap_agrees_with_its_interval():
    draw = np.random.default_rng(1)
    for _ in range(40):
        differences = list(draw.integers(-3, 5, 25) / 8)
        low, high, p = statistics.paired_bootstrap(differences, 8, resamples=2000)
        assert low - 0.01 < sum(differences) / 25 < high + 0.01
        assert abs(p - 0.05) < 0.01 or (p < 0.05) == (low > 0 or high < 0)


def test_models_that_do_not_differ_are_called_different_in_one_of_twenty_tables():
    # Problems of every ease, 4 samples, 30 problems: 400 pairs of the same model.
    draw, wrong = np.random.default_rng(2), 0
    for _ in range(400):
        ease = draw.beta(0.5, 0.5, 30)
        differences = list((draw.binomial(4, ease) - draw.binomial(4, ease)) / 4)
        wrong += statistics.paired_bootstrap(differences, 4, resamples=1000)[2] < 0.05
    assert 2 <= wrong <= 30  # 20 is 5 %
