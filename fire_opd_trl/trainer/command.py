"""`fire-opd train`: the arguments of examples/train_fire.py and of `accelerate launch` in one line."""

import argparse
import logging
import os
import sys
from pathlib import Path

import yaml

from ..preflight.packaged import (
    accelerate_config,
    accelerate_configs,
    load_module,
    packaged_folder,
    recipe,
    strangers,
)
from ..preflight.recipes import without_config
from .ending import COMMAND, how_to_go_on
from .launched import Launched


EPILOG = """
Besides these:
  --accelerate_config NAME, or FILE.yaml: where it runs. NAME is one of
      {configs}
  every option of `accelerate launch`, for example --num_processes 2

For example:
  fire-opd train --accelerate_config zero3 --config strong-to-weak \\
      --dataset_name prompts.jsonl --output_dir outputs/fire
  fire-opd train --help | less
"""


def main(argv: list[str]) -> int:
    """Run `fire-opd train`: accelerate launches examples/train_fire.py with these arguments; returns the exit code."""
    script = packaged_folder("examples") / "train_fire.py"
    parser = load_module(script).make_parser(prog="fire-opd train")
    parser.usage = "%(prog)s [--accelerate_config NAME] [--config RECIPE] [--ARGUMENT VALUE ...]"
    parser.epilog = EPILOG.format(configs=", ".join(accelerate_configs()))

    ours = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False)
    ours.add_argument("--accelerate_config")
    try:
        config, rest = without_config(argv)
        if config is not None:
            config = str(recipe(config))
            parser.take_recipe(config)
    except ValueError as error:
        parser.error(str(error))
    options, rest = ours.parse_known_args(rest)
    # Only split here, not built: FiReOPDConfig judges windows by the number of processes, which is still one.
    arguments, launch_options = parser.parse_known_args(rest)
    script_arguments = without(rest, launch_options)
    if config is not None:
        script_arguments = ["--config", config, *script_arguments]

    if options.accelerate_config is not None:
        where = accelerate_config(options.accelerate_config, parser)
        launch_options = ["--config_file", str(where), *launch_options]

    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import patch_environment

    launcher = launch_command_parser()
    if stray := strangers(launch_options, launcher):
        parser.error(parser.unknown(stray))
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # it lists the defaults that it takes
    launch, unknown = launcher.parse_known_args([*launch_options, str(script), *script_arguments])
    if launch.gpu_ids is None and takes_first_card(launch.config_file):
        launch.gpu_ids = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if unknown or launch.training_script != str(script):
        stray = unknown[0] if unknown else launch.training_script
        parser.error(
            f"{stray} is an argument of neither the training nor `accelerate launch`.{parser.did_you_mean(stray)}"
        )
    if missing := unknown_of_machines(launch.config_file, launch):
        parser.error(missing)
    launched = Launched(lambda: launch_command(launch))
    try:
        with patch_environment(**{COMMAND: parser.prog}):  # the script leaves the last word to this process
            code = launched.run()
    except (OSError, ValueError, ImportError) as error:  # of the launcher, which has started nothing
        parser.error(str(error))
    if what := launched.what_happened():
        then = how_to_go_on(arguments.output_dir or "trainer_output")
        print(f"\n{parser.prog}: {what} {then}", file=sys.stderr)
    return code


def takes_first_card(config_file: str | None) -> bool:
    """
    Returns whether a configuration is for one process that has named no card of its own. It takes the first one that
    it may see: TRL refuses one process with several, and accelerate would put card 0 in the place of one that
    CUDA_VISIBLE_DEVICES names.
    """
    config = yaml.safe_load(Path(config_file).read_text(encoding="utf-8")) if config_file else {}
    return config.get("distributed_type") in ("NO", False) and str(config.get("gpu_ids", "all")) in ("all", "0")


def unknown_of_machines(config_file: str | None, launch: argparse.Namespace) -> str:
    """
    Returns what a launch on several machines is not told, which torchrun would wait for in vain: the rank of this one,
    and where the first one is. An accelerate configuration may hold both.
    """
    config = yaml.safe_load(Path(config_file).read_text(encoding="utf-8")) if config_file else {}
    given = {name: value for name, value in vars(launch).items() if value is not None}
    given = {**config, **given}
    if int(given.get("num_machines") or 1) < 2:
        return ""
    needed = {"machine_rank": "0 on the first machine, 1 on the next", "main_process_ip": "the first one's address"}
    missing = [f"--{name} ({what})" for name, what in needed.items() if given.get(name) is None]
    return f"{given['num_machines']} machines need {' and '.join(missing)}." if missing else ""


def without(arguments: list[str], taken: list[str]) -> list[str]:
    """Returns `arguments` without those of `taken`, which stand in it in the same order."""
    left, taken = [], list(taken)
    for argument in arguments:
        if taken and argument == taken[0]:
            taken.pop(0)
        else:
            left.append(argument)
    return left
