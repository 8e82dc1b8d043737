"""The answer in a completion: the last box, what follows the last semicolon, or the last block of code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .problems import Task

END_OF_THINKING = "</think>"
# A run of backslashes is one piece, so that a megabyte of them is read once. `{` behind an odd run is a printed brace.
PIECES = re.compile(r"(?P<slashes>\\+)(?P<box>(?:boxed|fbox)(?![a-zA-Z]))?|[{}]")
# Behind a box without braces: a number, a command, or one letter; a word would be one of the sentence.
BARE = re.compile(r"\s*(?!\\+(?:boxed|fbox))((?:[-+\d.\\(]|[A-Za-z](?![A-Za-z]))[^\s$]{0,299})")
FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)


def found_answer(text: str, task: Task) -> str | None:
    """
    Returns the answer that a completion gives, or `None` where it gives none. Takes linear time, and never raises.

    What stands before the last `</think>` was thinking and is not searched. Where thinking never ended, the whole text
    is searched.
    """
    _, _, said = text.rpartition(END_OF_THINKING)
    if task.answer == "semicolon":
        _, semicolon, final = said.rpartition(";")
        return (final.strip() or None) if semicolon else None
    if task.answer == "code":
        return last_code(said)
    return last_boxed(said)


def last_boxed(text: str) -> str | None:
    r"""
    Returns what the last box holds that is closed and not empty: `\boxed{...}`, `\fbox{...}`, or `\boxed 7`.

    A box that was never closed, as at the end of a truncated completion, is passed over, and so is an empty one, as
    where a model repeats its instruction. A box without braces counts only where there is none with braces.
    """
    open_braces: list[int | None] = []  # for each open brace: where the contents start, if it is the brace of a box
    best: tuple[int, int] | None = None
    bare: str | None = None
    box: int | None = None  # the end of a `\boxed` whose brace has not come yet
    printed = -1  # where a brace would be a printed one
    for piece in PIECES.finditer(text):
        start, end = piece.span()
        if piece["slashes"]:
            box = end if piece["box"] else None
            printed = end if not piece["box"] and (end - start) % 2 else -1
            if box is not None and (found := BARE.match(text, box)):
                bare = found[1].rstrip(".,;:!*)") or bare
        elif start == printed:
            box = None
        elif piece[0] == "{":
            open_braces.append(end if box is not None and not text[box:start].strip() else None)
            box = None
        else:
            contents = open_braces.pop() if open_braces else None
            box = None
            if contents is not None and (best is None or contents > best[0]) and text[contents:start].strip():
                best = (contents, start)
    if best is not None:
        return text[slice(*best)].strip()
    return bare


def last_code(text: str) -> str | None:
    """Returns the last block between two fences of three backticks, or the whole text where there is no fence."""
    fences = [match.span() for match in FENCE.finditer(text)]
    if not fences:
        return text.strip() or None
    if len(fences) % 2:  # the last block was cut off: what there is of it
        fences.append((len(text), len(text)))
    return text[fences[-2][1] : fences[-1][0]].strip("\n") or None
