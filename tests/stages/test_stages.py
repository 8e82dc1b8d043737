"""Each stage against numbers that were worked out by hand, and the laws that hold for any numbers."""

import math
from fractions import Fraction

import pytest
import torch
from support.windows import INF, NAN, hash_in_plain_python

from fire_opd_trl import METHODS, Context, Rollout, Scores, distil
from fire_opd_trl.stages import (
    World,
    aggregate,
    as_many_at_random,
    clipped_surrogate,
    combined,
    confidence_and_confusion,
    drop_lowest,
    finite_B,
    keep_all,
    log_ratio,
    masked_mean_B,
    masked_sum_B,
    mean_one_BT,
    mean_teacher_logp,
    reference_kl,
    row_scale,
    scope_B,
    scope_max_B,
    share_of_max_BT,
    shuffled_inside_rows,
    uniform,
    uniform_hash,
    window_metrics,
)


CONTEXT = Context()


class Later(World):
    """One process whose rows come after `before` others, which it cannot see."""

    def __init__(self, before: int):
        self.before = before

    def local_slice(self, rows: int) -> slice:
        return slice(self.before, self.before + rows)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask(*rows: str) -> torch.Tensor:
    """`mask("110", "001")`: one string for each row."""
    return torch.tensor([[token == "1" for token in row] for row in rows])


def one_token_each(rows: int) -> Rollout:
    return Rollout(torch.ones(rows, 1, dtype=torch.bool))


def scores_of(mask_BT: torch.Tensor, **signals) -> Scores:
    """Scores in which everything that is not named is zero."""
    zero_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
    return Scores(**{"teacher_logp_BT": zero_BT, "student_logp_BT": zero_BT, **signals})


def ragged_mask(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random masks with holes; every row has a token."""
    mask_BT = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask_BT[~mask_BT.any(dim=1), 0] = True
    return mask_BT


# 1 rollout


def test_masked_sums_and_means_see_nothing_outside_the_mask():
    value_BT = f64([[1.0, 2.0, NAN], [INF, 4.0, 8.0], [NAN, -INF, 1e300]])
    mask_BT = mask("110", "011", "000")
    assert masked_sum_B(value_BT, mask_BT).tolist() == [3.0, 12.0, 0.0]
    assert masked_mean_B(value_BT, mask_BT).tolist() == [1.5, 6.0, 0.0]  # (1+2)/2, (4+8)/2, an empty row 0


def test_a_rollout_takes_masks_of_numbers_and_empties_rows_by_their_mask_alone():
    rollout = Rollout(torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1]]), teacher_B=torch.tensor([3, 4, 5, 6]))
    assert rollout.mask_BT.dtype == torch.bool
    assert rollout.alive_B.tolist() == [True, True, False, True]
    kept = rollout.only(torch.tensor([False, True, True, True]))
    assert kept.mask_BT.tolist() == mask("00", "11", "00", "01").tolist()
    assert kept.teacher_B.tolist() == [3, 4, 5, 6]
    assert rollout.alive_B.tolist() == [True, True, False, True]  # the first record is as it was


# 2 score


def test_the_score_is_the_mean_and_not_the_sum_of_the_teacher_log_probabilities():
    rollout = Rollout(mask("1111", "1000", "1010", "0000"))
    teacher_BT = f64([[-1.0, -2.0, -3.0, -6.0], [-3.0, NAN, NAN, NAN], [-0.5, -100.0, -1.5, NAN], [NAN] * 4])
    score_B = mean_teacher_logp(rollout, scores_of(rollout.mask_BT, teacher_logp_BT=teacher_BT), CONTEXT)
    assert score_B.tolist() == [-3.0, -3.0, -1.0, 0.0]  # -12/4; -3/1: the same in spite of the lengths; -2/2; empty


def test_finite_rows_are_those_without_nan_or_infinity_under_the_mask():
    value_BT = f64([[0.0, NAN], [NAN, 0.0], [0.0, INF], [0.0, -INF], [-1e300, 1e300], [NAN, NAN]])
    mask_BT = mask("10", "11", "11", "01", "11", "00")
    assert finite_B(value_BT, mask_BT).tolist() == [True, False, False, False, True, True]


# 3 filter


def test_the_filter_drops_the_lowest_scores():
    score_B = f64([-3.0, -1.0, -2.0, -5.0, -4.0])
    keep_B = drop_lowest(score_B, one_token_each(5), CONTEXT, fraction=0.4)
    assert keep_B.tolist() == [True, True, True, False, False]  # floor(0.4 * 5) = 2: -5 and -4


@pytest.mark.parametrize("share", "0 0.01 0.05 0.1 0.2 0.25 0.29 0.3 0.33 0.57 0.58 0.7 0.9 0.99 0.999".split())
def test_exactly_the_floor_of_the_share_is_dropped(share):
    for rows in (*range(1, 41), 50, 64, 99, 100, 101, 128, 200, 300, 1000, 1024):
        score_B = uniform_hash(1, torch.arange(rows))
        keep_B = drop_lowest(score_B, one_token_each(rows), CONTEXT, fraction=float(share))
        drop = math.floor(Fraction(share) * rows)  # decimal: 0.29 * 100 is 29, though 28.999999999999996 in binary
        assert int((~keep_B).sum()) == drop, rows
        if drop:
            assert score_B[~keep_B].max() < score_B[keep_B].min(), rows


def test_the_share_is_meant_in_decimals_where_binary_falls_short():
    assert math.floor(0.29 * 100) == 28  # what the floor of the product would give
    assert int(drop_lowest(torch.arange(100.0), one_token_each(100), CONTEXT, fraction=0.29).sum()) == 71


def test_ties_are_broken_by_the_row():
    equal_B = torch.zeros(10)
    assert drop_lowest(equal_B, one_token_each(10), CONTEXT, fraction=0.2).tolist() == [False] * 2 + [True] * 8
    score_B = f64([2.0, 1.0, 3.0, 1.0, 1.0, 0.0])  # dropped: row 5, then two of the three ones, those of rows 1 and 3
    keep_B = drop_lowest(score_B, one_token_each(6), CONTEXT, fraction=0.5)
    assert keep_B.tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("score_of_empty", [0.0, -1e9, 1e9, INF, -INF, NAN])
def test_empty_rows_are_never_ranked_and_never_kept(score_of_empty):
    rollout = Rollout(mask("0", "1", "0", "1", "1", "0", "1", "1"))
    score_B = f64([score_of_empty, -5.0, score_of_empty, -4.0, -3.0, score_of_empty, -2.0, -1.0])
    keep_B = drop_lowest(score_B, rollout, CONTEXT, fraction=0.4)  # floor(0.4 * 5) = 2, not floor(0.4 * 8) = 3
    assert keep_B.tolist() == [False, False, False, False, True, False, True, True]
    assert keep_all(score_B, rollout, CONTEXT).tolist() == rollout.alive_B.tolist()


def test_per_teacher_each_teacher_loses_its_own_lowest():
    # Teacher 7 is harsh: ranked together it would lose all three rows. floor(0.5 * 3) = 1 of 7's, floor(0.5 * 4) = 2
    # of 3's alive four; the row that is empty counts nowhere.
    teacher_B = torch.tensor([7, 3, 7, 3, 3, 7, 3, 3])
    score_B = f64([-90.0, -1.0, -95.0, -2.0, -3.0, -91.0, 0.0, -4.0])
    rollout = Rollout(mask("1", "1", "1", "1", "1", "1", "0", "1"), teacher_B=teacher_B)
    keep_B = drop_lowest(score_B, rollout, CONTEXT, fraction=0.5, scope="teacher")
    assert keep_B.tolist() == [True, True, False, True, False, True, False, False]
    together_B = drop_lowest(score_B, rollout, CONTEXT, fraction=0.5, scope="batch")  # floor(0.5 * 7) = 3
    assert together_B.tolist() == [False, True, False, True, True, False, False, True]


def as_many_as(*keep: bool):
    """A filter that always says the same of the rows of a window, wherever this rank's rows stand in it."""

    def filter(score_B, rollout, context):
        return torch.tensor(keep)[context.world.local_slice(len(score_B))]

    return filter


def test_a_random_filter_keeps_as_many_rows_as_its_model_among_those_that_have_a_token():
    rollout = Rollout(mask("1", "1", "0", "1", "1", "0", "1", "1"))
    for kept in range(7):  # the model would also keep the two empty rows, which count for nothing
        model = as_many_as(*[row in (2, 5) or [0, 1, 3, 4, 6, 7].index(row) < kept for row in range(8)])
        keep_B = as_many_at_random(torch.zeros(8), rollout, CONTEXT, filter=model)
        assert keep_B.sum() == kept and not keep_B[[2, 5]].any()


def test_a_random_filter_keeps_the_rows_of_the_lowest_draws_whatever_their_scores():
    rollout, model = one_token_each(20), as_many_as(*[True] * 5 + [False] * 15)
    for seed in (5, 6):
        keep_B = as_many_at_random(torch.arange(20.0), rollout, Context(seed=seed), filter=model)
        again_B = as_many_at_random(-torch.arange(20.0), rollout, Context(seed=seed), filter=model)
        draws = [hash_in_plain_python(seed, row) for row in range(20)]
        assert keep_B.nonzero().flatten().tolist() == sorted(sorted(range(20), key=lambda row: draws[row])[:5])
        assert torch.equal(keep_B, again_B)


def test_a_trajectory_alone_is_never_dropped():
    rollout = Rollout(mask("1", "0", "1", "1"))
    keep_B = drop_lowest(f64([-9.0, 0.0, -1.0, -5.0]), rollout, CONTEXT, fraction=0.99, scope="trajectory")
    assert keep_B.tolist() == [True, False, True, True]


def test_scopes_are_numbered_and_unknown_ones_refused():
    rollout = Rollout(mask("1", "1", "1"), teacher_B=torch.tensor([4, 2, 4]))
    assert scope_B(rollout, "batch", World()).tolist() == [0, 0, 0]
    assert scope_B(rollout, "teacher", World()).tolist() == [4, 2, 4]
    assert scope_B(rollout, "trajectory", World()).tolist() == [0, 1, 2]
    assert scope_B(rollout, "trajectory", Later(5)).tolist() == [5, 6, 7]
    assert scope_B(Rollout(mask("1", "1")), "teacher", World()).tolist() == [0, 0]  # one teacher needs no number
    with pytest.raises(ValueError, match="scope='row'.*batch, teacher, trajectory"):
        scope_B(rollout, "row", World())


# 4 reweight


def test_maxima_are_taken_over_masked_tokens_of_the_scope():
    rollout = Rollout(mask("110", "101", "011", "000"), teacher_B=torch.tensor([1, 0, 1, 0]))
    value_BT = f64([[1.0, 2.0, 99.0], [3.0, NAN, 5.0], [INF, 4.0, 0.5], [NAN, 77.0, 88.0]])
    assert scope_max_B(value_BT, rollout, "batch", World()).tolist() == [5.0, 5.0, 5.0, 5.0]
    assert scope_max_B(value_BT, rollout, "teacher", World()).tolist() == [4.0, 5.0, 4.0, 5.0]
    assert scope_max_B(value_BT, rollout, "trajectory", World()).tolist() == [2.0, 5.0, 4.0, 0.0]


def test_weights_are_the_product_of_confidence_and_confusion_over_its_mean():
    rollout = Rollout(mask("111", "110"))
    teacher_BT, student_BT = f64([[0.0, 1.0, 4.0], [4.0, 2.0, NAN]]), f64([[2.0, 0.0, 1.0], [2.0, 1.0, NAN]])
    scores = scores_of(rollout.mask_BT, teacher_entropy_BT=teacher_BT, student_entropy_BT=student_BT)
    weight_BT = confidence_and_confusion(rollout, scores, CONTEXT, confidence=1.0, confusion=1.0)
    # max H_T = 4, max H_S = 2. Row 0: c = 1, 3/4, 0; u = 1, 0, 1/2; w = 2*2, 7/4*1, 1*3/2 = 4, 1.75, 1.5, mean 7.25/3.
    # Row 1: c = 0, 1/2; u = 1, 1/2; w = 1*2, 3/2*3/2 = 2, 2.25, mean 4.25/2.
    expected = [[12 / 7.25, 5.25 / 7.25, 4.5 / 7.25], [4 / 4.25, 4.5 / 4.25, 0.0]]
    torch.testing.assert_close(weight_BT, f64(expected), rtol=1e-14, atol=0)

    weight_BT = confidence_and_confusion(rollout, scores, CONTEXT, confidence=2.0, confusion=0.5)
    # Row 0: (3, 2.5, 1) * (1.5, 1, 1.25) = 4.5, 2.5, 1.25, sum 8.25. Row 1: (1, 2) * (1.5, 1.25) = 1.5, 2.5, sum 4.
    expected = [[13.5 / 8.25, 7.5 / 8.25, 3.75 / 8.25], [0.75, 1.25, 0.0]]
    torch.testing.assert_close(weight_BT, f64(expected), rtol=1e-14, atol=0)


def test_each_factor_stands_alone_and_does_without_the_other_entropy():
    rollout, entropy_BT = Rollout(mask("11")), f64([[1.0, 4.0]])
    sure = scores_of(rollout.mask_BT, teacher_entropy_BT=entropy_BT)
    weight_BT = confidence_and_confusion(rollout, sure, CONTEXT, confidence=1.0, confusion=0.0)
    torch.testing.assert_close(weight_BT, f64([[14 / 11, 8 / 11]]))  # 1 + 3/4 and 1 + 0, mean 11/8
    unsure = scores_of(rollout.mask_BT, student_entropy_BT=entropy_BT)
    weight_BT = confidence_and_confusion(rollout, unsure, CONTEXT, confidence=0.0, confusion=1.0)
    torch.testing.assert_close(weight_BT, f64([[10 / 13, 16 / 13]]))  # 1 + 1/4 and 1 + 1, mean 13/8


def test_dropped_rows_do_not_set_the_maximum():
    sampled = Rollout(mask("11", "11"))
    entropy_BT = f64([[1.0, 2.0], [50.0, 60.0]])
    kept = sampled.only(torch.tensor([True, False]))
    assert share_of_max_BT(entropy_BT, sampled, "batch", World())[0].tolist() == [1 / 60, 2 / 60]
    assert share_of_max_BT(entropy_BT, kept, "batch", World()).tolist() == [[0.5, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("entropy", "share"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),  # one-hot: 0 / max(0, 1e-6)
        ([3.0, 3.0, 3.0], [1.0, 1.0, 1.0]),  # all equal: each is the largest
        ([5e-7, 0.0, 2.5e-7], [0.5, 0.0, 0.25]),  # below the smallest maximum of 1e-6
        ([2.0, -1e-9, 1.0], [1.0, 0.0, 0.5]),  # an entropy that rounding made negative
        ([-1e-9, -2e-9, -1e-9], [0.0, 0.0, 0.0]),
        ([1e4, 1.0, 0.0], [1.0, 1e-4, 0.0]),
    ],
)
def test_shares_of_the_maximum_stay_between_0_and_1(entropy, share):
    rollout = Rollout(mask("111"))
    for scope in ("batch", "teacher", "trajectory"):
        torch.testing.assert_close(
            share_of_max_BT(f64([entropy]), rollout, scope, World()), f64([share]), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("teacher", [0.0, 3.0])
@pytest.mark.parametrize("student", [0.0, 3.0])
def test_entropies_that_are_all_zero_or_all_equal_give_even_weights(teacher, student):
    rollout = Rollout(mask("1111", "1011", "0100", "0000"))
    scores = scores_of(
        rollout.mask_BT,
        teacher_entropy_BT=torch.full((4, 4), teacher, dtype=torch.float64),
        student_entropy_BT=torch.full((4, 4), student, dtype=torch.float64),
    )
    weight_BT = confidence_and_confusion(rollout, scores, CONTEXT, confidence=1.0, confusion=1.0)
    torch.testing.assert_close(weight_BT, rollout.mask_BT.double(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("entropies", [(0.0, 0.0), (0.0, 9.0), (9.0, 0.0), (9.0, 9.0)])
def test_a_single_token_weighs_1(entropies):
    rollout = Rollout(mask("010"))
    teacher_BT, student_BT = (torch.full((1, 3), entropy, dtype=torch.float64) for entropy in entropies)
    scores = scores_of(rollout.mask_BT, teacher_entropy_BT=teacher_BT, student_entropy_BT=student_BT)
    weight_BT = confidence_and_confusion(rollout, scores, CONTEXT, confidence=1.0, confusion=1.0)
    assert weight_BT.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("scope", ["batch", "teacher", "trajectory"])
@pytest.mark.parametrize("seed", range(5))
def test_weights_have_mean_1_over_the_masked_tokens_of_each_row(scope, seed):
    generator = torch.Generator().manual_seed(seed)
    mask_BT = ragged_mask(20, 9, seed)
    mask_BT[3] = False
    rollout = Rollout(mask_BT, teacher_B=torch.arange(20) % 3)
    entropy = {
        name: torch.rand(20, 9, generator=generator, dtype=torch.float64).square() * 8
        for name in ("teacher_entropy_BT", "student_entropy_BT")
    }
    scores = scores_of(mask_BT, **entropy)
    weight_BT = confidence_and_confusion(rollout, scores, CONTEXT, confidence=3.0, confusion=2.0, scope=scope)
    torch.testing.assert_close(weight_BT.sum(dim=1), mask_BT.sum(dim=1).double())  # a trajectory weighs its length
    assert (weight_BT[~mask_BT] == 0).all() and (weight_BT[mask_BT] > 0).all()
    assert weight_BT.max() > 1.2  # and they are not simply 1


def test_mean_one_is_a_division_by_the_mean_of_the_row():
    weight_BT = mean_one_BT(f64([[1.0, 3.0, NAN], [5.0, INF, 5.0], [NAN, NAN, NAN]]), mask("110", "101", "000"))
    assert weight_BT.tolist() == [[0.5, 1.5, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_even_weights_are_the_mask():
    rollout = Rollout(mask("101", "000"))
    weight_BT = uniform(rollout, scores_of(rollout.mask_BT), CONTEXT)
    assert weight_BT.dtype == torch.float64 and weight_BT.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def shuffled(weight_BT: torch.Tensor, mask_BT: torch.Tensor, context: Context) -> torch.Tensor:
    """These weights in the random order that the rows get."""
    return shuffled_inside_rows(Rollout(mask_BT), scores_of(mask_BT), context, weigh=lambda *_: weight_BT)


def test_shuffled_weights_are_a_permutation_of_the_masked_weights_of_each_row():
    mask_BT = ragged_mask(30, 12, seed=3)
    mask_BT[4] = False
    weight_BT = torch.rand(30, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.5
    weight_BT[~mask_BT] = NAN  # what stands outside must not be dealt
    shuffled_BT = shuffled(weight_BT, mask_BT, Context(seed=1))
    for before, after, inside in zip(weight_BT, shuffled_BT, mask_BT, strict=True):
        assert sorted(before[inside].tolist()) == sorted(after[inside].tolist())
    assert (shuffled_BT[~mask_BT] == 0).all()
    moved_BT = mask_BT & (shuffled_BT != weight_BT)
    assert moved_BT.sum() > 0.5 * mask_BT.sum()
    again_BT = shuffled(weight_BT, mask_BT, Context(seed=1))
    other_BT = shuffled(weight_BT, mask_BT, Context(seed=2))
    assert torch.equal(shuffled_BT, again_BT) and not torch.equal(shuffled_BT, other_BT)


def test_padding_never_changes_the_shuffle():
    # The same tokens with nothing, padding behind, padding before, and holes inside.
    weight_BT = f64([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]])
    context, dealt = Context(seed=9), []
    for columns in ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [0, 2, 3, 7, 8]):
        padded_BT, mask_BT = torch.full((2, 9), NAN, dtype=torch.float64), torch.zeros(2, 9, dtype=torch.bool)
        padded_BT[:, columns], mask_BT[:, columns] = weight_BT, True
        dealt.append(shuffled(padded_BT, mask_BT, context)[:, columns])
    bare_BT = shuffled(weight_BT, torch.ones(2, 5, dtype=torch.bool), context)
    assert all(torch.equal(bare_BT, dealt_BT) for dealt_BT in dealt)
    assert (bare_BT - weight_BT)[0].tolist() != (bare_BT - weight_BT)[1].tolist()  # each row has its own order


def test_every_order_of_the_weights_is_equally_likely():
    rows = 6000
    weight_BT = torch.tensor([[1.0, 2.0, 3.0]]).expand(rows, 3)
    shuffled_BT = shuffled(weight_BT, torch.ones(rows, 3, dtype=torch.bool), Context(seed=0))
    orders, counts = shuffled_BT.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    # 1000 expected of each: chi-square with 5 degrees of freedom exceeds 25.7 once in 10 000.
    assert (counts - 1000.0).square().sum() / 1000 < 25.7


def test_the_shuffle_belongs_to_the_global_row():
    weight_BT = torch.arange(40.0, dtype=torch.float64).reshape(8, 5)
    all_BT = shuffled(weight_BT, torch.ones(8, 5, dtype=torch.bool), Context(seed=2))
    tail_BT = shuffled(weight_BT[5:], torch.ones(3, 5, dtype=torch.bool), Context(world=Later(5), seed=2))
    assert torch.equal(all_BT[5:], tail_BT)


# Random numbers


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, -7])
def test_the_hash_is_the_one_of_plain_integers(seed):
    row_B, number_BT = torch.arange(4).unsqueeze(1), torch.tensor([[0, 1, 77, 2**31 + 5, 2**32 - 1]])
    expected = [[hash_in_plain_python(seed, row, number) for number in number_BT[0].tolist()] for row in range(4)]
    assert uniform_hash(seed, row_B, number_BT).tolist() == expected  # also: no overflow of 64-bit integers matters


@pytest.mark.parametrize("seed", [0, 1, 123456])
def test_the_hash_is_uniform(seed):
    count = 2**16
    draw_N = uniform_hash(seed, torch.arange(count)).double()
    assert 0 <= draw_N.min() and draw_N.max() < 1
    # Standard error of the mean sqrt(1/12 / 65536) = 0.0011, of the mean square sqrt(4/45 / 65536) = 0.0012.
    assert abs(draw_N.mean() - 1 / 2) < 5 * 0.0011
    assert abs(draw_N.square().mean() - 1 / 3) < 5 * 0.0012
    bins = torch.histc(draw_N, 256, 0, 1)
    chi_square = (bins - count / 256).square().sum() / (count / 256)
    assert 255 - 5 * math.sqrt(510) < chi_square < 255 + 5 * math.sqrt(510)  # neither lumpy nor suspiciously even


def test_different_seeds_rows_and_tokens_are_uncorrelated():
    count, bound = 4096, 5 / math.sqrt(4096)
    row_N = torch.arange(count)
    by_seed = torch.stack([uniform_hash(seed, row_N) for seed in (0, 1, 2, 3, 42, 43, 2**20)])
    by_token = torch.stack([uniform_hash(0, row_N, torch.full_like(row_N, token)) for token in range(6)])
    swapped = torch.stack([uniform_hash(0, row_N, row_N * 0 + 5), uniform_hash(0, row_N * 0 + 5, row_N)])
    score_and_token = torch.stack([uniform_hash(0, row_N), by_token[1]])
    neighbours = torch.stack([by_seed[0][:-1], by_seed[0][1:]])
    for family in (by_seed, by_token, swapped, score_and_token, neighbours):
        apart = family.double().corrcoef() - torch.eye(len(family))
        assert apart.abs().max() < bound


# 5 advantage


def test_the_advantage_is_teacher_minus_student():
    rollout = Rollout(mask("110", "001"))
    teacher_BT = f64([[-1.0, -2.0, NAN], [NAN, INF, -0.25]]).requires_grad_()
    student_BT = f64([[-3.0, -0.5, NAN], [1e30, INF, -0.25]]).requires_grad_()
    scores = Scores(teacher_logp_BT=teacher_BT, student_logp_BT=student_BT)
    advantage_BT = log_ratio(rollout, scores, CONTEXT)
    assert advantage_BT.tolist() == [[2.0, -1.5, 0.0], [0.0, 0.0, 0.0]]  # -1+3, -2+0.5; -0.25+0.25
    assert not advantage_BT.requires_grad


def test_the_mixed_advantage_is_distillation_plus_reward_times_the_engine_ratio():
    kept_BT = mask("110", "101", "000")
    advantage_BT = f64([[1.0, -2.0, 0.0], [0.5, 0.0, 4.0], [0.0, 0.0, 0.0]])
    reward_B, ratio_BT = f64([1.0, -3.0, NAN]), f64([[2.0, 0.5, NAN], [1.0, INF, 0.25], [NAN, NAN, NAN]])
    assert combined(advantage_BT, kept_BT, reward_B, 0.0, None).tolist() == advantage_BT.tolist()
    # A + 2 R: 1 + 2, -2 + 2; 0.5 - 6, 4 - 6.
    expected = [[3.0, 0.0, 0.0], [-5.5, 0.0, -2.0], [0.0, 0.0, 0.0]]
    assert combined(advantage_BT, kept_BT, reward_B, 2.0, None).tolist() == expected
    expected = [[6.0, 0.0, 0.0], [-5.5, 0.0, -0.5], [0.0, 0.0, 0.0]]  # times 2, 0.5; 1, 0.25
    assert combined(advantage_BT, kept_BT, reward_B, 2.0, ratio_BT).tolist() == expected
    expected = [[2.0, -1.0, 0.0], [0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert combined(advantage_BT, kept_BT, reward_B, 0.0, ratio_BT).tolist() == expected


# 6 loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "slope"),
    [
        (1.0, 2.0, -2.0, False, -2.0),  # on policy: the loss is -A, its gradient -r A = -A
        (1.0, -2.0, 2.0, False, 2.0),
        (1.1, 2.0, -2.2, False, -2.2),
        (1.5, 2.0, -2.4, True, 0.0),  # min(3.0, 1.2 * 2)
        (0.5, 2.0, -1.0, False, -1.0),  # min(1.0, 0.8 * 2): a good token that became rare may come back
        (0.5, -2.0, 1.6, True, 0.0),  # min(-1.0, -1.6)
        (1.5, -2.0, 3.0, False, 3.0),  # min(-3.0, -2.4): a bad token that became frequent must go
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_the_clipped_surrogate_of_one_token(ratio, advantage, loss, clipped, slope):
    old_BT = f64([[-1.3]])
    logp_BT = (old_BT + math.log(ratio)).requires_grad_()
    loss_BT, clipped_BT = clipped_surrogate(logp_BT, old_BT, f64([[advantage]]), mask("1"))
    assert loss_BT.item() == pytest.approx(loss, abs=1e-14)
    assert clipped_BT.item() is clipped
    loss_BT.sum().backward()
    assert logp_BT.grad.item() == pytest.approx(slope, abs=1e-14)


def test_the_clip_has_two_sides():
    old_BT, advantage_BT, mask_BT = f64([[0.0] * 4]), f64([[1.0, 1.0, -1.0, -1.0]]), mask("1111")
    logp_BT = f64([[1.25, 1.35, 0.85, 0.95]]).log()
    loss_BT, clipped_BT = clipped_surrogate(logp_BT, old_BT, advantage_BT, mask_BT, epsilon_low=0.1, epsilon_high=0.3)
    torch.testing.assert_close(loss_BT, f64([[-1.25, -1.3, 0.9, 0.95]]), rtol=1e-14, atol=0)
    assert clipped_BT.tolist() == [[False, True, True, False]]


def off_policy(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Log-probabilities now and then, advantages and mask; every ratio is 1e-3 or more away from both kinks."""
    generator = torch.Generator().manual_seed(seed)
    old_BT = -3 * torch.rand(6, 8, generator=generator, dtype=torch.float64)
    logp_BT = old_BT + 0.4 * torch.randn(6, 8, generator=generator, dtype=torch.float64)
    advantage_BT = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    ratio_BT = (logp_BT - old_BT).exp()
    near_BT = ((ratio_BT - 0.8).abs() < 1e-3) | ((ratio_BT - 1.2).abs() < 1e-3)
    return torch.where(near_BT, old_BT, logp_BT), old_BT, advantage_BT, ragged_mask(6, 8, seed)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_surrogate_is_that_of_finite_differences(seed):
    logp_BT, old_BT, advantage_BT, mask_BT = off_policy(seed)

    def summed(logp_BT):
        return clipped_surrogate(logp_BT, old_BT, advantage_BT, mask_BT)[0].sum()

    logp_BT.requires_grad_()
    assert torch.autograd.gradcheck(summed, (logp_BT,), eps=1e-6, atol=1e-8)
    (gradient_BT,) = torch.autograd.grad(summed(logp_BT), logp_BT)
    _, clipped_BT = clipped_surrogate(logp_BT, old_BT, advantage_BT, mask_BT)
    assert 3 < clipped_BT.sum() < mask_BT.sum() - 3
    assert (gradient_BT[clipped_BT] == 0).all() and not clipped_BT[~mask_BT].any()
    expected_BT = torch.where(mask_BT & ~clipped_BT, -(logp_BT - old_BT).exp() * advantage_BT, 0.0)
    torch.testing.assert_close(gradient_BT, expected_BT.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_a_ratio_beyond_the_largest_float_is_clipped_like_any_other(advantage):
    logp_BT = torch.tensor([[-0.1]]).requires_grad_()  # exp(-0.1 + 100) > 3.4e38
    loss_BT, _ = clipped_surrogate(logp_BT, torch.tensor([[-100.0]]), torch.tensor([[advantage]]), mask("1"))
    loss_BT.sum().backward()
    assert loss_BT.item() == pytest.approx(-1.2 * advantage) and logp_BT.grad.item() == 0


def test_a_bad_token_whose_ratio_explodes_costs_e_to_the_20_at_most():
    logp_BT = torch.tensor([[-0.1]]).requires_grad_()
    loss_BT, clipped_BT = clipped_surrogate(logp_BT, torch.tensor([[-100.0]]), torch.tensor([[-1.0]]), mask("1"))
    loss_BT.sum().backward()
    assert loss_BT.item() == pytest.approx(math.exp(20)) and not clipped_BT.item()
    assert logp_BT.grad.item() == 0  # the bound on the log-ratio, as in the released code, not the clip


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
def test_garbage_outside_the_mask_reaches_neither_loss_nor_gradient(garbage):
    clean_BT, old_BT, advantage_BT, mask_BT = off_policy(1)
    reference_BT = old_BT - 0.1
    dirty = [torch.where(mask_BT, t, garbage) for t in (clean_BT, old_BT, advantage_BT, reference_BT)]
    results = []
    for logp_BT, old, advantage, reference in ((clean_BT, old_BT, advantage_BT, reference_BT), dirty):
        logp_BT = logp_BT.clone().requires_grad_()
        loss_BT, clipped_BT = clipped_surrogate(logp_BT, old, advantage, mask_BT)
        kl_BT = reference_kl(logp_BT, reference, mask_BT)
        loss = aggregate(loss_BT + kl_BT, mask_BT, torch.ones(6, dtype=torch.float64))
        (gradient_BT,) = torch.autograd.grad(loss, logp_BT)
        results.append((loss_BT.detach(), kl_BT.detach(), clipped_BT, gradient_BT, loss.detach()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    loss_BT, kl_BT, _, gradient_BT, _ = results[1]
    assert all((value_BT[~mask_BT] == 0).all() for value_BT in (loss_BT, kl_BT, gradient_BT))


def test_nothing_but_the_current_log_probability_gets_a_gradient():
    tensors = [tensor.clone().requires_grad_() for tensor in off_policy(2)[:3]]
    logp_BT, old_BT, advantage_BT = tensors
    reference_BT = (old_BT.detach() - 0.3).requires_grad_()
    mask_BT = off_policy(2)[3]
    loss_BT, _ = clipped_surrogate(logp_BT, old_BT, advantage_BT, mask_BT)
    (loss_BT + reference_kl(logp_BT, reference_BT, mask_BT)).sum().backward()
    assert old_BT.grad is None and advantage_BT.grad is None and reference_BT.grad is None
    assert logp_BT.grad.abs().sum() > 0


def test_the_reference_penalty_is_the_k3_estimate():
    reference_BT, mask_BT = f64([[-1.0, -1.0, -2.0, NAN]]), mask("1110")
    logp_BT = f64([[-1.0, -1.0 - math.log(2), -2.0 + math.log(2), 0.0]]).requires_grad_()
    kl_BT = reference_kl(logp_BT, reference_BT, mask_BT)
    # d = 0: 0. d = ln 2: 2 - ln 2 - 1. d = -ln 2: 1/2 + ln 2 - 1. Slope -(e^d - 1): 0, -1, 1/2.
    expected = f64([[0.0, 1 - math.log(2), math.log(2) - 0.5, 0.0]])
    torch.testing.assert_close(kl_BT.detach(), expected, rtol=0, atol=1e-15)
    kl_BT.sum().backward()
    torch.testing.assert_close(logp_BT.grad, f64([[0.0, -1.0, 0.5, 0.0]]), rtol=0, atol=1e-15)


def test_the_reference_penalty_is_never_negative():
    logp_BT = -5 * torch.rand(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (reference_kl(logp_BT, logp_BT.flip(0), torch.ones(50, 20, dtype=torch.bool)) >= 0).all()


LOSS_BT = [[1.0, 3.0, NAN], [5.0, NAN, NAN], [1.0, 2.0, 3.0]]
LOSS_MASK = ("110", "100", "111")


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", 3.0),  # ((1+3)/2 + 5/1 + (1+2+3)/3) / 3 = (2 + 5 + 2) / 3
        ("dapo", 2.5),  # (1+3 + 5 + 1+2+3) / 6
    ],
)
def test_the_loss_is_the_mean_that_its_name_says(loss_type, expected):
    mask_BT, loss_BT = mask(*LOSS_MASK), f64(LOSS_BT)
    length_B, rows, tokens = mask_BT.sum(dim=1), torch.tensor(3), torch.tensor(6)
    scale_B = row_scale(length_B, rows, tokens, loss_type)
    assert aggregate(loss_BT, mask_BT, scale_B).item() == pytest.approx(expected, rel=1e-6)
    # Slices of one row add up to the same, for the counts are those of the whole step.
    parts = [aggregate(loss_BT[i : i + 1], mask_BT[i : i + 1], scale_B[i : i + 1]) for i in range(3)]
    assert sum(part.item() for part in parts) == pytest.approx(expected, rel=1e-6)


def test_rows_weigh_alike_in_grpo_and_tokens_in_dapo():
    length_B = torch.tensor([1, 10, 1000])
    rows, tokens = torch.tensor(7), torch.tensor(2000)  # four more rows are elsewhere
    torch.testing.assert_close(
        row_scale(length_B, rows, tokens, "grpo") * length_B, torch.full((3,), 1 / 7), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        row_scale(length_B, rows, tokens, "dapo"), torch.full((3,), 1 / 2000), rtol=1e-6, atol=0
    )
    with pytest.raises(ValueError, match="loss_type='bnpo'.*grpo, dapo"):
        row_scale(length_B, rows, tokens, "bnpo")


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_a_step_without_tokens_has_loss_zero_and_a_gradient_of_zero(loss_type):
    logp_BT = f64([[NAN, -1.0]]).requires_grad_()
    mask_BT = mask("00")
    loss_BT, _ = clipped_surrogate(logp_BT, logp_BT.detach(), f64([[NAN, 5.0]]), mask_BT)
    loss = aggregate(loss_BT, mask_BT, row_scale(mask_BT.sum(dim=1), torch.tensor(0), torch.tensor(0), loss_type))
    loss.backward()
    assert loss.item() == 0 and logp_BT.grad.tolist() == [[0.0, 0.0]]


def test_the_gradient_is_that_of_fixed_weights():
    # Teacher and student both hang on one parameter; only the log-probability that is trained may pass a gradient.
    parameter = f64(0.3).requires_grad_()
    mask_BT = mask("111", "110", "111", "111", "111")
    base_BT = -torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.1
    logp_BT = base_BT * (1 + parameter)
    scores = Scores(
        teacher_logp_BT=base_BT.flip(0) * (2 + parameter),
        student_logp_BT=logp_BT,
        teacher_entropy_BT=-base_BT.flip(1) * (1 + parameter.square()),
        student_entropy_BT=-base_BT.roll(1, 0) * (1 + parameter.exp()),
    )
    signal = distil(Rollout(mask_BT), scores, METHODS["fire"](drop_fraction=0.2))
    assert not signal.weight_BT.requires_grad and not signal.advantage_BT.requires_grad
    assert signal.keep_B.sum() == 4
    train_BT = mask_BT & signal.keep_B.unsqueeze(1)
    loss_BT, _ = clipped_surrogate(logp_BT, logp_BT.detach(), signal.advantage_BT, train_BT)
    scale_B = row_scale(train_BT.sum(dim=1), torch.tensor(4), train_BT.sum(), "grpo")
    (gradient,) = torch.autograd.grad(aggregate(loss_BT, train_BT, scale_B), parameter)
    # By hand: d logp / d parameter = base, so the gradient is -sum_i 1/(4 |y_i|) sum_t A_it base_it with constant A.
    by_hand = 0.0
    for row in signal.keep_B.nonzero().flatten().tolist():
        tokens = mask_BT[row].nonzero().flatten().tolist()
        by_hand -= sum(signal.advantage_BT[row, t].item() * base_BT[row, t].item() for t in tokens) / (4 * len(tokens))
    assert abs(by_hand) > 0.01
    assert gradient.item() == pytest.approx(by_hand, rel=1e-6)


# Metrics


def test_the_metrics_of_a_window_by_hand():
    # Row 0 is empty, row 1 has a broken teacher value, row 2 is dropped, rows 3 and 4 survive.
    sampled = Rollout(mask("00", "11", "11", "11", "10"), finished_B=torch.tensor([True, True, False, True, False]))
    usable = sampled.only(torch.tensor([True, False, True, True, True]))
    kept = usable.only(torch.tensor([False, False, False, True, True]))
    scores = Scores(
        teacher_logp_BT=f64([[NAN, NAN], [NAN, -1.0], [-6.0, -4.0], [-1.0, -2.0], [-3.0, NAN]]),
        student_logp_BT=f64([[NAN, NAN], [-1.0, -1.0], [NAN, NAN], [-2.0, -4.0], [-1.0, NAN]]),  # row 2: not scored
        teacher_entropy_BT=f64([[NAN, NAN], [NAN, 1.0], [9.0, 9.0], [1.0, 2.0], [4.0, 9.0]]),
        student_entropy_BT=f64([[NAN, NAN], [9.0, 9.0], [9.0, 9.0], [2.0, 2.0], [0.5, 9.0]]),
    )
    score_B = f64([0.0, 0.0, -5.0, -1.5, -3.0])
    weight_BT = f64([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 1.5], [1.0, 0.0]])
    advantage_BT = f64([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 3.0], [-2.0, 0.0]])
    metrics = window_metrics(sampled, usable, kept, scores, score_B, weight_BT, advantage_BT, None, CONTEXT)
    assert metrics == pytest.approx(
        {
            "rows": 5,
            "empty": 1,
            "nonfinite_teacher": 1,
            "kept_rows": 2,
            "keep_ratio": 2 / 3,  # of the rows that could be ranked
            "kept_token_ratio": 3 / 5,
            "active_token_ratio": 3 / 5,
            "reverse_kl": (-1 - 2 + 2) / 3,  # student - teacher over the survivors' tokens
            "teacher_logp": (-5 - 1.5 - 3) / 3,
            "threshold": -5,  # the highest score that was dropped
            "weight_max": 1.5,
            "weight_ess": 3**2 / (3 * 3.5),  # (0.5 + 1.5 + 1)^2 / (3 (0.25 + 2.25 + 1))
            "advantage_abs": 5.5 / 3,
            "teacher_entropy": 7 / 3,
            "student_entropy": 4.5 / 3,
            "confidence": 1 - 7 / 3 / 4,
            "confusion": 4.5 / 3 / 2,
            "keep_ratio_finished": 1,  # row 3 of row 3
            "keep_ratio_truncated": 1 / 2,  # row 4 of rows 2 and 4
        },
        rel=1e-6,
    )


def test_a_token_is_active_if_it_has_any_weight_in_the_gradient_or_in_the_divergence():
    rollout = Rollout(mask("1111", "1110"))
    weight_BT, divergence_BT = (
        f64([[0.0, 2.0, 0.0, 0.0], [0.0] * 4]),
        f64([[0.0, 1.0, 0.5, 0.0], [0.0, -1.0, 0.0, 0.0]]),
    )
    scores, score_B = scores_of(rollout.mask_BT), f64([0.0, 0.0])
    for extra, active in ((None, 1), (divergence_BT, 3)):
        metrics = window_metrics(rollout, rollout, rollout, scores, score_B, weight_BT, weight_BT, extra, CONTEXT)
        assert metrics["active_token_ratio"] == pytest.approx(active / 7)
        assert metrics["kept_token_ratio"] == 1
