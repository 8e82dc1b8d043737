"""What a forward costs beside its tokens: a window is then cut into as many forwards as cost least."""

import torch
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig


# What launching a forward costs, in tokens: little where kernels are slow (measured), more where they are fast
# (estimated).
LAUNCH = {"cpu": 128}
LAUNCH_ELSEWHERE = 1024
# An estimate, not measured: how many operations a GPU computes while its link brings one byte of a weight. One that
# reaches 4e14 operations a second does 1100 of them where weights come over NVLink (3.5e11 bytes a second), and 8000
# where they come from other machines or from the host (5e10). This stands between the two.
OPERATIONS_PER_BYTE = 4000


def forward_cost(model: torch.nn.Module, config: PretrainedConfig, device: str) -> int:
    """
    `ModelScorer` calls this for each window. Returns how many tokens could be computed in the time that one forward
    takes beside its own tokens.

    Weights that are partitioned over ranks, or lie on the host, come to the device in every forward:

        seconds to bring them  = bytes / (bytes a second of the link)
        seconds of one token   = 2 x (parameters that it is multiplied with) / (operations a second of the device)
        their ratio, in tokens = bytes / (2 x parameters) x (operations a second) / (bytes a second)

    A dense model in 16 bits has two bytes a parameter, so that a forward costs `OPERATIONS_PER_BYTE` tokens, whatever
    its size. A mixture of experts brings all of them for tokens that use few, and costs many times that. Engines bring
    a layer while they compute the one before: this is then an upper bound.

    Args:
        model (`torch.nn.Module`): The model as it is placed.
        config (`PretrainedConfig`): Its configuration, which says how many experts a token uses.
        device (`str`): Kind of the device that computes. On a CPU only the launch counts.
    """
    if device == "cpu":
        return LAUNCH[device]
    bytes_per_operation = brought_bytes(model) / (2 * active_parameters(model, config))
    return LAUNCH_ELSEWHERE + round(OPERATIONS_PER_BYTE * bytes_per_operation)


def brought_bytes(model: torch.nn.Module) -> int:
    """Returns the bytes of the weights that are not whole on the device between forwards."""
    return sum(size_of(p) * p.element_size() for p in model.parameters() if is_partitioned(p) or p.is_meta)


def active_parameters(model: torch.nn.Module, config: PretrainedConfig) -> float:
    """Returns how many parameters a token is multiplied with: of a mixture's experts those that it is sent to."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")  # what transformers' configurations call them
    experts = next((getattr(config, name) for name in names if getattr(config, name, None)), 1)
    share = config.num_experts_per_tok / experts if experts > 1 and hasattr(config, "num_experts_per_tok") else 1.0
    return sum(size_of(p) * (share if ".experts." in name else 1.0) for name, p in model.named_parameters())


def is_partitioned(parameter: torch.nn.Parameter) -> bool:
    """Whether each rank holds a part of it, under ZeRO-3 or FSDP 2."""
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_numel")


def size_of(parameter: torch.nn.Parameter) -> int:
    """Returns how many numbers a parameter has when it is whole."""
    return getattr(parameter, "ds_numel", parameter.numel())
