"""Weights of tokens, by hand, and the laws of their shuffle."""

import pytest
import torch
from support.tensors import CONTEXT, Later, f64, mask, ragged_mask, scores_of
from support.windows import INF, NAN

from fire_opd_trl import Context, Rollout
from fire_opd_trl.stages import (
    World,
    confidence_and_confusion,
    mean_one_BT,
    share_of_max_BT,
    shuffled_inside_rows,
    uniform,
)


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
