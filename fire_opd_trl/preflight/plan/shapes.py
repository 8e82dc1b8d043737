"""Models as a plan sees them: numbers that follow from a configuration, counted without weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ...scoring.forward_cost import active_parameters
from ...teachers.offload import empty_model
from ...teachers.vocabulary import config_of


KNOWN = Path(__file__).parent / "models"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # what transformers' configurations call them


@dataclass(frozen=True)
class ModelShape:
    """
    The size of a decoder, of its parts, and of what it computes for a token.

    Args:
        name (`str`): What it is called.
        parameters (`int`): All parameters; a matrix that embedding and head share counts once.
        active (`int`): Parameters that take part in one token, as model cards count them: of a mixture's experts those
            that a token is sent to.
        embedding (`int`): Parameters of the embeddings of tokens.
        head (`int`): Parameters of the last layer, also where it is the embeddings (`tied`).
        tied (`bool`): Whether both are one matrix.
        layers, hidden (`int`): Number of layers, and width of the hidden states.
        heads, kv_heads, head_dim (`int`): Heads of the queries, heads of keys and values, width of each.
        intermediate (`int`): Width inside a dense gated layer.
        vocabulary (`int`): Number of token rows.
        experts, experts_per_token, expert_intermediate (`int`): Of a mixture of experts; 0 for a dense model.
        largest_layer (`int`): Parameters of the largest decoder layer.
        context (`int`): Positions that it reads.
        normed_heads (`bool`): Whether queries and keys are normalised, as in Qwen3.
        sees_images (`bool`): Whether it has a vision tower, whose parameters are in `parameters`.
    """

    name: str
    parameters: int
    active: int
    embedding: int
    head: int
    tied: bool
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    experts: int
    experts_per_token: int
    expert_intermediate: int
    largest_layer: int
    context: int
    normed_heads: bool = False
    sees_images: bool = False

    @property
    def active_in_layers(self) -> int:
        """Parameters of the layers that a token is multiplied with: neither embeddings nor head."""
        return self.active - self.embedding - (0 if self.tied else self.head)

    @property
    def keys_and_values(self) -> int:
        """Numbers that a cache of keys and values has for each token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def known_configs() -> dict[str, Path]:
    """Returns the files with facts of well-known models, by the name of the model on the Hub."""
    return {file.stem.replace("--", "/"): file for file in sorted(KNOWN.glob("*.json"))}


def file_of(name: str) -> Path | None:
    """Returns the file with facts of a known model, by its name with or without its maker; `None` for a folder."""
    facts = {known.lower(): file for known, file in known_configs().items()}
    facts |= {known.rpartition("/")[2]: file for known, file in facts.items()}
    return None if Path(name).is_dir() else facts.get(name.lower())


def config_for(name: str, **hub: Any) -> PretrainedConfig:
    """
    Returns the configuration of a model by name: of a local folder, else of a known model, for which no network is
    needed, else of the Hub.
    """
    file = file_of(name)
    if file is None:
        return config_of(name, **hub)
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields.pop("source")
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def shape_of(config: PretrainedConfig, name: str) -> ModelShape:
    """
    Returns the shape of a model, counted from its class in transformers without numbers, so that it is right for any
    architecture. A class that transformers does not have is refused.
    """
    skeleton, text = empty_model(config), config.get_text_config()
    if skeleton is None:
        raise ValueError(
            f"{name!r} is of the class {(config.architectures or ['?'])[0]}, which transformers does not have: its "
            "parameters cannot be counted. Plan with a model of a similar size that transformers has."
        )
    skeleton.tie_weights()
    embedding, head = skeleton.get_input_embeddings().weight, skeleton.get_output_embeddings().weight
    kinds = skeleton._no_split_modules or ()
    layers = [module for module in skeleton.modules() if type(module).__name__ in kinds]
    heads = text.num_attention_heads
    experts = next((getattr(text, field) for field in EXPERTS if getattr(text, field, None)), 0)
    return ModelShape(
        name=name,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        active=round(active_parameters(skeleton, text)),
        embedding=embedding.numel(),
        head=head.numel(),
        tied=head is embedding,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        experts=experts,
        experts_per_token=text.num_experts_per_tok if experts else 0,
        expert_intermediate=getattr(text, "moe_intermediate_size", text.intermediate_size) if experts else 0,
        largest_layer=max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0),
        context=text.max_position_embeddings,
        normed_heads=any(name.endswith("q_norm.weight") for name, _ in skeleton.named_parameters()),
        sees_images=getattr(config, "vision_config", None) is not None,
    )
