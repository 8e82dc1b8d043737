"""
Processes that need not import for seconds what others have imported before: one process imports it, and is forked for
each work. A fork finds the state of a fresh process, and leaves none behind.

    python forks.py        # `Commands` starts this: it runs `fire-opd` once for each line of JSON that it reads
"""

import importlib
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


IMPORTED_ONCE = (
    "datasets",
    "peft",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.grpo_trainer",
    "fire_opd_trl.trainer.trainer",
)


def exit_code_of_a_fork(work: Callable[[], int]) -> int:
    """Do a work in a process of its own; what it raises is printed there."""
    process = os.fork()
    if process == 0:
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def print_in_forks(measured: Callable[..., dict], cases: Iterable[tuple]) -> None:
    """Print a line of JSON for each case: what `measured(*case)` returns in a process of its own."""
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    for case in cases:
        if exit_code_of_a_fork(lambda: print(json.dumps(measured(*case)), flush=True) or 0):  # noqa: B023
            raise SystemExit(f"{case} failed")


class Commands:
    """Runs `fire-opd` as a user does, in processes of their own that share their imports."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def run(self, *argv: str, timeout: float = 240) -> tuple[int, str]:
        """The exit code of `fire-opd *argv` in the working directory, and all that it printed."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        self.process.stdin.write(json.dumps({"argv": argv, "folder": os.getcwd()}) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.close()
            pytest.fail(f"killed after {timeout} s: fire-opd {' '.join(argv)}")
        code, output = json.loads(self.process.stdout.readline())
        return code, output

    def close(self) -> None:
        if self.process is not None:
            from support.launches import kill

            kill(self.process)
            self.process.wait()
            self.process = None


def fire_opd(argv: list[str]) -> int:
    """What `sys.exit(main())` would end a process with."""
    from fire_opd_trl import cli

    sys.argv = ["fire-opd", *argv]
    try:
        code = cli.main(argv)
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    return code if isinstance(code, int) else int(code is not None)


def serve() -> None:
    """Run a command for each line of the standard input, with its exit code and output as a line of the answer."""
    for module in (*IMPORTED_ONCE, "fire_opd_trl.preflight.command", "fire_opd_trl.trainer.command"):
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order, printed = json.loads(line), os.memfd_create("printed")

        def work(order=order, printed=printed) -> int:
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            os.chdir(order["folder"])
            return fire_opd(order["argv"])

        code = exit_code_of_a_fork(work)
        os.lseek(printed, 0, os.SEEK_SET)
        with os.fdopen(printed, errors="replace") as output:
            answers.write(json.dumps([code, output.read()]) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    serve()
