"""Sections that do nothing of worth, for the tests of `make gpu`: each is run in a process of its own."""

import os
import subprocess
import time
from pathlib import Path

from benchmarks.gpu.serving import CannotRun


def rows(count: int):
    for number in range(count):
        yield {"number": number, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


def breaks(after: int):
    yield from rows(after)
    raise RuntimeError("CUDA out of memory.\nTried to allocate 2.00 GiB")


def dies(after: int):
    yield from rows(after)
    time.sleep(0.2)  # the rows are on their way
    os._exit(9)


def lasts(seconds: float, note: str):
    """It starts a process in a session of its own, as the benchmark's workers are, and writes its number to a file."""
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    Path(note).write_text(str(child.pid))
    yield {"child": child.pid}
    time.sleep(seconds)


def lacks(what: str):
    raise CannotRun(f"{what} is not installed")
    yield {}
