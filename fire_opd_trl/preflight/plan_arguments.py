"""`fire-opd plan`: its own arguments, beside those of `fire-opd train`. Light: its help is there at once."""

import argparse
import math

from .packaged import accelerate_config, accelerate_configs, training_script
from .plan.hardware import HARDWARE, assumption_fields


EPILOG = """
All other arguments are those of `fire-opd train`; neither a dataset is needed nor
weights. Exit code 0: it fits; 1: it does not; 2: misuse.

For example:
  fire-opd plan --config strong-to-weak --accelerate_config zero3 --steps 165
  fire-opd plan --config strong-to-weak --accelerate_config zero3 --fit
  fire-opd plan --calibrate --output mine.yaml
  torchrun --nproc_per_node 8 -m fire_opd_trl.cli plan --calibrate
"""


WHOLE = (
    "steps",
    "num_processes",
    "mean_completion",
    "mean_prompt",
    "longest_prompt",
    "engine_gpus",
    "engine_tensor_parallel",
)
MAY_BE_0 = ("overlap", "decode_overhead", "eager_layer", "forward_overhead", "spread", "reserve")


def out_of_range(name: str, value: float) -> str:
    """Returns what the number of an option must be, where `value` is not so; else nothing."""
    share = name.endswith("_fraction") or name == "overlap"
    low, most = (0 if name in MAY_BE_0 else math.ulp(0.0)), (1.0 if share else math.inf)
    if math.isfinite(value) and low <= value <= most:
        return ""
    from_0 = "from 0" if name in MAY_BE_0 else "above 0"
    return f"{from_0}, at most 1" if share else f"{from_0}{' on' * (name in MAY_BE_0)}"


def main(argv: list[str]) -> int:
    """
    Run `fire-opd plan`: what a run needs and takes, from configurations alone. The exit code is 1 if it does not fit,
    and 2 for misuse.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    if options.calibrate:
        if rest:
            parser.error(f"--calibrate measures this machine, and takes no {rest[0]}: only --output.")

        from .plan.calibrate import calibrate  # torch

        try:
            return calibrate(options.output)
        except OSError as error:
            parser.error(f"--output {options.output or 'hardware.yaml'} cannot be written: {error}")
    if options.output is not None:
        parser.error("--output names the file of --calibrate. A plan is printed: redirect it with > FILE.")
    for name in (*WHOLE, "price", "engine_fraction", *(name for name, _, _ in assumption_fields())):
        if (value := getattr(options, name)) is not None and (wanted := out_of_range(name, value)):
            parser.error(f"--{name} is {value}. Give a number {wanted}.")
    config = None
    if options.accelerate_config is not None:
        config = accelerate_config(options.accelerate_config, parser)

    from .plan_command import run  # transformers, seconds

    return run(training_script(), rest, config, options, parser)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's own arguments."""
    configs = accelerate_configs()
    parser = argparse.ArgumentParser(
        prog="fire-opd plan",
        usage="%(prog)s [--config RECIPE] [--hardware NAME] [--ARGUMENT VALUE ...]",
        description="What a run needs and takes, from configurations alone: memory of a card in each\n"
        "phase, seconds of a step, hours of the run, what fits, and what is cheapest.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        help=f"the cards: {', '.join(HARDWARE)}, or a file of --calibrate; by default this machine's, or h100",
    )
    parser.add_argument(
        "--accelerate_config", metavar="NAME", help=f"of the planned run: {', '.join(configs)}, or a file"
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="INT", help="cards of the training, by default of accelerate_config"
    )
    parser.add_argument("--fit", action="store_true", help="propose settings: the fastest that fit, as YAML")
    parser.add_argument("--steps", type=int, metavar="INT", help="optimizer steps of the run, by default max_steps")
    parser.add_argument("--price", type=float, metavar="X", help="money for a card and hour")
    parser.add_argument("--sources", action="store_true", help="say where each assumption comes from")
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--json", action="store_true", help="for machines: bytes and seconds")
    shapes.add_argument("--markdown", action="store_true", help="for a page")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine instead, in a minute")
    parser.add_argument("--output", metavar="FILE", help="of --calibrate, by default hardware.yaml")
    assumed = parser.add_argument_group("what nobody has said")
    for name, meaning in (
        ("mean_completion", "tokens of a completion in the mean (a quarter of the longest)"),
        ("mean_prompt", "tokens of a prompt in the mean, those of images too (256)"),
        ("longest_prompt", "tokens of the longest one (max_prompt_length, or 1024)"),
        ("engine_gpus", "cards of the vLLM server (1)"),
        ("engine_tensor_parallel", "cards of each of its engines (1)"),
    ):
        assumed.add_argument(f"--{name}", type=int, metavar="INT", help=meaning)
    assumed.add_argument("--engine_fraction", type=float, metavar="X", help="share of a card that it takes (0.9)")
    for name, default, meaning in assumption_fields():
        assumed.add_argument(f"--{name}", type=float, metavar="X", help=f"{meaning} ({default:g})")
    return parser
