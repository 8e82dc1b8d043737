"""What a model is asked, in each style."""

import pytest

from fire_opd_trl.evaluation.evaluate import prompts
from fire_opd_trl.evaluation.evaluate.problems import Problem, Task


TASK = Task("t", "math", "boxed", "nowhere", "", (), "boxed")
CODE = Task("t", "code", "code", "nowhere", "", (), "boxed")
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def test_the_styles_of_a_problem_of_mathematics():
    problem = Problem("a", "What is 1+1?", ("2",))
    assert prompts.prompt_text(problem, TASK, "none") == "What is 1+1?"
    assert prompts.prompt_text(problem, TASK, "boxed") == "What is 1+1?" + INSTRUCTION
    assert prompts.prompt_text(problem, TASK, "authors") == "What is 1+1?" + 2 * INSTRUCTION


def test_the_authors_prompt_is_what_their_file_says_to_the_letter():
    """Some of their rows have an empty line before the instruction; their script adds the instruction all the same."""
    written = "What is 1+1?\n" + INSTRUCTION
    problem = Problem("a", "What is 1+1?", ("2",), {prompts.AS_WRITTEN: written})
    assert prompts.prompt_text(problem, TASK, "authors") == written + INSTRUCTION
    assert prompts.prompt_text(problem, TASK, "boxed") == "What is 1+1?" + INSTRUCTION


def test_an_unknown_style_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"'box' is none of boxed, authors, none. Did you mean 'boxed'\?"):
        prompts.prompt_text(Problem("a", "1"), TASK, "box")


def test_code_has_an_instruction_of_its_own():
    program = Problem("a", "def f(x):\n    '''{x} % 2'''\n", fields={"entry_point": "f"})
    text = prompts.prompt_text(program, CODE, "boxed")
    assert program.text in text and "```python" in text and "boxed" not in text
    assert prompts.prompt_text(program, CODE, "authors") == text
    assert prompts.prompt_text(program, CODE, "none") == program.text
    assert "standard input" in prompts.prompt_text(Problem("a", "Add {} numbers."), CODE, "boxed")
    started = prompts.prompt_text(Problem("a", "Add.", fields={"starter_code": "class S: {}"}), CODE, "boxed")
    assert "class S: {}" in started and "standard input" not in started


def test_thinking_is_an_argument_of_the_template():
    assert prompts.template_arguments(False) == {"enable_thinking": False}
