"""`fire-opd preflight`: its own arguments, beside those of `fire-opd train`. Light: its help is there at once."""

import argparse

from .packaged import accelerate_config, accelerate_configs, training_script
from .recipes import read_recipe, without_config


def main(argv: list[str]) -> int:
    """
    Run `fire-opd preflight`: find what is wrong before the GPUs start. The exit code is 1 if there is a fault, and 2
    for misuse.
    """
    configs = accelerate_configs()
    parser = argparse.ArgumentParser(
        prog="fire-opd preflight",
        usage="%(prog)s [--config RECIPE] [--with-models] [--ARGUMENT VALUE ...]",
        description="Find what is wrong before the GPUs start: the arguments of `train`, a table, an exit code.",
        epilog="All other arguments are those of `fire-opd train`. Exit code 0: training can start; 1: it cannot.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--accelerate_config", metavar="NAME", help=f"of the planned run: {', '.join(configs)}, or a file"
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="INT", help="of the planned run, by default that of accelerate_config"
    )
    parser.add_argument(
        "--with-models", action="store_true", help="load the models, and compare them on a few answers of the student"
    )
    options, rest = parser.parse_known_args(argv)
    try:
        recipe, _ = without_config(rest)
        if recipe is not None:
            read_recipe(recipe)  # before the imports: what is wrong in it is said at once
    except ValueError as error:
        parser.error(str(error))
    config = None
    if options.accelerate_config is not None:
        config = accelerate_config(options.accelerate_config, parser)

    from .command import run  # transformers, seconds

    script = training_script()
    try:
        if recipe is not None:
            script.make_parser(parser.prog).take_recipe(recipe)  # a key that is no argument
    except ValueError as error:
        parser.error(str(error))
    return run(script, rest, config, options.num_processes, options.with_models)
