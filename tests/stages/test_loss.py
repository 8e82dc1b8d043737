"""The clipped surrogate, the penalty and the mean: numbers by hand, gradients by finite differences."""

import math

import pytest
import torch
from support.tensors import f64, mask, ragged_mask
from support.windows import INF, NAN

from fire_opd_trl import METHODS, Rollout, Scores, distil
from fire_opd_trl.stages import (
    aggregate,
    clipped_surrogate,
    reference_kl,
    row_scale,
)


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


def test_the_clip_has_two_sides_and_holds_nothing_back_that_went_wrong():
    """The last two: a good token that became unlikely, and a bad one that became likely, keep their gradient."""
    old_BT, advantage_BT = f64([[0.0] * 6]), f64([[1.0, 1.0, -1.0, -1.0, 1.0, -1.0]])
    logp_BT = f64([[1.25, 1.35, 0.85, 0.95, 0.5, 2.0]]).log()
    bounds = {"epsilon_low": 0.1, "epsilon_high": 0.3}
    loss_BT, clipped_BT = clipped_surrogate(logp_BT, old_BT, advantage_BT, mask("111111"), **bounds)
    torch.testing.assert_close(loss_BT, f64([[-1.25, -1.3, 0.9, 0.95, -0.5, 2.0]]), rtol=1e-14, atol=0)
    assert clipped_BT.tolist() == [[False, True, True, False, False, False]]


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
