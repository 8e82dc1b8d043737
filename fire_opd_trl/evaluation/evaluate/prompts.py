r"""
What a model is asked: the problem, with an instruction or without one.

`authors` is the prompt of the paper's authors: the files of problems that they publish end with the instruction, and
their script adds it again, so a model reads it twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...spelling import did_you_mean


if TYPE_CHECKING:
    from .problems import Problem, Task

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
STYLES = ("boxed", "authors", "none")
AS_WRITTEN = "as_written"  # field of a problem whose file had the instruction in it: the text as it stands there

COMPLETE = (
    "Complete this Python program. Answer with one block of code between ```python and ```, "
    "which holds the whole program with its imports.\n\n```python\n{text}\n```"
)
SOLVE = (
    "Solve this task in Python. Answer with one block of code between ```python and ```, "
    "which holds the whole program with its imports. {how}\n\n{text}"
)
FROM_STANDARD_INPUT = "The program reads its input from the standard input and prints its answer."
FROM_STARTER = "Keep this start:\n```python\n{starter}\n```"


def prompt_text(problem: Problem, task: Task, style: str) -> str:
    """Returns the text of the user's message for a problem. Raises `ValueError` where the style is unknown."""
    if style not in STYLES:
        raise ValueError(f"prompt style {style!r} is none of {', '.join(STYLES)}.{did_you_mean(style, STYLES)}")
    if style == "none":
        return problem.text
    if task.kind == "code":
        return code_prompt(problem)
    once = f"{problem.text}\n{INSTRUCTION}"
    if style == "boxed":
        return once
    return f"{problem.fields.get(AS_WRITTEN, once)}\n{INSTRUCTION}"


def code_prompt(problem: Problem) -> str:
    """Returns the message for a problem of code: a program to complete, or a task with or without a start."""
    if problem.fields.get("entry_point"):
        return COMPLETE.format(text=problem.text)
    starter = problem.fields.get("starter_code")
    how = FROM_STARTER.format(starter=starter) if starter else FROM_STANDARD_INPUT
    return SOLVE.format(how=how, text=problem.text)


def template_arguments(thinking: bool) -> dict[str, Any]:
    """Returns what a chat template is given beside the messages. A template that does not know it ignores it."""
    return {"enable_thinking": thinking}
