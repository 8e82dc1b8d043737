"""Packages that some settings need, beside those that this library always needs, and how to get them."""

import importlib.util
from typing import Any

from transformers.training_args import OptimizerNames

from ..config import FiReOPDConfig
from ..refusals import WrongSettings
from ..teachers.sources import Source


# Modules that are extras of pyproject.toml, and those whose package has another name than the module.
EXTRAS = {"deepspeed": "deepspeed", "vllm": "vllm", "peft": "peft", "bitsandbytes": "quantization"}
PACKAGES = {
    "comet_ml": "comet-ml",
    "azureml": "azureml-core",
    "flash_attn": "flash-attn",
    "liger_kernel": "liger-kernel",
    "PIL": "pillow",
    "reasoning_gym": "reasoning-gym",
}
# Names in `report_to`, and the modules of which each needs one; those of other names need the module of that name.
TRACKERS = {"azure_ml": ("azureml",), "tensorboard": ("tensorboard", "tensorboardX"), "flyte": ("flytekit",)}
NO_PACKAGE = ("none", "all", "kubeflow")
# What transformers takes for attention: flash-attn itself, or a kernel from the Hub in its place.
ATTENTION = {"flash_attention_2": ("flash_attn", "kernels"), "flash_attention_3": ("flash_attn_interface", "kernels")}


def refuse_missing(needs: dict[str, tuple[str, ...]]) -> None:
    """
    Refuse settings whose packages are not installed, all of them at once. Preflight calls this, and the script for
    what TRL would import before the trainer is made.

    Args:
        needs (`dict`): For each setting the modules of which it needs one.
    """
    faults = [
        f"{setting} needs the package {modules[0]}, which is not installed. Run: {pip_line(modules[0])}"
        for setting, modules in needs.items()
        if not any(importlib.util.find_spec(module) for module in modules)
    ]
    if faults:
        raise WrongSettings(*faults)


def pip_line(module: str) -> str:
    """Returns the command that installs a module: by an extra of this package, which knows the versions, or alone."""
    if module in EXTRAS:
        return f"pip install -e '.[{EXTRAS[module]}]'"
    return f"pip install {PACKAGES.get(module, module)}"


def needed(args: FiReOPDConfig, sources: dict[str, Source], engine: str | None) -> dict[str, tuple[str, ...]]:
    """
    Returns the packages that a run needs, by the setting that asks for them.

    Args:
        sources (`dict`): The teachers.
        engine (`str`, *optional*): What shards the student; see `inspect_run`.
    """
    needs: dict[str, tuple[str, ...]] = {}
    if args.use_vllm:
        needs["use_vllm=True"] = ("vllm",)
    if engine in ("ZeRO-3", "DeepSpeed"):
        needs["the accelerate configuration with DeepSpeed"] = ("deepspeed",)
    if args.use_liger_kernel:
        needs["use_liger_kernel=True"] = ("liger_kernel",)
    for tracker in args.report_to or []:
        if tracker not in NO_PACKAGE:
            needs[f"report_to={tracker!r}"] = TRACKERS.get(tracker, (tracker,))
    optimizer = OptimizerNames(args.optim).value
    if "bnb" in optimizer or optimizer.startswith(("paged_", "lion_", "ademamix")):
        needs[f"optim={optimizer!r}"] = ("bitsandbytes",)
    loaded = {"model_init_kwargs": args.model_init_kwargs or {}}
    for name, source in sources.items():
        loaded[f"teacher_model_init_kwargs of {name!r}"] = source.init_kwargs
        if source.adapter is not None:
            needs[f"the adapter {source.adapter}"] = ("peft",)
    for name, arguments in loaded.items():
        needs.update(needed_to_load(name, arguments))
    return needs


def needed_to_load(name: str, arguments: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the packages that arguments of `from_pretrained` ask for."""
    needs: dict[str, tuple[str, ...]] = {}
    attention, quantized = arguments.get("attn_implementation"), arguments.get("quantization_config")
    if attention in ATTENTION:
        needs[f"attn_implementation={attention!r}"] = ATTENTION[attention]
    elif "/" in str(attention):  # a kernel of the Hub
        needs[f"attn_implementation={attention!r}"] = ("kernels",)
    if isinstance(quantized, dict) and (quantized.get("load_in_4bit") or quantized.get("load_in_8bit")):
        needs[f"quantization_config in {name}"] = ("bitsandbytes",)
    if arguments.get("use_kernels"):
        needs[f"use_kernels in {name}"] = ("kernels",)
    return needs
