"""`fire-opd <command>`: the library from a terminal."""

import argparse
import importlib
import inspect
import sys
import textwrap
from collections.abc import Sequence

from . import __version__
from .methods import METHODS, NOTATION


# verb: the module whose `main` runs it, and what it does
COMMANDS = {
    "train": ("trainer.command", "Train a student: the arguments of examples/train_fire.py and of accelerate launch."),
    "preflight": ("preflight.command", "Find what is wrong before the GPUs start: a table and an exit code."),
    "demo": ("demo.run", "Distil the embedded teacher into the embedded student, on the CPU, in minutes."),
    "compare": (
        "evaluation.compare.command",
        "Run methods side by side on the embedded task, and report which differ.",
    ),
    "methods": ("cli", "List the distillation methods; with a name, its equation, source, defaults and arguments."),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `fire-opd` with the arguments `argv`, by default those of the process; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="fire-opd",
        usage="%(prog)s [--help] [--version] COMMAND ...",
        description="On-policy distillation for TRL: filter trajectories, then reweight tokens (arXiv 2606.02684).",
        epilog="commands:\n"
        + "\n".join(f"  {verb:<11}{what}" for verb, (_, what) in COMMANDS.items())
        + "\n\n`fire-opd COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    verb = parser.parse_args(argv[:1] or ["--help"]).command
    if verb == "methods":
        return list_methods(argv[1:])
    return importlib.import_module(f".{COMMANDS[verb][0]}", __package__).main(argv[1:])


def list_methods(argv: list[str]) -> int:
    """Run `fire-opd methods`: print the docstrings of the recipes."""
    parser = argparse.ArgumentParser(prog="fire-opd methods", description=COMMANDS["methods"][1])
    parser.add_argument("name", nargs="?", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    chosen = parser.parse_args(argv).name
    for name, recipe in METHODS.items():
        knobs = ", ".join(f"{knob.name}={knob.default!r}" for knob in inspect.signature(recipe).parameters.values())
        text = inspect.getdoc(recipe) or ""
        if chosen in (None, name):
            print(f"{name}({knobs})\n" + textwrap.indent(text if chosen else text.split("\n")[0].rstrip(":"), "    "))
    if chosen:
        print("\n" + textwrap.indent(NOTATION, "    "))
    return 0


if __name__ == "__main__":
    sys.exit(main())
