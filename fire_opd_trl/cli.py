"""`fire-opd <command>`: the library from a terminal."""

import argparse
import difflib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from . import METHODS, __version__


def train(argv: list[str]) -> int | None:
    """Train a student: the arguments of examples/train_fire.py and of accelerate launch."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    script = packaged_folder("examples") / "train_fire.py"
    configs = accelerate_configs()
    parser = loaded_module(script).make_parser(prog="fire-opd train")
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


def preflight(argv: list[str]) -> int | None:
    """Find what is wrong before the GPUs start: the arguments of `train`, a table, an exit code."""
    configs = accelerate_configs()
    parser = argparse.ArgumentParser(
        prog="fire-opd preflight",
        usage="%(prog)s [--config FILE] [--ARGUMENT VALUE ...] [--with-models]",
        description=inspect.getdoc(preflight),
        epilog="All other arguments are those of `fire-opd train`. Exit code 0: training can start; 1: it cannot.",
        allow_abbrev=False,
    )
    parser.add_argument("--accelerate_config", help=f"of the planned run: {', '.join(configs)}, or a file")
    parser.add_argument("--num_processes", type=int, help="of the planned run, by default that of accelerate_config")
    parser.add_argument(
        "--with-models", action="store_true", help="load the models, and compare them on a few answers of the student"
    )
    options, rest = parser.parse_known_args(argv)
    config = None
    if options.accelerate_config is not None:
        config = accelerate_config(options.accelerate_config, parser)

    from .preflight.command import run

    script = loaded_module(packaged_folder("examples") / "train_fire.py")
    return run(script, rest, config, options.num_processes, options.with_models)


def demo(argv: list[str]) -> int | None:
    """Distil the embedded teacher into the embedded student, on the CPU, in minutes."""
    from .demo.run import main

    return main(argv)


def compare(argv: list[str]) -> int | None:
    """Run methods side by side on the embedded task, over seeds, and report which differ."""
    from .evaluation.compare.command import main

    return main(argv)


def methods(argv: list[str]) -> int | None:
    """List the distillation methods; with a name, its equation, source, defaults and arguments."""
    parser = argparse.ArgumentParser(prog="fire-opd methods", description=methods.__doc__)
    parser.add_argument("name", nargs="?", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    chosen = parser.parse_args(argv).name
    for name, recipe in METHODS.items():
        knobs = ", ".join(f"{knob.name}={knob.default!r}" for knob in inspect.signature(recipe).parameters.values())
        text = inspect.getdoc(recipe) or ""
        if chosen in (None, name):
            print(f"{name}({knobs})\n" + textwrap.indent(text if chosen else text.split("\n")[0].rstrip(":"), "    "))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "preflight": preflight,
    "demo": demo,
    "compare": compare,
    "methods": methods,
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `fire-opd` with the arguments `argv`, by default those of the process; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="fire-opd",
        usage="%(prog)s [--help] [--version] COMMAND ...",
        description="On-policy distillation for TRL: filter trajectories, then reweight tokens (arXiv 2606.02684).",
        epilog="commands:\n"
        + "\n".join(f"  {name:<11}{command.__doc__}" for name, command in COMMANDS.items())
        + "\n\n`fire-opd COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    command = parser.parse_args(argv[:1] or ["--help"]).command
    return COMMANDS[command](argv[1:])


def packaged_folder(name: str) -> Path:
    """`configs` or `examples`: inside the installed package, and beside it in a checkout."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def accelerate_configs() -> dict[str, Path]:
    """The accelerate configurations of this package, by name."""
    return {file.stem: file for file in sorted((packaged_folder("configs") / "accelerate").glob("*.yaml"))}


def accelerate_config(name: str, parser: argparse.ArgumentParser) -> Path:
    """The file of a configuration that is given by name or path."""
    config = accelerate_configs().get(name, Path(name))
    if not config.is_file():
        parser.error(f"--accelerate_config {name} is neither a file nor one of: {', '.join(accelerate_configs())}.")
    return config


def loaded_module(file: Path) -> ModuleType:
    """The module in a file, wherever the file lies."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without(arguments: list[str], taken: list[str]) -> list[str]:
    """`arguments` without those of `taken`, which stand in it in the same order."""
    left, taken = [], list(taken)
    for argument in arguments:
        if taken and argument == taken[0]:
            taken.pop(0)
        else:
            left.append(argument)
    return left


if __name__ == "__main__":
    sys.exit(main())
