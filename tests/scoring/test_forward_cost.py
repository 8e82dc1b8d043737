"""What a forward costs beside its tokens, and what follows for the cuts of a window."""

import math
import random

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from fire_opd_trl.rollouts.packing import cut_at_least_cost
from fire_opd_trl.scoring.forward_cost import (
    LAUNCH,
    LAUNCH_ELSEWHERE,
    OPERATIONS_PER_BYTE,
    active_parameters,
    brought_bytes,
    forward_cost,
)


def mixture(dtype=torch.bfloat16) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).to(dtype)


def dense(dtype=torch.bfloat16) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)).to(dtype)


def partitioned(model):
    """Marked as DeepSpeed marks what it has partitioned; `test_placement.py` has models that really are."""
    for parameter in model.parameters():
        parameter.ds_numel, parameter.data = parameter.numel(), parameter.data.new_empty(0)
    return model


CONFIG = mixture().config


def test_a_forward_of_a_partitioned_model_costs_the_time_in_which_its_weights_come():
    assert forward_cost(dense(), CONFIG, "cuda") == LAUNCH_ELSEWHERE == 1024
    # bytes / (2 x parameters) = 1 in 16 bits and 2 in 32 bits, whatever the size
    assert forward_cost(partitioned(dense()), CONFIG, "cuda") == 1024 + OPERATIONS_PER_BYTE
    assert forward_cost(partitioned(dense(torch.float32)), CONFIG, "cuda") == 1024 + 2 * OPERATIONS_PER_BYTE
    assert forward_cost(partitioned(dense()), CONFIG, "cpu") == LAUNCH["cpu"] == 128


def test_a_layer_that_lies_on_the_host_comes_in_every_forward_and_the_rest_does_not():
    model = dense()
    model[0].to("meta")  # as accelerate leaves it
    # 288 of the 288 + 132 parameters come: (8 + 1) x 32 and (32 + 1) x 4
    assert brought_bytes(model) == 2 * 288
    assert forward_cost(model, CONFIG, "cuda") == 1024 + round(OPERATIONS_PER_BYTE * 288 / 420)


def test_a_token_uses_few_experts_of_a_mixture_and_all_of_them_come():
    model = mixture()
    experts = 2 * 8 * 3 * 16 * 8  # layers x experts x (gate, up, down) x hidden x intermediate
    every = sum(p.numel() for p in model.parameters())
    assert active_parameters(model, model.config) == every - experts + experts * 2 / 8
    expected = 2 * every / (2 * (every - experts * 3 / 4))
    assert forward_cost(partitioned(model), model.config, "cuda") == 1024 + round(OPERATIONS_PER_BYTE * expected)


def test_a_larger_budget_makes_fewer_forwards_of_a_partitioned_teacher():
    """128 completions of 4000 tokens in the mean and 16384 at most, as a rank has them at the paper's size."""
    draw = random.Random(0)
    length_B = [min(16384, max(64, int(draw.lognormvariate(math.log(4096) - 0.32, 0.8)))) for _ in range(128)]

    def forwards(model, budget: int) -> int:
        return len(cut_at_least_cost(list(range(128)), length_B, budget, forward_cost(model, CONFIG, "cuda")))

    whole, parts = dense(), partitioned(dense())
    assert [forwards(whole, budget) for budget in (32768, 131072)] == [26, 24]  # as with 1024 tokens for every model
    assert [forwards(parts, budget) for budget in (32768, 131072)] == [19, 11]
