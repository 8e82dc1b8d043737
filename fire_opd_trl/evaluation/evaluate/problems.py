"""The records that every module of this room speaks of: one problem, and a task that holds them in a fixed order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """
    One problem of a task.

    Attributes:
        id (`str`):
            A name that stays the same between runs: the row's own unique id if it can be printed, else twelve
            hexadecimal digits of the sha256 of the problem's text.
        text (`str`):
            The problem, without any instruction.
        gold (`tuple[str, ...]`):
            The answers that are accepted, as LaTeX or plain text. Empty for code.
        fields (`dict`):
            What else the row has: level, subject; for code its entry point and tests.
    """

    id: str
    text: str
    gold: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """
    A set of problems, and how their answers are found and judged.

    Attributes:
        name (`str`):
            What the user calls it: `math500`, `my_file`, `embedded`, `reasoning_gym:chain_sum`.
        kind (`str`):
            `"math"` is judged by math-verify, `"exact"` by comparing the text, `"code"` by running tests.
        answer (`str`):
            How the answer is found in a completion: `"boxed"`, `"semicolon"` or `"code"`.
        source (`str`):
            The path or the hub name that it was read from.
        sha256 (`str`):
            Of the problems as read, see [`digest`].
        problems (`tuple[Problem, ...]`):
            The problems, in the order of the file.
        prompt_style (`str`):
            The style of the prompt where the user asks for none.
    """

    name: str
    kind: str
    answer: str
    source: str
    sha256: str
    problems: tuple[Problem, ...]
    prompt_style: str


def digest(problems: Iterable[Problem]) -> str:
    """Returns the sha256 of the problems as canonical JSON: equal for equal problems, whatever file they came from."""
    rows = [asdict(problem) for problem in problems]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def text_id(text: str) -> str:
    """Returns the id of a problem whose row has none: twelve hexadecimal digits of the sha256 of its text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
