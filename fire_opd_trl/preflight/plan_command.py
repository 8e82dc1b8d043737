"""What `fire-opd plan` does: it reads the arguments of a training, and says what they need and take."""

import argparse
import logging
import shutil
import tempfile
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers

from .command import planned_config
from .findings import Checked
from .packaged import strangers
from .plan.fit import Plan
from .plan.hardware import Assumptions, chosen_hardware, of_measured
from .plan.report import machine, markdown, text
from .plan.run import read_accelerate, run_of_arguments
from .plan.shapes import known_config


LENGTHS = ("mean_completion", "mean_prompt", "longest_prompt", "engine_gpus")  # what a user says of a run


def run(script: Any, rest: list[str], accelerate_config: Path | None, options: argparse.Namespace, parser: Any) -> int:
    """Plan, print, and return the exit code: 0 if the run fits, 1 if it does not."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        plan = plan_of(script, rest, accelerate_config, options)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    if options.json:
        print(machine(plan, options.fit))
    elif options.markdown:
        print(markdown(plan, options.fit))
    else:
        print(text(plan, options.sources, options.fit))
    return 0 if plan.fits else 1


def plan_of(script: Any, rest: list[str], accelerate_config: Path | None, options: argparse.Namespace) -> Plan:
    """
    Returns the plan of a training. What is wrong with its arguments is a `ValueError`.

    Args:
        script (`module`): examples/train_fire.py, which knows the arguments.
        rest (`list[str]`): The arguments of the training.
        accelerate_config (`Path`, *optional*): The run's configuration of accelerate.
        options (`Namespace`): The command's own arguments.
    """
    hardware = chosen_hardware(options.hardware)
    accelerate = read_accelerate(accelerate_config)
    faults: list[str] = []
    gpus = options.num_processes or accelerate["gpus"]
    arguments = script.make_parser("fire-opd plan", planned_config(gpus, faults))
    if not torch.cuda.is_available():
        rest = [*rest, "--use_cpu", "true"]  # planning needs no GPU
    script_args, args, model_args, _, unknown = arguments.parse_args_and_config(rest, return_remaining_strings=True)
    if unknown:
        from accelerate.commands.launch import launch_command_parser  # brings DeepSpeed, and what it has to say

        unknown = strangers(unknown, launch_command_parser())
    if unknown:
        faults.append(arguments.unknown(unknown))
    if faults:
        raise ValueError(" ".join(faults))
    if not model_args.model_name_or_path:
        raise ValueError("There is no student. Set --model_name_or_path, or --config with a recipe.")
    checked, given = Checked(), {name: getattr(options, name) for name in LENGTHS}
    parts = {"model": model_args.model_name_or_path, "args": args, **script.model_arguments(args, model_args, checked)}
    checked.refuse()
    with tempfile.TemporaryDirectory() as folder:
        planned = run_of_arguments(from_known_models(parts, Path(folder)), accelerate, gpus=gpus, **given)
    values = {f.name: getattr(options, f.name) for f in fields(Assumptions) if getattr(options, f.name) is not None}
    return Plan(
        planned,
        hardware,
        of_measured(Assumptions(**values), hardware, set(values)),
        steps=options.steps or (args.max_steps if args.max_steps > 0 else None),
        price=options.price,
    )


def from_known_models(parts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """
    Returns the arguments with folders in place of the names of well-known models, so that the Hub is not asked for
    them. Each folder has a configuration alone.
    """
    args = parts["args"]

    def local(name: Any) -> Any:
        if isinstance(name, dict):
            return {key: local(value) for key, value in name.items()}
        file = known_config(name) if isinstance(name, str) and not Path(name).is_dir() else None
        if file is None:
            return name
        place = folder / file.stem.replace("--", "/")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / "config.json")
        return str(place)

    args.teacher_model_name_or_path = local(args.teacher_model_name_or_path)
    args.reference_model_name_or_path = local(args.reference_model_name_or_path)
    return {**parts, "model": local(parts["model"])}
