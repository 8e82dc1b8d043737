"""Shapes of models, counted without weights, against what their makers say."""

import pytest
from transformers import Qwen3Config

from fire_opd_trl.preflight.plan.shapes import config_for, known_configs, shape_of


# From the model cards, in 1e9; a mixture has two numbers: all, and those that a token uses.
CARDS = {
    "Qwen/Qwen3-0.6B": (0.6, 0.6),
    "Qwen/Qwen3-1.7B": (1.7, 1.7),
    "Qwen/Qwen3-4B": (4.0, 4.0),
    "Qwen/Qwen3-8B": (8.2, 8.2),
    "Qwen/Qwen3-14B": (14.8, 14.8),
    "Qwen/Qwen3-32B": (32.8, 32.8),
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),
    "Qwen/Qwen3-235B-A22B": (235, 22),
    "meta-llama/Llama-3.1-8B": (8.03, 8.03),
    "meta-llama/Llama-3.1-70B": (70.6, 70.6),
    "Qwen/Qwen2.5-72B": (72.7, 72.7),
    "HuggingFaceTB/SmolLM2-135M": (0.135, 0.135),
}


@pytest.mark.parametrize("name", CARDS)
def test_well_known_models_have_as_many_parameters_as_their_cards_say(name):
    shape, (parameters, active) = shape_of(config_for(name), name), CARDS[name]
    assert shape.parameters / 1e9 == pytest.approx(parameters, rel=0.02)
    assert shape.active / 1e9 == pytest.approx(active, rel=0.02)


def test_a_small_model_counted_by_hand():
    config = Qwen3Config(
        vocab_size=7, hidden_size=4, intermediate_size=5, num_hidden_layers=2, num_attention_heads=2, head_dim=3,
        num_key_value_heads=1, tie_word_embeddings=False, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    shape = shape_of(config, "by hand")
    # queries 4 x 6, keys and values 4 x 3 each, output 6 x 4, gate and up and down 4 x 5 each, norms 4 + 4 + 3 + 3
    layer = 24 + 2 * 12 + 24 + 3 * 20 + 14
    assert shape.largest_layer == layer
    assert shape.parameters == 2 * layer + 28 + 28 + 4  # embeddings, head, last norm
    assert shape.active == shape.parameters and shape.active_in_layers == 2 * layer + 4
    assert shape.keys_and_values == 2 * 2 * 3  # keys and values, two layers, one head of 3
    assert not shape.tied and shape.normed_heads


def test_a_mixture_uses_the_experts_that_a_token_is_sent_to():
    shape = shape_of(config_for("qwen3-30b-a3b"), "mixture")
    # Of a layer, outside of the experts: queries and output 2048 x 4096, keys and values 2048 x 512, router 2048 x
    # 128, norms 2 x 2048 + 2 x 128; an expert has three matrices of 2048 x 768, and a token meets 8 of them.
    outside = 2 * 2048 * 4096 + 2 * 2048 * 512 + 2048 * 128 + 2 * 2048 + 2 * 128
    assert shape.largest_layer == outside + 128 * 3 * 2048 * 768
    assert shape.active_in_layers == 48 * (outside + 8 * 3 * 2048 * 768) + 2048


def test_a_model_with_images_is_counted_with_its_vision_tower():
    shape = shape_of(config_for("Qwen/Qwen2.5-VL-3B-Instruct"), "images")
    assert shape.parameters / 1e9 == pytest.approx(3.75, rel=0.01)  # 3.09 of the language model, 0.67 of the tower
    assert shape.layers == 36 and shape.tied and shape.sees_images
    assert not shape_of(config_for("Qwen3-4B"), "text").sees_images


def test_names_are_found_without_a_network(tmp_path):
    assert config_for("Qwen3-4B").hidden_size == 2560
    small = Qwen3Config(hidden_size=16, architectures=["Qwen3ForCausalLM"])
    small.save_pretrained(tmp_path / "mine")
    assert config_for(str(tmp_path / "mine")).hidden_size == 16
    assert len(known_configs()) >= 15
