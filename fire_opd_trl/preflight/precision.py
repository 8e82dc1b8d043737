"""
In which precision the optimizer steps. A step that is smaller than half of the distance to the next number is lost in
rounding. In 16 bits that is nearly every step of fine-tuning: the weights stay where they are, and nothing says so.
"""

from typing import Any

import torch
from transformers import PretrainedConfig

from ..config import FiReOPDConfig
from ..scoring.heads import base_of
from ..teachers.placement import sharding_engine
from ..teachers.vocabulary import Teacher
from .findings import Checked


def check_precision(
    checked: Checked, model: Teacher, config: PretrainedConfig, args: FiReOPDConfig, others: dict[str, Any]
) -> None:
    """
    `inspect_run` calls this for the student. It refuses weights that would be trained in 16 bits, and warns of
    adapters on a quantized base, since TRL casts these to 16 bits itself.

    Args:
        others (`dict`): What else the trainer was given: `peft_config`, `quantization_config`, `optimizers`; for a
            planned run its `engine` and `mixed_precision`, if they are not those of this process, and whether it
            `trains` at all.
    """
    if not others.get("trains", True):
        return
    quantized = others.get("quantization_config") is not None or bool(getattr(config, "quantization_config", None))
    if quantized:
        trained = {torch.bfloat16}
    elif others.get("peft_config") is not None:
        trained = {torch.float32}  # PEFT loads adapters so; what else it may train is seen by `refuse_loaded_weights`
    else:
        trained = trained_dtypes(model, config, args)
    low, engine = low_precision(trained), others.get("engine", sharding_engine(args))
    if low is None:
        checked.record("precision", "the optimizer steps float32 weights")
    elif keeps_copies(engine, args, others, quantized):
        checked.record("precision", f"{engine or 'your optimizer'} keeps float32 copies of the {spoken(low)} weights")
    elif quantized:
        text = (
            "TRL casts the adapters of a quantized student to bfloat16, and nobody keeps them in float32: "
            f"{lost(args)}. To train them in float32 use DeepSpeed (configs/accelerate/zero2.yaml), which keeps "
            "float32 copies, or a base that is not quantized."
        )
        checked.record("precision", text, "warning")
    else:
        raise lost_updates(low, args)


def refuse_loaded_weights(model: torch.nn.Module, args: FiReOPDConfig, others: dict[str, Any]) -> None:
    """
    The trainer calls this when the student is loaded, since PEFT may train modules of the base itself, in the base's
    own precision (`modules_to_save`).
    """
    if not getattr(base_of(model), "is_quantized", False):  # else there was a warning
        low = low_precision(trained_dtypes(model, None, args))
        if low is not None and not keeps_copies(sharding_engine(args), args, others):
            raise lost_updates(low, args)


def trained_dtypes(
    model: Teacher | torch.nn.Module, config: PretrainedConfig | None, args: FiReOPDConfig
) -> set[torch.dtype]:
    """Returns the precisions in which the weights that will be trained are, or will be loaded."""
    if not isinstance(model, str):
        return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    dtype = (args.model_init_kwargs or {}).get("dtype") or "float32"
    dtype = getattr(config, "dtype", None) or "float32" if dtype == "auto" else dtype
    named = getattr(torch, spoken(dtype), None)  # a name that torch does not have is a fault of the student's check
    return {named} if isinstance(named, torch.dtype) else set()


def low_precision(dtypes: set[torch.dtype]) -> torch.dtype | None:
    """Returns the 16-bit precision among some, if there is one."""
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes), None)


def keeps_copies(engine: str | None, args: FiReOPDConfig, others: dict[str, Any], quantized: bool = False) -> bool:
    """
    Returns whether the optimizer steps float32 copies of weights in 16 bits. DeepSpeed's ZeRO has them whatever its
    section `bf16` says, and without ZeRO (stage 0) under mixed precision alone; FSDP under mixed precision, but not of
    adapters on a quantized base.
    """
    mixed = {args.mixed_precision, others.get("mixed_precision", "no")} != {"no"}
    own = others.get("optimizers", (None, None))[0] is not None  # who brings an optimizer knows what it does
    plugin, stage = args.deepspeed_plugin, others.get("zero_stage")
    if plugin is not None:
        stage = plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0)
    deepspeed = engine == "ZeRO-3" or engine == "DeepSpeed" and (mixed or stage != 0)
    return own or deepspeed or (engine == "FSDP" and mixed and not quantized)


def lost_updates(dtype: torch.dtype, args: FiReOPDConfig) -> ValueError:
    """Returns the refusal of weights that are trained in 16 bits."""
    return ValueError(
        f"The student's trainable weights are {spoken(dtype)}, and nobody keeps them in float32: "
        f"{lost(args, dtype)}. Load the student in float32 (dtype float32, the default), and leave bf16=True: it "
        "still computes in bfloat16. Or let DeepSpeed or FSDP keep float32 copies (configs/accelerate/zero2.yaml, "
        "fsdp2.yaml), train a LoRA adapter, or give the trainer an optimizer that keeps copies itself "
        "(optimizers=...)."
    )


def lost(args: FiReOPDConfig, dtype: torch.dtype = torch.bfloat16) -> str:
    """Returns what is lost, for a person: AdamW's step is about the learning rate."""
    share = torch.finfo(dtype).eps / 4  # numbers below 2^k are eps 2^(k-1) apart: half of it, as a share of 2^k
    return (
        f"a step of less than 1/{1 / share:.0f} of a weight is lost in rounding, so that at learning_rate="
        f"{args.learning_rate:g} no weight above {args.learning_rate / share:.1g} moves"
    )


def spoken(dtype: torch.dtype | str) -> str:
    """Returns a precision's name without its library's."""
    return str(dtype).removeprefix("torch.")
