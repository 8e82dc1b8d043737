"""
`fire-opd inspect`: see what a run did to every token, in one page or in the terminal.

The page is one file that needs no server and no network: learning curves, what the watchdogs said, scores and the cut,
weights by type of token, and the recorded trajectories, each token shaded by its weight. log_rollouts=16 in a
training's settings records them. Without a run, --student, --teacher and --prompts show how well two models fit.
"""

import argparse
import os
import shutil
import sys
import textwrap
import webbrowser
from pathlib import Path

from . import pair


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fire-opd inspect`; it needs neither torch nor anything else that is slow."""
    parser = argparse.ArgumentParser(
        "fire-opd inspect",
        usage="%(prog)s RUN [--compare RUN2] [--text] [--OPTION VALUE ...]\n"
        "       %(prog)s --student DIR --teacher DIR --prompts FILE [...]",
        description=textwrap.fill((__doc__ or "").split("\n\n", 1)[1].replace("\n", " "), 78),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", nargs="?", type=Path, metavar="RUN", help="the output_dir of a training, also of one under way")
    add("--compare", type=Path, metavar="RUN2", help="another run, to be put beside it")
    add("--output", type=Path, metavar="FILE", help="the page (default: inspect.html in the folder of the run)")
    add("--text", action="store_true", help="print it in the terminal, and write no page")
    add("--open", action="store_true", help="open the page in the browser")
    add("--trajectories", type=int, metavar="N", help="how many to show token by token (default: at most 200)")
    add("--steps", type=steps_of, metavar="STEPS", default=(), help="show those of these steps, such as 1,10-50")
    pair.add_arguments(parser)
    return parser


def steps_of(text: str) -> list[tuple[int, int]]:
    """Returns the first and the last step of each part of a text such as `1,10-50`; for argparse."""
    spans = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise argparse.ArgumentTypeError(f"{part!r} is no step. Give numbers and spans of them, such as 1,10-50.")
        spans.append((int(first), int(last or first)))
    return spans


def main(argv: list[str] | None = None) -> int:
    """Run `fire-opd inspect`; the exit code is 0, or 2 for what the user can mend."""
    parser = build_parser()
    options = parser.parse_args(argv)
    of_pair = [name for name, default in pair.defaults().items() if vars(options)[name] != default]
    if options.run is None and not of_pair:
        parser.error("which run? Give the output_dir of a training, or a pair: --student, --teacher and --prompts.")
    if options.run is not None and of_pair:
        parser.error(
            f"{options.run} is a run, and --{of_pair[0]} asks for a look at two models. Leave one of them out."
        )
    if options.text and (options.open or options.output is not None):
        parser.error("--text prints, and writes no page: leave out --output and --open.")
    if options.trajectories is not None and options.trajectories < 1:
        parser.error(f"--trajectories {options.trajectories}: give at least 1.")

    from .report import report_of, what_it_holds, write_page  # numpy and pyarrow, a third of a second
    from .run import refuse_what_is_no_run

    runs = [folder for folder in (options.run, options.compare) if folder is not None]
    for folder in runs:  # before minutes are spent on a pair
        refuse_what_is_no_run(folder)
    folders = runs if options.run is not None else [pair.sample_pair(options), *runs]
    report = report_of(folders, options.trajectories, options.steps)
    if options.text:
        from .text import in_terminal

        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return printed(in_terminal(report, colours, min(shutil.get_terminal_size((80, 24)).columns, 100)))
    path = write_page(report, options.output or folders[0] / "inspect.html")
    print(f"{path}\n  {what_it_holds(report)}")
    if options.open and not webbrowser.open(path.absolute().as_uri()):
        print("  No browser could be started: open the file by hand.")
    return 0


def printed(text: str) -> int:
    """Prints a text, whatever signs the terminal knows, and whoever stops reading it; returns the exit code."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
