"""`fire-opd <command>`: the library from a terminal."""

import argparse
import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Sequence

from . import __version__
from .spelling import did_you_mean
from .trainer.ending import REFUSED, Refusal, refusals


# verb: the module whose `main` runs it, and what it does
COMMANDS = {
    "demo": ("demo.run", "See it work: a tiny teacher, a tiny student, two minutes."),
    "data": ("data.command", "Make prompts from public sets, or check your own."),
    "plan": ("preflight.plan_arguments", "Say what a run needs and takes, and what fits, before it is run."),
    "preflight": ("preflight.arguments", "Find what is wrong with a training before the GPUs start."),
    "train": ("trainer.command", "Train a student, on one GPU or many."),
    "inspect": ("evaluation.inspect.command", "See what a run did to every token, in one page or here."),
    "evaluate": ("evaluation.evaluate.command", "Measure models on benchmarks or your own problems, with intervals."),
    "compare": ("evaluation.compare.command", "Compare methods on the demo's task, with intervals."),
    "recipes": ("preflight.recipes", "List the recipes for `train --config`, or print one with its sources."),
    "env": ("preflight.environment", "Say what a bug report needs: versions, GPUs, memory, settings."),
    "methods": ("cli", "List the methods, or explain one: its equation and arguments."),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `fire-opd` with the arguments `argv`, by default those of the process; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="fire-opd",
        usage="%(prog)s [--help] [--version] COMMAND ...",
        description="On-policy distillation for TRL: a student learns from what a teacher finds of\n"
        "its answers (FiRe-OPD: filter, then reweight; arXiv 2606.02684).",
        epilog="commands:\n"
        + "\n".join(f"  {verb:<11}{what}" for verb, (_, what) in COMMANDS.items())
        + "\n\n`fire-opd COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    verb = parser.parse_args(argv[:1] or ["--help"]).command
    if verb not in COMMANDS:
        parser.error(f"there is no command {verb!r}.{did_you_mean(verb, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    # Read when torch is loaded, here and in what a verb launches. On a CPU that other processes use too, threads that
    # spin while they wait for each other make a step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with refusals():
            if verb == "methods":
                return list_methods(argv[1:])
            return importlib.import_module(f".{COMMANDS[verb][0]}", __package__).main(argv[1:])
    except Refusal as error:
        print(f"{parser.prog} {verb}: error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(f"\n{parser.prog} {verb}: stopped by Ctrl-C.", file=sys.stderr)
        return 130


def list_methods(argv: list[str]) -> int:
    """Run `fire-opd methods`: print the docstrings of the recipes."""
    parser = argparse.ArgumentParser(prog="fire-opd methods", description=COMMANDS["methods"][1])
    parser.add_argument("name", nargs="?", metavar="NAME", help="one method, to be explained in full")
    chosen = parser.parse_args(argv).name

    from .methods import METHODS, NOTATION  # torch, which --help can do without

    if chosen not in (None, *METHODS):
        parser.error(f"there is no method {chosen!r}.{did_you_mean(chosen, METHODS)} Methods: {', '.join(METHODS)}.")
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
