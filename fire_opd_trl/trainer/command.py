"""`fire-opd train`: the arguments of examples/train_fire.py and of `accelerate launch` in one line."""

import argparse
import difflib

from ..preflight.packaged import accelerate_config, accelerate_configs, load_module, packaged_folder


def main(argv: list[str]) -> int:
    """Run `fire-opd train`: accelerate launches examples/train_fire.py with these arguments; returns the exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    script = packaged_folder("examples") / "train_fire.py"
    configs = accelerate_configs()
    parser = load_module(script).make_parser(prog="fire-opd train")
    parser.epilog = (
        f"Besides these: --accelerate_config NAME, one of {', '.join(configs)}, or the path of such a file; and every "
        "option of `accelerate launch`, for example --num_processes 2."
    )

    ours = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False)
    ours.add_argument("--accelerate_config")
    ours.add_argument("--config")
    options, rest = ours.parse_known_args(argv)
    # Only split here, not built: FiReOPDConfig judges windows by the number of processes, which is still one.
    launch_options = parser.parse_known_args(rest)[1]
    script_arguments = without(rest, launch_options)
    if options.config is not None:
        script_arguments = ["--config", options.config, *script_arguments]

    if options.accelerate_config is not None:
        config = accelerate_config(options.accelerate_config, parser)
        launch_options = ["--config_file", str(config), *launch_options]

    # --quiet: the traceback of the script is enough, accelerate need not add its own.
    launch, unknown = launch_command_parser().parse_known_args(
        ["--quiet", *launch_options, str(script), *script_arguments]
    )
    if unknown or launch.training_script != str(script):
        stray = unknown[0] if unknown else launch.training_script
        known = [f"--{name}" for name in vars(parser.parse_known_args([])[0])]
        close = difflib.get_close_matches(stray, known, n=1)
        parser.error(
            f"{stray} is an argument of neither the training nor `accelerate launch`."
            + (f" Did you mean {close[0]}?" if close else "")
        )
    launch_command(launch)
    return 0


def without(arguments: list[str], taken: list[str]) -> list[str]:
    """Returns `arguments` without those of `taken`, which stand in it in the same order."""
    left, taken = [], list(taken)
    for argument in arguments:
        if taken and argument == taken[0]:
            taken.pop(0)
        else:
            left.append(argument)
    return left
