"""
`fire-opd evaluate`: sample answers of models to problems, grade them, and say how many are right, with intervals.

The samples, their logs, results.json and a page are in the output folder. The same command goes on where it was
interrupted; with another model or task it adds to what is there.
"""

import argparse
import json
import shlex
import sys
import textwrap
import warnings
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ...spelling import did_you_mean
from ...trainer.ending import Refusal, refusals
from ..inspect.visible import visible
from .settings import Settings, kind_of


PARTIAL = 3


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
    for one in fields(Settings):
        said, default = one.metadata["help"], one.default
        if one.name == "overwrite":
            add("--overwrite", action="store_true", help=said)
            continue
        kind = kind_of(one.name)
        shown = said if kind is bool or default in (None, "") else f"{said} (default: {default})"
        name = "ON|OFF" if kind is bool else kind.__name__.upper().replace("STR", "TEXT")
        add(f"--{one.name}", type=partial(read, one.name), metavar=name, help=shown)
    return parser


def read(name: str, value: Any) -> Any:
    """Returns a setting's value from text, or from what YAML has read. Raises `ArgumentTypeError` if it is none."""
    kind, text = kind_of(name), str(value).strip()
    if isinstance(value, list | dict):
        raise argparse.ArgumentTypeError(f"{value!r} is not one value.")
    switches = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if kind is bool:
        if text.lower() not in switches:
            raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off.")
        return switches[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number.") from None


def from_yaml(path: Path) -> dict[str, Any]:
    """Returns the options of a file. Refuses names that are no options."""
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"--config {path}: it cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {path}: it must hold options, one a line: `n: 8`.")
    known = ["model", "tasks", *(one.name for one in fields(Settings))]
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ValueError(f"--config {path}: there is no option {name!r}.{hint} Options: {', '.join(known)}.")
        if name == "overwrite":
            raise ValueError(f"--config {path}: overwrite is for the command line: a file would overwrite each time.")
        if value is None:  # `tasks:` with nothing behind it
            continue
        try:
            if name in ("model", "tasks"):
                names = value if isinstance(value, list) else str(value).split(",")
                if wrong := [one for one in [value, *names] if one is None or isinstance(one, dict)]:
                    raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no name.")
                found[name] = [str(one) for one in names]
            else:
                found[name] = read(name, value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--config {path}: {name}: {error}") from error
    return found


def main(argv: list[str] | None = None) -> int:
    """Run `fire-opd evaluate`; the exit code is 0 of whole results and 3 of partial ones."""
    try:
        with refusals(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest: print(visible(f"Warning: {message}"), file=sys.stderr)
            return run(sys.argv[1:] if argv is None else argv)
    except Refusal as error:  # names of files are in it, and what libraries say
        raise Refusal(visible(" ".join(str(error).split()))) from error


def run(argv: list[str]) -> int:
    """Reads the options, evaluates and reports; `main` makes its refusals harmless for a terminal."""
    rest = iter(argv)  # argparse would take `--enforce-eager` behind --vllm_args for an option of its own
    joined = [f"{one}={next(rest, '')}" if one == "--vllm_args" else one for one in rest]
    asked = vars(build_parser().parse_args(joined))
    config = asked.pop("config", None)
    options = {**(from_yaml(config) if config is not None else {}), **asked}
    models, tasks = options.pop("model", []), options.pop("tasks", "")

    from .run import DiskFull, Interrupted, evaluate

    stopped, overwrite = False, "--overwrite" in joined
    # The command that is shown goes on with what is there.
    shown = shlex.join(["fire-opd", "evaluate", *(one for one in joined if one != "--overwrite")])
    try:
        results = evaluate(models, tasks, **options, command=shown)
    except Interrupted as error:
        results, stopped = error.results, True
    except DiskFull as error:
        print(visible(f"fire-opd evaluate: error: {error}"), file=sys.stderr)
        return 1
    return report(results, Path(options.get("output_dir", Settings.output_dir)), stopped, overwrite)


def report(results: dict[str, Any], folder: Path, stopped: bool, overwrite: bool = False) -> int:
    """Prints the tables, where the files are, and what is missing; returns the exit code."""
    from .terminal import in_terminal

    if results["entries"]:
        print("\n" + in_terminal(results))
    logs = shlex.quote(str(folder / "logs"))
    page = f"page: {folder / 'results.html'}  (open it in a browser)"
    for line in ("", page, f"numbers: {folder / 'results.json'}", f"every sample: inspect view --log-dir {logs}"):
        print(visible(line))
    if results["status"] == "complete" and not stopped:
        return 0
    why = "interrupted" if stopped else f"some samples ended in an error{first_error(folder)}"
    same = "The same command, without --overwrite," if overwrite else "The same command"
    print(f"\nfire-opd evaluate: partial: {why}. {same} runs what is missing.", file=sys.stderr)
    return PARTIAL


def first_error(folder: Path) -> str:
    """Returns what the first sample that ended in an error says of it, in one line."""
    for path in sorted(folder.glob("samples/*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row["stop"] == "error":
                    said = visible(" ".join(row["text"].split()))
                    return f" ({path.name}, {visible(row['problem'])}: {said[:300]}; inspect view shows all)"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
