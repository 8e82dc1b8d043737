"""What is wrong with a dataset, with the row."""

import pytest
from datasets import Dataset
from support.inspections import ROUTED, TWO, fault, looked, said


def test_prompts_that_an_environment_makes_are_checked_as_they_are_sampled():
    checked = looked(TWO, others={"environment_factory": object})  # rows of the dataset name no teacher
    assert said(checked)["dataset"] == (
        "ok",
        "prompts that an environment makes: routes and forms are checked as rows are sampled, lengths are not",
    )


def test_a_dataset_for_evaluation_is_checked_too():
    bad = Dataset.from_list([{"prompt": "1+1="}, {"prompt": ""}])
    for evaluated, name in ((bad, "eval_dataset"), ({"hard": bad}, "eval_dataset 'hard'")):
        assert fault(looked(evaluated=evaluated)) == (
            f"{name} row 1: `prompt` is empty. Give a string or a list of messages, or remove the row."
        )


def test_a_dataset_without_the_column_is_refused():
    message = "train_dataset row 0: `who` is None. Each row names one of: a, b."
    assert fault(looked(TWO, ROUTED, teacher_column="who")) == message


def test_longer_prompts_are_counted_where_they_are_left_out():
    rows = [{"prompt": "1" * length} for length in (30, 31, 5)]
    with pytest.warns(UserWarning, match="train_dataset: 1 of 3 rows left out, their prompts are longer than"):
        checked = looked(rows=rows, max_prompt_length=30, overlong_prompts="drop")
    assert said(checked)["dataset"][1] == (
        "3 rows, 1 left out as too long, the longest prompt has 30 tokens, completions up to 33"
    )
    assert [row["prompt"] for row in checked.train_dataset] == ["1" * 30, "1" * 5]
    assert fault(looked(rows=rows, max_prompt_length=30)) == (
        "train_dataset row 1: the prompt has 31 tokens, and 30 fit (max_prompt_length, or the models' context beside "
        "max_completion_length). Prompts are never cut: shorten it, lower max_completion_length, or set "
        "overlong_prompts='drop'."
    )
