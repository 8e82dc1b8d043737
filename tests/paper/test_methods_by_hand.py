"""The methods on windows that are small enough for their numbers to be worked out on paper."""

import math
from dataclasses import replace

import pytest
import torch
from support.windows import INF, NAN, emptied

from fire_opd_trl import METHODS, Context, Rollout, Scores, distil
from fire_opd_trl.stages import (
    World,
    group_mean_B,
    group_z_B,
    mixed_outcome_B,
    mixture_floor,
    outcome_margin_B,
    over_group_B,
    top_share_BT,
    unit_range_BT,
    window_quantile,
)


SEED = 11
LN2, LN4 = math.log(2), math.log(4)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def small(a: list[list[float]], reward=None, group=None, **signals) -> tuple[Rollout, Scores]:
    """A window with these log-ratios, NaN where a row has ended, and a student that is sure of its tokens."""
    a_BT = f64(a)
    optional = {
        "reward_B": None if reward is None else f64(reward),
        "group_B": None if group is None else torch.tensor(group),
    }
    scores = Scores(**{"teacher_logp_BT": a_BT, "student_logp_BT": torch.zeros_like(a_BT), **signals})
    return Rollout(~a_BT.isnan(), **optional), scores


def learned(name: str, rollout: Rollout, scores: Scores, progress: float = 0.0, **settings):
    return distil(rollout, scores, METHODS[name](**settings), Context(seed=SEED, progress=progress))


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        # The first prompt: means 1/2 and 1/4, gap 1/4, s = 1 - 1/4 = 3/4. The second has a gap of 2, the third no gap.
        ({}, [[1.375, 0.375], [-0.125, -0.125], [1.5, 1.5], [-0.5, -0.5], [0.25, NAN]]),  # s/2 = 0.375 up and down
        ({"direction": "correct_up"}, [[1.75, 0.75], [0.25, 0.25], [1.5, 1.5], [-0.5, -0.5], [0.25, NAN]]),
        ({"direction": "incorrect_down"}, [[1.0, 0.0], [-0.5, -0.5], [1.5, 1.5], [-0.5, -0.5], [0.25, NAN]]),
    ],
    ids=str,
)
def test_uni_opd_lifts_the_correct_and_lowers_the_wrong_by_half_of_what_the_margin_lacks(settings, rows):
    a = [[1.0, 0.0], [0.25, 0.25], [1.5, 1.5], [-0.5, -0.5], [0.25, NAN]]
    rollout, scores = small(a, reward=[1, 0, 1, 0, 1], group=[7, 7, 3, 3, 5])
    signal = learned("uni_opd", rollout, scores, margin=1.0, **settings)
    assert signal.advantage_BT.tolist() == f64(rows).nan_to_num(0.0).tolist()
    masked = learned("uni_opd", rollout, scores, margin=1.0, calibrate="mask")
    assert masked.keep_B.tolist() == [False, False, True, True, True]  # a prompt without a gap lacks nothing
    exact = learned("uni_opd", rollout, scores, margin=2.0, calibrate="mask")
    assert exact.keep_B.tolist() == [False, False, True, True, True]  # m(q) < delta: a gap of 2 is enough for 2


def test_a_margin_is_between_means_or_between_the_lowest_correct_and_the_highest_wrong_row():
    rollout, _ = small([[0.0]] * 6, reward=[1, 0.5, 0, -1, 1, 0], group=[2, 2, 2, 2, 4, 9])
    score_B = f64([0.5, 0.125, 0.25, -1.0, 3.0, 4.0])
    # (0.5 + 0.125)/2 - (0.25 - 1)/2 = 0.6875; 0.125 - 0.25. Alone, a correct or a wrong row has no margin to lack.
    assert outcome_margin_B(score_B, rollout, World(), "mean").tolist() == [0.6875] * 4 + [INF, INF]
    assert outcome_margin_B(score_B, rollout, World(), "minmax").tolist() == [-0.125] * 4 + [INF, INF]
    assert mixed_outcome_B(rollout, World()).tolist() == [True] * 4 + [False, False]
    assert mixed_outcome_B(emptied(rollout, [2, 3]), World()).tolist() == [False] * 6  # only rows with tokens count


def test_a_group_is_summed_over_its_members_wherever_they_stand():
    rollout, _ = small([[0.0]] * 5, group=[-4, 2**40, -4, 2**40, -4])  # a prompt may have any number
    value_B, member_B = f64([1.0, 2.0, 4.0, 8.0, NAN]), torch.tensor([True, True, True, False, False])
    assert over_group_B(value_B, member_B, rollout, World()).tolist() == [5.0, 2.0, 5.0, 2.0, 5.0]
    assert over_group_B(value_B, member_B, rollout, World(), "amax").tolist() == [4.0, 2.0, 4.0, 2.0, 4.0]
    assert over_group_B(value_B, member_B, rollout, World(), "amin").tolist() == [1.0, 2.0, 1.0, 2.0, 1.0]
    assert group_mean_B(value_B, member_B, rollout, World()).tolist() == [2.5, 2.0, 2.5, 2.0, 2.5]
    nobody_B = torch.zeros(5, dtype=torch.bool)
    assert over_group_B(value_B, nobody_B, rollout, World(), "amax").tolist() == [-INF] * 5
    assert group_mean_B(value_B, nobody_B, rollout, World()).tolist() == [0.0] * 5


def test_z_scores_have_the_deviation_of_the_population_and_are_zero_where_nothing_differs():
    rollout, _ = small([[0.0], [0.0], [NAN], [0.0], [0.0], [0.0]], group=[1, 1, 1, 2, 2, 3])
    z_B = group_z_B(f64([1.0, 5.0, 0.0, 7.0, 7.0 + 1e-7, 4.0]), rollout, World())
    assert z_B[[0, 1, 3, 4, 5]].tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0]  # mean 3, deviation 2 (and not sqrt(8))


@pytest.mark.parametrize("rows", [3, 7, 10])
@pytest.mark.parametrize("reward", [0.7, 33.3, 1000.1])
def test_equal_rewards_are_equal_in_single_precision_too(rows, reward):
    # The rounded mean of 10 times 33.3 is not 33.3: a deviation of 4e-6 that is no deviation.
    rollout, _ = small([[0.0]] * rows, group=[1] * rows)
    assert group_z_B(torch.full((rows,), reward), rollout, World()).tolist() == [0.0] * rows


def test_gc_opd_gives_the_surprise_to_the_tokens_that_the_teacher_likes():
    # Row 0: a = 0, 2 with mean 1 and deviation 1, and wrong; row 1: a = -1, without deviation, and correct.
    # z(R) = -1, 1; z(s) = 1, -1 (mean 0, deviation 1); rho = -2, 2. u = -1, 1; c = 1 + tanh(u/2); row 1: c = 1.
    rollout, scores = small([[0.0, 2.0], [-1.0, -1.0], [20.0, NAN]], reward=[0, 1, 1], group=[5, 5, 6])
    low, high = 1 - math.tanh(0.5), 1 + math.tanh(0.5)
    signal = learned("gc_opd", rollout, scores)
    wanted = f64([[-0.2 * low, 2 - 0.2 * high], [-0.8, -0.8], [10.0, 0.0]])  # 20 is clamped to 10
    torch.testing.assert_close(signal.advantage_BT, wanted, rtol=1e-14, atol=1e-15)
    all_right = learned("gc_opd", replace(rollout, reward_B=f64([1.0, 1.0, 1.0])), scores)  # z(R) = 0; rho = -1, 1
    torch.testing.assert_close(all_right.advantage_BT[:2], f64([[-0.1 * low, 2 - 0.1 * high], [-0.9, -0.9]]))


def test_scope_weighs_correct_rows_by_the_students_surprise_and_wrong_rows_by_what_the_teacher_finds_plausible():
    # PPL_S of the correct rows 2 and 4: weights 2/3 and 4/3. PPL_T of the wrong ones 2 and 4: 1/2 and 1/4 over their
    # mean 3/8 are 4/3 and 2/3. A path of one row weighs 1.
    teacher_BT = f64([[-9.0, -1.0], [-3.0, NAN], [-LN2, NAN], [-LN2, -3 * LN2], [-5.0, NAN]])
    student_BT = f64([[-LN2, -LN2], [-LN4, NAN], [-7.0, NAN], [-1.0, -2.0], [-6.0, NAN]])
    rollout = Rollout(~teacher_BT.isnan(), reward_B=f64([1, 1, 0, 0, 0]), group_B=torch.tensor([3, 3, 3, 3, 8]))
    signal = learned("scope", rollout, Scores(teacher_BT, student_BT))
    weight_BT = f64([[2 / 3, 2 / 3], [4 / 3, 0.0], [4 / 3, 0.0], [2 / 3, 2 / 3], [1.0, 0.0]])
    torch.testing.assert_close(signal.weight_BT, weight_BT)
    wrong = [[4 / 3 * (7 - LN2), 0.0], [2 / 3 * (1 - LN2), 2 / 3 * (2 - 3 * LN2)], [1.0, 0.0]]
    torch.testing.assert_close(signal.advantage_BT, f64([[2 / 3, 2 / 3], [4 / 3, 0.0], *wrong]))  # correct rows: w
    warm = learned("scope", rollout, Scores(teacher_BT, student_BT), temperature=2.0).weight_BT[:, 0]
    root = math.sqrt(2)  # sqrt(2) and 2 over their mean; 1/sqrt(2) and 1/2 over theirs
    torch.testing.assert_close(warm[:2], f64([2 * root / (root + 2), 4 / (root + 2)]))
    torch.testing.assert_close(warm[2:4], f64([2 * root / (root + 1), 2 / (root + 1)]))


def test_iw_opd_counts_the_disagreement_strictly_before_a_token():
    rollout, scores = small([[1.0, -3.0, 0.0, 4.0], [0.0, 0.0, NAN, NAN]])
    signal = learned("iw_opd", rollout, scores)
    # |a| = 1, 3, 0, 4, in sum 8; before: 0, 1, 4, 4; w = 1 + (1 - F) / 2. Without disagreement F = 0 / 1e-8 = 0.
    torch.testing.assert_close(signal.weight_BT, f64([[1.5, 1.4375, 1.25, 1.25], [1.5, 1.5, 0, 0]]), rtol=1e-8, atol=0)
    torch.testing.assert_close(signal.advantage_BT[0], f64([1.5, -4.3125, 0.0, 5.0]), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("share", "weights"),
    [
        (
            0.5,
            [[0.0, 2.5, 0.0, 0.0, 2.5], [0.0, 3.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]],
        ),  # floor(2.5), floor(1.5)
        (
            0.8,
            [[1.25, 1.25, 1.25, 0.0, 1.25], [1.5, 1.5, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]],
        ),  # 4, 2; at least 1
        (0.2, [[0.0, 0.0, 0.0, 0.0, 5.0], [0.0, 3.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]),
        (1.0, [[1.0] * 5, [1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_the_top_share_of_a_row_is_a_floor_of_at_least_one_with_ties_by_position(share, weights):
    value_BT = f64([[3.0, 7.0, 3.0, 3.0, 8.0], [1.0, 5.0, INF, 1.0, NAN], [-4.0, 9.0, 9.0, 9.0, 9.0]])
    mask_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    assert top_share_BT(value_BT, mask_BT, share).tolist() == weights
    assert top_share_BT(value_BT, torch.zeros_like(mask_BT), share).tolist() == [[0.0] * 5] * 3


def test_shares_of_tokens_are_meant_in_decimals():
    ones_BT = torch.ones(1, 100)
    assert int((top_share_BT(ones_BT, ones_BT.bool(), 0.29) > 0).sum()) == 29  # 0.29 * 100 = 28.999999999999996


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 2.5), (0.98, 3 + 7 * 0.94), (1.0, 10.0), (1 / 3, 2.0), (0.25, 1.75)]
)
def test_a_quantile_of_the_window_is_linear_between_neighbours(share, value):
    mask_BT = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()
    value_BT = f64([[10.0, 2.0, NAN], [1e9, 3.0, 1.0]])  # 1, 2, 3, 10 at places 0 to 3
    assert window_quantile(value_BT, mask_BT, share, World()).item() == pytest.approx(value, abs=1e-12)


def test_a_quantile_of_one_token_is_that_token_and_of_none_0():
    value_BT, mask_BT = f64([[5.0, NAN]]), torch.tensor([[True, False]])
    assert [window_quantile(value_BT, mask_BT, share, World()).item() for share in (0.0, 0.3, 1.0)] == [5.0] * 3
    assert window_quantile(value_BT, ~mask_BT & False, 0.5, World()).item() == 0


def test_values_are_clipped_and_scaled_to_the_unit_range_of_the_window():
    value_BT, mask_BT = f64([[1.0, 2.0, 3.0], [11.0, 5.0, NAN]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    # 1, 2, 3, 5, 11: the 3/4-quantile is 5; (x - 1) / 4.
    unit_BT = unit_range_BT(value_BT, mask_BT, 0.75, World())
    assert unit_BT.tolist() == [[0.0, 0.25, 0.5], [1.0, 1.0, 0.0]]
    assert unit_range_BT(torch.full_like(value_BT, 4.0), mask_BT, 0.75, World()).tolist() == [[0.0] * 3] * 2


def test_tip_takes_unsure_tokens_and_sure_ones_that_are_far():
    # h = 1, 1/2, 0, 0 and d = 0, 1/2, 1, 1/4: s = 1, 3/4, 1, 1/4. Half of four tokens: the first and the third.
    entropy_BT, far_BT = f64([[4.0, 2.0, 0.0, 0.0]]), f64([[1.0, 3.0, 5.0, 2.0]])
    rollout, scores = small([[-1.0, -2.0, -3.0, -4.0]], student_entropy_BT=entropy_BT, reverse_kl_BT=far_BT)
    signal = learned("tip", rollout, scores, clip_quantile=1.0)
    assert signal.divergence_BT.tolist() == [[2.0, 0.0, 2.0, 0.0]] and (signal.advantage_BT == 0).all()
    sampled = learned("tip", rollout, scores, clip_quantile=1.0, full=False)
    assert sampled.advantage_BT.tolist() == [[-2.0, 0.0, -6.0, 0.0]] and sampled.divergence_BT is None


def test_reopold_floors_the_ratio_and_means_over_the_tokens_that_train():
    floor = mixture_floor(0.2)
    assert floor == pytest.approx(-LN4, abs=1e-15) and mixture_floor(0) == -INF and mixture_floor(0.5) == 0
    entropy_BT = f64([[1.0, 4.0, 3.0], [2.0, 5.0, NAN]])
    rollout, scores = small([[-5.0, -2.0, floor], [1.0, -1.0, NAN]], student_entropy_BT=entropy_BT)
    # Exploring: three of five tokens reach the floor, the floor itself among them; each weighs 5/3.
    exploring = learned("reopold", rollout, scores, progress=0.499)
    wanted = f64([[0.0, 0.0, 5 / 3 * floor], [5 / 3, -5 / 3, 0.0]])
    torch.testing.assert_close(exploring.advantage_BT, wanted, rtol=1e-6, atol=0)
    # Refining: 1, 2, 3, 4, 5 has the median 3; a token below the floor trains, at the floor.
    refining = learned("reopold", rollout, scores, progress=0.5)
    wanted = f64([[0.0, 5 / 3 * floor, 5 / 3 * floor], [0.0, -5 / 3, 0.0]])
    torch.testing.assert_close(refining.advantage_BT, wanted, rtol=1e-6, atol=0)
    nobody = learned("reopold", *small([[-9.0, -9.0]], student_entropy_BT=f64([[1.0, 1.0]])))
    assert (nobody.weight_BT == 0).all() and (nobody.advantage_BT == 0).all()


def test_the_ratios_that_are_bounded_or_bent():
    teacher_BT, student_BT = f64([[0.5, 0.25]]).log(), f64([[0.25, 1.0]]).log()
    rollout = Rollout(torch.ones(1, 2, dtype=torch.bool))
    power = learned("power_opd", rollout, Scores(teacher_BT, student_BT), power=2.0)
    torch.testing.assert_close(power.advantage_BT, f64([[0.25 - 0.0625, 0.0625 - 1.0]]))
    scores = Scores(f64([[-1.0, -2.0]]), f64([[-3.0, -1.0]]), reference_logp_BT=f64([[-2.0, -4.0]]))
    beyond = learned("exopd", rollout, scores)
    assert beyond.advantage_BT.tolist() == [[2.25, -0.5]]  # 1.25 (-1 + 2) - (-3 + 2), 1.25 (-2 + 4) - (-1 + 4)


@pytest.mark.parametrize(("rows", "share", "drop"), [(5, 0.2, 1), (9, 0.5, 4), (100, 0.29, 29)])  # 28.999999999999996
def test_soft_rows_weigh_by_their_distance_to_the_least_likely_row_that_a_filter_would_keep(rows, share, drop):
    rollout, scores = small([[-float(row), -float(row)] for row in range(rows)])
    signal = learned("fire", rollout, scores, drop_fraction=share, confidence=0, confusion=0, rows="soft")
    # Scores 0, -1, ... 1 - n with variance (n^2 - 1) / 12; without the `drop` lowest, the least is drop + 1 - n.
    below_B = (drop + 1 - rows) - f64(list(range(0, -rows, -1)))  # s_p - s
    weight_B = 1 / (1 + (below_B / math.sqrt((rows**2 - 1) / 12)).exp())
    torch.testing.assert_close(signal.weight_BT, (weight_B / weight_B.mean()).unsqueeze(1).expand(rows, 2))
    assert signal.keep_B.all()


def test_eopd_adds_where_the_teachers_entropy_is_above_the_threshold_and_not_at_it():
    entropy_BT = f64([[0.8, 0.8000001, 3.0, NAN]])
    rollout, scores = small([[1.0, 2.0, -3.0, NAN]], teacher_entropy_BT=entropy_BT)
    signal = learned("eopd", rollout, scores, coef=0.5)
    assert signal.divergence_BT.tolist() == [[0.0, 0.5, 0.5, 0.0]]
    assert signal.advantage_BT.tolist() == [[1.0, 2.0, -3.0, 0.0]]  # added, not switched to


def test_opdvr_keeps_what_the_verifier_would_say_as_well():
    rollout, scores = small([[1.0, -2.0, 0.0]] * 4, reward=[1, 0, 0.5, -1], group=[1, 1, 2, 3])
    signal = learned("opdvr", rollout, scores)
    assert signal.advantage_BT.tolist() == [[1.0, 0.0, 0.0], [0.0, -2.0, 0.0]] * 2
    soft = learned("opdvr", rollout, scores, conflict=0.5, group=True)
    assert soft.advantage_BT.tolist() == [[1.0, -1.0, 0.0], [0.5, -2.0, 0.0], [0.0] * 3, [0.0] * 3]


def test_tropd_trusts_a_token_as_often_as_the_teacher_would_accept_it():
    rollout, scores = small([[math.log(0.3), 0.0, 2.0, -1e4]] * 4000)
    signal = learned("tropd", rollout, scores)
    often = signal.weight_BT.mean(dim=0).tolist()
    assert abs(often[0] - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000) and often[1:] == [1.0, 1.0, 0.0]
    assert torch.equal(signal.divergence_BT, 1 - signal.weight_BT)
    again, other = (distil(rollout, scores, METHODS["tropd"](), Context(seed=seed)) for seed in (SEED, SEED + 1))
    assert torch.equal(again.weight_BT, signal.weight_BT) and not torch.equal(other.weight_BT, signal.weight_BT)
