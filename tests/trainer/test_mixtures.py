"""Mixtures of experts: the loss that spreads tokens over experts is in the objective, the gradient and the log."""

import pytest
import torch
from support.folders import mixture_folder
from support.trainers import furthest, logs_of
from support.worker import built, trained
from transformers import AutoModelForCausalLM

from fire_opd_trl.scoring.forward import rows_in_lines


COEFFICIENT, RATE = 0.5, 0.003  # of the router's loss; the learning rate


def router_loss(model, part: dict) -> torch.Tensor:
    """
    Switch Transformer's loss of one micro-batch, as Mixtral has it: E sum_e f_e p_e, where f_e is the mean number of
    choices of expert e by a token, and p_e its mean probability, over all tokens of all layers.
    """
    ids, mask = rows_in_lines(part)[:2]
    logits = model.model(ids, attention_mask=mask.long(), output_router_logits=True).router_logits
    probability = torch.cat([layer.softmax(dim=-1)[mask.flatten()] for layer in logits])
    chosen = torch.zeros_like(probability).scatter(1, probability.topk(2, dim=1).indices, 1.0)
    return 8 * (chosen.mean(dim=0) * probability.mean(dim=0)).sum()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return mixture_folder(tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize(
    ("layout", "fillers"),
    [
        ({"rows": 8, "batch": 4, "accumulation": 2, "holes": False}, 0),
        ({"rows": 8, "batch": 1, "accumulation": 8, "holes": "second half"}, 4),  # the empty rows' micro-batches
    ],
)
def test_the_router_learns_from_the_mean_over_the_micro_batches_that_train(layout, fillers, mixture, tmp_path):
    case = {**layout, "student": mixture, "method": "opd", "max_steps": 1, "learning_rate": RATE}
    ends = {}
    for coefficient in (0.0, COEFFICIENT):
        config = {"router_aux_loss_coef": coefficient}
        ends[coefficient] = trained({**case, "config": config}, str(tmp_path / str(coefficient)))
    parts = ends[COEFFICIENT]._buffered_inputs
    real = [part for part in parts if float(part["scale"].sum()) > 0]
    assert len(parts) - len(real) == fillers
    model = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.float32).eval()
    expected = sum(router_loss(model, part) for part in real) / len(real)
    expected.backward()

    without, log = (logs_of(ends[coefficient])[0] for coefficient in (0.0, COEFFICIENT))
    assert log["aux_loss"] == pytest.approx(float(expected), rel=1e-4) and "aux_loss" not in without
    assert log["loss"] - without["loss"] == pytest.approx(COEFFICIENT * float(expected), rel=1e-3)
    gate = "model.layers.1.mlp.gate.weight"
    moved = ends[COEFFICIENT].model.state_dict()[gate] - ends[0.0].model.state_dict()[gate]
    gradient = model.get_parameter(gate).grad  # of the router's loss alone: the rest of the step is the same
    torch.testing.assert_close(moved, -RATE * COEFFICIENT * gradient, atol=1e-7, rtol=1e-3)
    assert float(moved.abs().max()) > 1e-5


def test_the_coefficient_of_the_model_is_used_where_none_is_set(mixture, tmp_path):
    trainer = built({"batch": 4, "accumulation": 1, "rows": 4, "student": mixture}, str(tmp_path))
    assert trainer.aux_loss_enabled and trainer.router_aux_loss_coef == 0.001  # Qwen3-MoE's own


@pytest.mark.launch
def test_the_routers_loss_is_a_mean_over_the_ranks(mixture, on_two_ranks, tmp_path):
    """The second rank's rows are empty: all the micro-batches that train are the first rank's."""
    config = {"balance": "none", "router_aux_loss_coef": COEFFICIENT}
    case = {"student": mixture, "rows": 8, "holes": "second half", "method": "opd", "max_steps": 1, "config": config}
    one = trained({**case, "batch": 1, "accumulation": 8}, str(tmp_path / "one"))
    two = on_two_ranks("ddp", {**case, "batch": 1, "accumulation": 4})
    assert furthest(two["parameters"], one.model.state_dict()) < 1e-6
