"""The tests that are marked `gpu`."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .serving import CannotRun


ROOT = Path(__file__).parents[2]
NOTHING_TO_DO = 5  # pytest's exit code when it finds no test


def files_with_the_mark() -> list[str]:
    """Only these are imported: collecting all tests takes longer than these take."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def run() -> Iterator[dict[str, Any]]:
    """Run them, and yield how many passed, failed and were skipped."""
    if find_spec("pytest") is None:
        raise CannotRun("pytest is not installed")
    if not (files := files_with_the_mark()):
        raise CannotRun("no test has the mark")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", *files]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(ran.stdout)
    yield counted(ran.stdout)
    if ran.returncode not in (0, NOTHING_TO_DO):
        raise RuntimeError(f"pytest ended with code {ran.returncode}: {last_line(ran.stdout)}")


def counted(output: str) -> dict[str, int]:
    """The numbers of pytest's last line."""
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last_line(output))}


def last_line(output: str) -> str:
    """Pytest's last line, without its ornaments."""
    return (output.strip().splitlines() or [""])[-1].strip("= ")
