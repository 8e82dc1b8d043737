"""What `fire-opd plan` does: it reads the arguments of a training, and says what they need and take."""

import argparse
import difflib
import logging
import warnings
from pathlib import Path
from typing import Any

import transformers

from .command import planned_config, unknown_to_both
from .findings import Checked
from .plan.fit import Plan
from .plan.of_arguments import plan_of_arguments
from .plan.report import machine, markdown, text
from .plan.run import read_accelerate


def run(script: Any, rest: list[str], accelerate_config: Path | None, options: argparse.Namespace, parser: Any) -> int:
    """
    Plan, print, and return the exit code: 0 if the run fits, 1 if it does not.

    Args:
        script (`module`): examples/train_fire.py, which knows the arguments of a training.
        rest (`list[str]`): The arguments of the training.
        accelerate_config (`Path`, *optional*): The run's configuration of accelerate.
        options (`Namespace`): The command's own arguments.
        parser (`ArgumentParser`): It refuses what is wrong.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        refuse_near_misses(rest, options)
        plan = plan_of_command(script, rest, accelerate_config, options)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    if options.json:
        print(machine(plan, options.fit))
    elif options.markdown:
        print(markdown(plan, options.fit))
    else:
        print(text(plan, options.sources, options.fit))
    return 0 if plan.fits else 1


def refuse_near_misses(rest: list[str], options: argparse.Namespace) -> None:
    """Refuse a word that is nearly an option of this command, which the training's parser could not tell."""
    for word in rest:
        name = word.split("=")[0].removeprefix("--")
        if word.startswith("--") and (close := difflib.get_close_matches(name, vars(options), n=1, cutoff=0.85)):
            raise ValueError(f"There is no argument --{name}. Did you mean '--{close[0]}'?")


def plan_of_command(script: Any, rest: list[str], accelerate_config: Path | None, options: argparse.Namespace) -> Plan:
    """Returns the plan of the arguments of a training. What is wrong with them is a `ValueError`."""
    faults: list[str] = []
    gpus = options.num_processes or read_accelerate(accelerate_config)["gpus"]
    arguments = script.make_parser("fire-opd plan", planned_config(gpus, faults))
    _, args, model_args, _, unknown = arguments.parse_args_and_config(rest, return_remaining_strings=True)
    if unknown := unknown_to_both(unknown):
        faults.append(arguments.unknown(unknown))
    if faults:
        raise ValueError(" ".join(faults))
    if not model_args.model_name_or_path:
        raise ValueError("There is no student. Set --model_name_or_path, or --config with a recipe.")
    checked = Checked()
    parts = {"model": model_args.model_name_or_path, "args": args, **script.model_arguments(args, model_args, checked)}
    checked.refuse()
    return plan_of_arguments(parts, gpus=gpus, **{**vars(options), "accelerate_config": accelerate_config})
