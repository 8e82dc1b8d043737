"""Models on disk that several tests read: adapters, a mixture of experts. All random, from a seed, and offline."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fire_opd_trl.demo.run import model_path


def loaded(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32)


def with_tokenizer(folder: Path) -> str:
    AutoTokenizer.from_pretrained(model_path("student")).save_pretrained(folder)
    return str(folder)


def adapter_folder(folder: Path, seed: int = 1, base: str = "teacher", **config) -> tuple[str, str]:
    """A LoRA adapter on an embedded model that changes what it says, and the same two merged: both folders."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    model = get_peft_model(loaded(base), LoraConfig(base_model_name_or_path=model_path(base), **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first
                parameter.normal_(std=0.2)
    model.save_pretrained(folder / f"adapter{seed}")
    model.merge_and_unload().save_pretrained(folder / f"merged{seed}")
    return str(folder / f"adapter{seed}"), with_tokenizer(folder / f"merged{seed}")


def mixture_folder(folder: Path) -> str:
    """
    A tiny Qwen3 mixture: eight experts, two for each token. The router is such that a token's own embedding decides,
    so that ranks with other tokens go to other experts.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    config = Qwen3MoeConfig(
        vocab_size=16, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=8, num_experts_per_tok=2,
        max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(folder / "mixture")
    return with_tokenizer(folder / "mixture")


def rescaled_folder(folder: Path, name: str = "student", **rope) -> str:
    """An embedded model whose rotary embeddings are scaled, by default with `longrope` beyond 24 of its 128 tokens."""
    model = loaded(name)
    pairs = model.config.head_dim // 2
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 24, "attention_factor": 1.0}
    longrope.update(short_factor=[1.0] * pairs, long_factor=[4.0] * pairs)
    model.config.rope_parameters = {"rope_theta": 10000.0, **(rope or longrope)}
    model.save_pretrained(folder)
    return with_tokenizer(folder)
