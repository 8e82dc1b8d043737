"""A reward that GRPO could not call is refused before a model is loaded."""

import functools
import re

import pytest
from datasets import Dataset, IterableDataset
from support.inspections import STUDENT, TEACHER, fault, looked, preflight_table, settings

from fire_opd_trl import FiReOPDTrainer


ROWS = [{"prompt": "12+34=", "answer": "46"}, {"prompt": "123+456=", "answer": "579"}]


def needs_column(completions, solution, **kwargs):
    return [0.0 for _ in completions]


def of_trl(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer, solution=None, **rest):
    return [0.0 for _ in completions]


def takes_no_more(prompts, completions):
    return [0.0 for _ in completions]


class Judge:
    def __call__(self, completions, environments, **kwargs):
        return [0.0 for _ in completions]


@pytest.mark.parametrize("rows", [ROWS, IterableDataset.from_generator(lambda: iter(ROWS))], ids=["table", "stream"])
@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (needs_column, "needs_column cannot be called: missing a required argument: 'solution'."),
        (takes_no_more, "takes_no_more cannot be called: got an unexpected keyword argument 'completion_ids'."),
        (Judge(), "Judge cannot be called: missing a required argument: 'environments'."),
    ],
)
def test_a_reward_that_cannot_be_called_is_a_fault(reward, why, rows):
    said = fault(looked(rows=rows, others={"reward_funcs": [of_trl, reward]}))
    assert said.startswith(f"reward_funcs: {why}") and "the columns of the dataset: prompt, answer." in said


@functools.wraps(needs_column)
def wrapped(**given):
    return needs_column(given["completions"], solution=None)


@pytest.mark.parametrize("reward", [None, of_trl, [of_trl, "org/judge", max, lambda **given: None, wrapped]])
def test_what_can_be_called_or_is_not_known_to_fail_is_none(reward):
    assert looked(rows=ROWS, others={"reward_funcs": reward}).faults == []


def test_the_rows_of_an_evaluation_need_the_columns_too():
    known = Dataset.from_list([{"prompt": "12+34="}])
    said = fault(looked(rows=ROWS, evaluated={"known": known}, others={"reward_funcs": [of_trl]}))
    assert "missing a required argument: 'answer'" in said


def test_preflight_says_it_and_the_trainer_refuses_it_without_a_model(tmp_path, monkeypatch, capsys):
    why = "judge cannot be called: missing a required argument: 'solution'"
    with pytest.raises(ValueError, match=re.escape(why.replace("judge", "needs_column"))):
        FiReOPDTrainer(
            STUDENT,
            TEACHER,
            settings(),
            train_dataset=Dataset.from_list(ROWS),
            reward_funcs=needs_column,
        )
    monkeypatch.chdir(tmp_path)
    rewards = "def judge(completions, solution, **kwargs): return [0.0] * len(completions)\n"
    (tmp_path / "judges.py").write_text(rewards)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "12+34="}\n{"prompt": "1+1="}\n')
    code, table = preflight_table(
        capsys,
        *("--model_name_or_path", STUDENT, "--teacher_model_name_or_path", TEACHER, "--dataset_name", "rows.jsonl"),
        *("--max_completion_length", "33", "--reward_funcs", "judges.py:judge", "--method", "opdvr"),
        *("--num_generations", "2", "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "1"),
    )
    assert code == 1 and f"reward_funcs: {why}" in table and "1 fault: training" in table, table
