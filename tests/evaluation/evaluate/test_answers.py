"""The answer in a completion: nested, broken, several, hidden and very long ones."""

import random
import time

import pytest

from fire_opd_trl.evaluation.evaluate.answers import found_answer, last_boxed
from fire_opd_trl.evaluation.evaluate.problems import Task


def task(answer: str) -> Task:
    """Returns a task whose answers are found in one way."""
    return Task("t", "math", answer, "nowhere", "", (), "boxed")


BOXES = {
    r"so \boxed{5}.": "5",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{1} or rather \boxed{2}": "2",
    r"\boxed{1} and \fbox{2}": "2",
    r"\boxed {9}": "9",
    r"\boxed{ 9 }": "9",
    r"\boxed{\boxed{3}}": "3",
    r"\\boxed{4}": "4",  # escaped twice, as a model of JSON writes it
    r"\boxed{\{1,2\}}": r"\{1,2\}",
    r"\boxed{\left\{ x \right.}": r"\left\{ x \right.",  # a printed brace that is never closed
    r"\boxed{a\\} b}": r"a\\",  # a line break before the closing brace is no printed brace
    r"{{{\boxed{2}": "2",
    r"}}}\boxed{2}{": "2",
    # a box without braces, which TeX allows
    r"so \boxed 7.": "7",
    r"$\boxed 7$": "7",
    r"\boxed \frac12": r"\frac12",
    r"\boxed{5}, I used \boxed 6": "5",
    r"in \boxed format": None,
    r"\boxed B": "B",
    # cut off, empty, or no box at all
    r"\boxed{1} then \boxed{2": "1",
    r"\boxed{1} within \boxed{}": "1",
    r"\boxed{2": None,
    r"\boxed{": None,
    r"\boxed": None,
    r"\boxed{}": None,
    r"put it in \boxed{ }.": None,
    r"\boxedness{3}": None,
    "boxed{3}": None,
    "the answer is 3": None,
    "": None,
    # what no file and no tokenizer would take
    "\\boxed{\ud800}": "\ud800",
    "\\boxed{\x00}": "\x00",
}


@pytest.mark.parametrize(("text", "answer"), BOXES.items())
def test_the_last_box_that_is_closed_and_holds_something(text, answer):
    assert found_answer(text, task("boxed")) == answer


def test_what_was_thought_is_not_the_answer():
    boxed = task("boxed")
    assert found_answer(r"<think>\boxed{1}</think> It is \boxed{2}.", boxed) == "2"
    assert found_answer(r"<think>\boxed{1}</think> I do not know.", boxed) is None
    assert found_answer(r"\boxed{1}</think>\boxed{2}</think>\boxed{3}", boxed) == "3"
    assert found_answer(r"<think>\boxed{1}, but wait", boxed) == "1"  # never ended: the whole text is searched
    assert found_answer("1;2</think>3", task("semicolon")) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [("3+5+0=08;408", "408"), ("1;2;3", "3"), ("; 408 ", "408"), ("408", None), ("408;", None), ("", None)],
)
def test_what_follows_the_last_semicolon(text, answer):
    assert found_answer(text, task("semicolon")) == answer


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```python\nx = 1\n```\nor\n```\ny = 2\n```", "y = 2"),
        ("```python\nx = 1\n    y", "x = 1\n    y"),  # cut off
        ("def f():\n    return 1\n", "def f():\n    return 1"),
        ("```\n```", None),
        (" ", None),
    ],
)
def test_the_last_block_of_code(text, code):
    assert found_answer(text, task("code")) == code


MEGABYTE = 2**20
LONG = {
    "boxes never closed": r"\boxed{" * (MEGABYTE // 7),
    "braces opened": "{" * MEGABYTE,
    "braces closed": "}" * MEGABYTE,
    "backslashes": "\\" * MEGABYTE,
    "boxes alone": r"\boxed " * (MEGABYTE // 7),
    "a box, then spaces": (r"\boxed" + " " * 1000) * 1000,
    "ends of thinking": "</think>" * (MEGABYTE // 8),
    "semicolons": ";" * MEGABYTE,
    "fences": "```\n" * (MEGABYTE // 4),
    "backticks": "`" * MEGABYTE,
}


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_takes_linear_time(name):
    start = time.process_time()
    for answer in ("boxed", "semicolon", "code"):
        found_answer(LONG[name], task(answer))
    assert time.process_time() - start < 10  # about 0.5 s; a quadratic search takes hours


def test_a_long_answer_behind_broken_braces_is_found_whole():
    contents = "x{}" * 100_000
    assert last_boxed("{" * 100_000 + rf"\boxed{{{contents}}}" + "{" * 100_000) == contents


def reference(text: str) -> str | None:
    """Returns the last closed and filled box by the slowest way there is: each box, its braces counted one by one."""
    for start in reversed(range(len(text))):
        for command in (r"\boxed{", r"\fbox{"):
            if text.startswith(command, start):
                depth = 0
                for end in range(start + len(command) - 1, len(text)):
                    depth += (text[end] == "{") - (text[end] == "}")
                    if depth == 0:
                        contents = text[start + len(command) : end].strip()
                        if contents:
                            return contents
                        break
    return None


def test_random_texts_give_what_counting_gives():
    generator = random.Random(0)
    pieces = [r"\boxed{", r"\fbox{", "{", "}", "}", "x", r"\frac", " ", "7", "\n"]
    found = 0
    for _ in range(5_000):
        text = "".join(generator.choices(pieces, k=generator.randint(0, 24)))
        assert last_boxed(text) == reference(text), text
        found += reference(text) is not None
    assert 1_000 < found < 4_000  # both kinds of text are there


def test_nothing_raises_on_random_characters():
    generator = random.Random(1)
    alphabet = "\\{}boxedf `\n;</think>$\x00\ud800\udfff7"
    for _ in range(2_000):
        text = "".join(generator.choices(alphabet, k=40))
        for answer in ("boxed", "semicolon", "code"):
            found_answer(text, task(answer))
