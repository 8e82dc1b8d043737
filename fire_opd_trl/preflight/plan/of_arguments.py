"""A plan of the arguments of a training: `fire-opd plan` and preflight make it."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .fit import Plan
from .hardware import HARDWARE, Assumptions, chosen_hardware, of_measured
from .run import read_accelerate, run_of_arguments


LENGTHS = ("mean_completion", "mean_prompt", "longest_prompt", "engine_gpus")  # what a user says of a run


def plan_of_arguments(
    parts: dict[str, Any], accelerate_config: Path | None, gpus: int | None = None, **said: Any
) -> Plan:
    """
    Returns the plan of a training. What cannot be planned is a `ValueError`, and what cannot be read an `OSError`.

    Args:
        parts (`dict`): What the trainer would take: `model`, `args`, `peft_config`, `quantization_config`.
        accelerate_config (`Path`, *optional*): The run's configuration of accelerate.
        gpus (`int`, *optional*): Its processes, by default those of `accelerate_config`.
        said: What a user has said of the run and its cards, `None` for what not: `hardware`, `steps`, `price`,
            [`LENGTHS`], and the fields of [`Assumptions`].
    """
    accelerate = read_accelerate(accelerate_config)
    hardware = chosen_hardware(said.get("hardware") or hardware_here(accelerate["device"]))
    lengths = {name: said.get(name) for name in LENGTHS}
    run = run_of_arguments(parts, accelerate, gpus=gpus, **lengths)
    values = {f.name: said[f.name] for f in fields(Assumptions) if said.get(f.name) is not None}
    max_steps = parts["args"].max_steps
    return Plan(
        run,
        hardware,
        of_measured(Assumptions(**values), hardware, set(values)),
        steps=said.get("steps") or (max_steps if max_steps > 0 else None),
        price=said.get("price"),
    )


def hardware_here(device: str) -> str:
    """Returns which hardware to plan for where nobody says it: the card of this machine, if the table has it."""
    if device == "cpu":
        return "cpu"
    card = torch.cuda.get_device_name().lower().replace(" ", "") if torch.cuda.is_available() else ""
    return next((name for name in HARDWARE if name in card), "h100")
