"""What a model's forward can show beside the sampled token's log-probability, without a second forward."""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.kernels import chunked_divergence, chunked_logprob
from trl.trainer import utils as trainer_utils
from trl.trainer.utils import FusedCausalLMOutput


LARGEST_TILE = 2**23  # numbers of a temporary: 32 MB in float32


class Observer(Protocol):
    """
    A forward calls it with the hidden states at the completion's positions, `[B, T, H]`, with the head, and with the
    log-probabilities of the sampled tokens. What it returns, by name, is what it observed.
    """

    def __call__(self, hidden_BTH: torch.Tensor, head: "Head", logp_BT: torch.Tensor) -> dict[str, torch.Tensor]: ...


@dataclass
class Observation:
    """
    One forward that is observed.

    Args:
        observer ([`Observer`]): What looks at the forward.
        column_BT (`torch.Tensor`): Which next-token predictions are about the completion tokens, from the right end.
        observed (`dict`): What the observer returned, once the forward has run.
    """

    observer: Observer
    column_BT: torch.Tensor
    observed: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class ObservedOutput(FusedCausalLMOutput):
    """The fused head's output, with what was observed: wrappers of a model must know every tensor that it returns."""

    observed: dict[str, torch.Tensor] | None = None


@dataclass
class Head:
    """The last linear layer of a model and what follows it: `softcap(scale (W h + b)) / temperature`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None
    width: int
    float32: bool

    @classmethod
    def of(cls, model: PreTrainedModel, float32: bool = False) -> "Head":
        config, layer = model.config.get_text_config(), model.get_output_embeddings()
        # The names under which TRL's fused head reads a multiplier of the logits; absent and None mean 1.
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        scale = next((getattr(config, n) for n in names if getattr(config, n, None) is not None), None)
        if scale is None and getattr(config, "logits_scaling", None) is not None:
            scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
        weight, bias = (p.full_tensor() if isinstance(p, DTensor) else p for p in (layer.weight, layer.bias))
        softcap = getattr(config, "final_logit_softcapping", None)
        width = getattr(weight, "ds_shape", weight.shape)[1]  # of a head that ZeRO-3 has partitioned
        return cls(weight, bias, 1.0 if scale is None else scale, softcap, width, float32)

    def logits(self, raw: torch.Tensor, temperature: float) -> torch.Tensor:
        """Returns the logits that the raw products become."""
        raw = raw if self.scale == 1 else raw * self.scale
        raw = raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)
        return raw if temperature == 1 else raw / temperature


def set_tiles(device: torch.device) -> None:
    """
    Sets the tiles of TRL's kernels. Theirs have 4096 tokens x 32768 columns and are made for Triton. Without Triton
    the torch version makes about ten temporaries of a tile: 5 GB, each of which passes through main memory. There the
    tiles are so small that they stay in the cache.
    """
    tokens, columns = (4096, 32768) if chunked_logprob._use_triton(device) else (1024, 2048)
    chunked_logprob.TOKEN_CHUNK_SIZE = chunked_divergence.TOKEN_CHUNK_SIZE = tokens
    trainer_utils._CHUNKED_LOGPROB_CHUNK_SIZE = chunked_divergence.VOCAB_CHUNK_SIZE = columns


def make_observable(model: PreTrainedModel, float32: bool = False) -> None:
    """
    Give a model with a fused head a forward that can be observed (see [`observing`]) and whose head computes only the
    positions that have a label: where there is no Triton, TRL's own head projects the prompt and the padding too. The
    trainer calls this before the model is wrapped by DeepSpeed, FSDP or DDP.
    """
    fused = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self, *args, **kwargs):
        if not kwargs.get("fused_lm_head"):
            return fused(*args, **kwargs)
        label_BT = kwargs.pop("labels")[:, 1:]
        set_tiles(label_BT.device)
        scored_BT, states, alone = label_BT != -100, [], []

        def scored_states(module, _, output):
            states.append(output.last_hidden_state[:, :-1])
            output.last_hidden_state = states[0][scored_BT.to(states[0].device)].unsqueeze(0)
            layer: Any = self.get_output_embeddings()
            if isinstance(layer.weight, DTensor) and isinstance(layer, FSDPModule):
                # Only a head in a unit of its own (an untied head of a vision model) is still in pieces here. TRL
                # would gather the weight, whose gradient is then that of this rank's rows alone: FSDP must gather it.
                layer.unshard()
                alone.append(layer)
            return output

        hook = self.base_model.register_forward_hook(scored_states)
        try:
            output = fused(*args, shift_labels=label_BT[scored_BT].unsqueeze(0), **kwargs)
        finally:
            hook.remove()
            if not torch.is_grad_enabled():  # else FSDP does it when it has reduced the gradient
                for layer in alone:
                    layer.reshard()
        for name in ("log_probs", "entropy"):
            if (value := output[name] if name in output else None) is not None:
                output[name] = value.new_zeros(scored_BT.shape).masked_scatter(scored_BT.to(value.device), value)
        output.label_mask = scored_BT
        observation: Observation | None = self.observation
        if observation is None:
            return output
        column_BT = observation.column_BT.to(states[0].device) + states[0].shape[1]
        hidden_BTH = states[0].gather(1, column_BT.unsqueeze(2).expand(-1, -1, states[0].shape[2]))
        logp_BT = output.log_probs.gather(1, column_BT.to(output.log_probs.device))
        exact = torch.autocast(hidden_BTH.device.type, enabled=False) if float32 else nullcontext()
        with exact:
            head = Head.of(self, float32)
            hidden_BTH = hidden_BTH.to(head.weight.device, torch.float32 if float32 else hidden_BTH.dtype)
            observation.observed = observation.observer(hidden_BTH, head, logp_BT)
        return ObservedOutput(**output, observed=observation.observed)

    model.observation = None
    model.forward = types.MethodType(forward, model)


@contextmanager
def observing(model: PreTrainedModel, observer: Observer | None, column_BT: torch.Tensor) -> Iterator[Observation]:
    """
    Let `observer` look at the forward that runs inside this context; what it saw is then in `observed` of the record.
    TRL's own scoring function drops all that a forward returns beside log-probabilities and entropies, hence a record
    beside the output.
    """
    observation = Observation(observer, column_BT) if observer else None
    model.observation = observation
    try:
        yield observation or Observation(no_observer, column_BT)
    finally:
        model.observation = None


def no_observer(hidden_BTH: torch.Tensor, head: Head, logp_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """The observer of a forward that nobody observes."""
    return {}


def base_of(model: Any) -> PreTrainedModel:
    """Returns the model itself, inside an adapter's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
