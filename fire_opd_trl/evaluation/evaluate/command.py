"""
`fire-opd evaluate`: sample answers of models to problems, grade them, and say how many are right, with intervals.

The samples, their logs, results.json and a page are in the output folder. The same command goes on where it was
interrupted; with another model or task it adds to what is there.
"""

import argparse
import inspect
import shlex
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from ...spelling import did_you_mean


PARTIAL = 3
NOT_OPTIONS = ("models", "tasks", "command")
HELP = {
    "data_dir": "where the files of the benchmarks lie (docs/benchmarks.md says how to get them)",
    "n": "samples of each problem",
    "temperature": "0 takes the likeliest token",
    "top_p": "1 samples from the whole distribution",
    "max_new_tokens": "where a completion is cut, and counted as truncated",
    "seed": "each sample of each problem has a seed made of this one",
    "prompt_style": "boxed, authors or none (default: the task's own)",
    "thinking": "on or off: what a chat template that knows enable_thinking is told",
    "backend": "transformers or vllm",
    "limit": "the first so many problems of each task",
    "output_dir": "the folder of the results",
    "batch_size": "completions sampled at once; it changes no sample",
    "dtype": "of the weights; auto is what the model's config names",
    "device": "for example cuda:1 (default: the GPU, if there is one)",
    "graders": "processes that grade",
    "sandbox": "bubblewrap or docker: where code that the model wrote runs; without it code tasks are refused",
    "evalplus_python": "the Python of an environment with evalplus, for tasks of code",
    "vllm_args": "further arguments of `vllm serve`, for example '--tensor-parallel-size 2'",
    "vllm_url": "the address of a vLLM server that runs already, in place of one of its own",
    "trust_remote_code": "on or off: whether Python files in the model's folder may run",
    "overwrite": "throw away what is there of these models and tasks, and run it again",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fire-opd evaluate",
        usage="%(prog)s --model DIR [DIR ...] --tasks TASK,... [--OPTION VALUE]",
        description=textwrap.fill((__doc__ or "").split(": ", 1)[1].replace("\n", " "), 78),
        epilog="exit codes: 0 complete; 3 partial, and the same command goes on; 2 refused; 1 failed.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--model", nargs="+", action="extend", metavar="DIR", help="folders of models, or names on the Hub")
    add("--tasks", metavar="TASKS", help="names, or .jsonl files with problem and answer, separated by commas")
    add("--config", type=Path, metavar="YAML", help="a file with any of these options; the command line wins")
    for name, default in defaults().items():
        shown = (
            HELP[name] if default in (None, "") or isinstance(default, bool) else f"{HELP[name]} (default: {default})"
        )
        if name == "overwrite":
            add("--overwrite", action="store_true", help=shown)
        else:
            add(f"--{name}", type=partial(read, name), metavar=kind_of(name).upper(), help=shown)
    return parser


def defaults() -> dict[str, Any]:
    """Returns the options of `evaluate` and what they are if nobody says."""
    from .run import evaluate

    parameters = inspect.signature(evaluate).parameters
    return {name: one.default for name, one in parameters.items() if name not in NOT_OPTIONS}


def kind_of(name: str) -> str:
    """Returns what kind of value an option has: a number, a switch, or text."""
    default = defaults()[name]
    if isinstance(default, bool):
        return "on|off"
    if name == "limit" or isinstance(default, int):
        return "int"
    return "float" if isinstance(default, float) else "text"


def read(name: str, value: Any) -> Any:
    """Returns an option's value from text, or from what YAML has read. Raises `ArgumentTypeError` if it is none."""
    kind = kind_of(name)
    text = str(value).strip()
    if value is None:
        return None
    if kind == "on|off":
        if text.lower() in ("on", "true", "yes"):
            return True
        if text.lower() in ("off", "false", "no"):
            return False
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off.")
    if kind == "text":
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind == 'int' else ''}number.") from None


def from_yaml(path: Path) -> dict[str, Any]:
    """Returns the options of a file. Refuses names that are no options."""
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: it cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {path}: it must hold options, one a line: `n: 8`.")
    known = ["model", "tasks", *defaults()]
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ValueError(f"--config {path}: there is no option {name!r}.{hint} Options: {', '.join(known)}.")
        if name in ("model", "tasks"):
            found[name] = [str(one) for one in value] if isinstance(value, list) else str(value).split(",")
            continue
        try:
            found[name] = read(name, value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--config {path}: {name}: {error}") from error
    return found


def main(argv: list[str] | None = None) -> int:
    """Run `fire-opd evaluate`; the exit code is 0 of whole results and 3 of partial ones."""
    argv = sys.argv[1:] if argv is None else argv
    asked = vars(build_parser().parse_args(argv))
    config = asked.pop("config", None)
    options = {**(from_yaml(config) if config is not None else {}), **asked}
    models, tasks = options.pop("model", []), options.pop("tasks", "")

    from .run import Interrupted, evaluate

    stopped = False
    try:
        results = evaluate(models, tasks, **options, command=shlex.join(["fire-opd", "evaluate", *argv]))
    except Interrupted as error:
        results, stopped = error.results, True
    return report(results, Path(options.get("output_dir", defaults()["output_dir"])), stopped)


def report(results: dict[str, Any], folder: Path, stopped: bool) -> int:
    """Prints the tables, where the files are, and what is missing; returns the exit code."""
    from .terminal import in_terminal

    if results["entries"]:
        print("\n" + in_terminal(results))
    print(f"\n{folder / 'results.html'}\n{folder / 'results.json'}\ninspect view --log-dir {folder / 'logs'}")
    if results["status"] == "complete" and not stopped:
        return 0
    why = "interrupted" if stopped else "some samples ended in an error (inspect view shows it)"
    print(f"\nfire-opd evaluate: partial: {why}. The same command runs what is missing.", file=sys.stderr)
    return PARTIAL


if __name__ == "__main__":
    raise SystemExit(main())
