"""A teacher that stays in its files: each layer comes to the device for its own forward."""

import atexit
import shutil
import tempfile
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from .vocabulary import config_of


def empty_model(config: PretrainedConfig) -> Any:
    """
    Returns a model without numbers, for its names and shapes; `None` for a class that transformers does not have.
    """
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        return None
    with torch.device("meta"):  # the class itself: from_config would partition it under ZeRO-3
        return kind(config)


def streaming_arguments(model: str, device: torch.device, hub: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """
    Returns arguments of `from_pretrained` that leave a model's layers in its files, memory-mapped. Each layer is
    brought to the device for its own forward. Embeddings and head, which the fused head reads directly, are on the
    device.
    """
    skeleton = empty_model(config_of(model, **hub))
    if skeleton is None:
        raise ValueError(
            f"teacher_placement='offload': {model!r} is of a class that transformers does not have, so that its "
            "layers are not known. Use 'replicated', or ZeRO-3."
        )
    layers = [name for name, module in skeleton.named_modules() if type(module).__name__ in skeleton._no_split_modules]
    if not layers:
        raise ValueError(
            f"teacher_placement='offload': {type(skeleton).__name__} does not say what its layers are "
            "(_no_split_modules), so that it cannot be streamed. Use 'replicated', or ZeRO-3."
        )
    tensors = (*skeleton.named_parameters(remove_duplicate=False), *skeleton.named_buffers())
    others = {name.rpartition(".")[0] for name, _ in tensors if not name.startswith(tuple(f"{x}." for x in layers))}
    where = {**dict.fromkeys(layers, "disk"), **dict.fromkeys(others, "cpu" if device.type == "cpu" else str(device))}
    if folder is None:  # it takes what the files have in another form, such as the experts of a mixture one by one
        folder = tempfile.mkdtemp(prefix="fire-opd-teacher-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": where, "offload_folder": folder}
