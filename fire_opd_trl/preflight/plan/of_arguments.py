"""A plan of the arguments of a training: `fire-opd plan` and preflight make it."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from .fit import Plan
from .hardware import HARDWARE, Assumptions, Hardware, chosen_hardware, of_measured
from .run import PlannedRun, read_accelerate, run_of_arguments


# What a user says of a run: lengths, and a vLLM server.
LENGTHS = ("mean_completion", "mean_prompt", "longest_prompt")
SERVER = ("engine_gpus", "engine_tensor_parallel", "engine_fraction")
SAME_CARD = 0.05  # by which the memory of a card of one name may differ: drivers keep some of it


def plan_of_arguments(
    parts: dict[str, Any], accelerate_config: Path | None, gpus: int | None = None, **said: Any
) -> Plan:
    """
    Returns the plan of a training. What cannot be planned is a `ValueError`, and what cannot be read an `OSError`.

    Args:
        parts (`dict`): What the trainer would take: `model`, `args` (of `planned_config`), `peft_config`,
            `quantization_config`.
        accelerate_config (`Path`, *optional*): The run's configuration of accelerate.
        gpus (`int`, *optional*): Its processes, by default those of `accelerate_config`.
        said: What a user has said of the run and its cards, `None` for what not: `hardware`, `steps`, `price`,
            [`LENGTHS`], [`SERVER`], and the fields of [`Assumptions`]; and `prompts`, the mean and the longest
            of a dataset.
    """
    accelerate = read_accelerate(accelerate_config)
    if parts["args"].on_cpu:
        accelerate["device"] = "cpu"
    named = said.get("hardware")
    hardware = chosen_hardware(named) if named else hardware_here(accelerate["device"])
    lengths = {name: said.get(name) for name in LENGTHS + SERVER}
    run = run_of_arguments(parts, accelerate, gpus=gpus, prompts=said.get("prompts"), **lengths)
    refuse_impossible(run)
    if (run.engine is None or not run.engine.gpus) and (strange := [name for name in SERVER if said.get(name)]):
        raise ValueError(
            f"--{strange[0]} is of a vLLM server, which this run has not. Remove it, or set vllm_mode=server."
        )
    values = {f.name: said[f.name] for f in fields(Assumptions) if said.get(f.name) is not None}
    max_steps = parts["args"].max_steps
    return Plan(
        run,
        hardware,
        of_measured(Assumptions(**values), hardware, set(values)),
        steps=said.get("steps") or (max_steps if max_steps > 0 else None),
        price=said.get("price"),
    )


def refuse_impossible(run: PlannedRun) -> None:
    """Refuse a mean that is longer than the longest, and engines into which the cards cannot be divided."""
    for what, mean, longest in (
        ("completion", run.completion_mean, run.completion_longest),
        ("prompt", run.prompt_mean, run.prompt_longest),
    ):
        if mean > longest:
            raise ValueError(
                f"--mean_{what} {mean:g} is more than the {longest} tokens of the longest {what}. Give at most these."
            )
    engine = run.engine
    if engine is not None and engine.gpus % engine.tensor_parallel:
        raise ValueError(
            f"--engine_tensor_parallel {engine.tensor_parallel} does not divide the {engine.gpus} cards of the vLLM "
            "server. Give a divisor, or other --engine_gpus."
        )
    if engine is not None and not engine.gpus and run.gpus % engine.tensor_parallel:
        raise ValueError(
            f"vllm_tensor_parallel_size={engine.tensor_parallel} does not divide the {run.gpus} cards, on which vLLM "
            "is beside the training. Give a divisor."
        )


def hardware_here(device: str) -> Hardware:
    """
    Returns which hardware to plan for where nobody says it: the card of this machine with the memory that it has, or,
    without one, an H100. A card of which the table has no rates is refused.
    """
    if device == "cpu":
        return HARDWARE["cpu"]
    if not torch.cuda.is_available():
        return HARDWARE["h100"]
    card, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    for name, known in HARDWARE.items():
        spelled = rf"\b{name.replace('rtx', 'rtx ?')}\b(?!.*(pcie|nvl))"  # those have other rates, and no NVLink
        if re.search(spelled, card, re.IGNORECASE) and abs(memory / known.memory - 1) < SAME_CARD:
            return replace(known, memory=memory)
    raise ValueError(
        f"The card of this machine, {card} with {memory / 1e9:.1f} GB, is none whose rates are known. Give `fire-opd "
        f"plan` --hardware with one of: {', '.join(HARDWARE)}, or with a file of `fire-opd plan --calibrate`."
    )
