"""The embedded task: every answer is either right or wrong, and no held-out problem is trained on."""

import pytest

from fire_opd_trl.demo import task


def test_the_working_is_that_of_the_docstring():
    assert task.working(437, 85) == "7+5+0=12,3+8+1=12,4+0+1=05;522"
    assert task.prompt(437, 85) == "437+85="
    assert task.working(10, 10).endswith(";20")


@pytest.mark.parametrize(("a", "b"), [(10, 10), (999, 999), (437, 85)])
def test_a_completion_fits_and_comes_back_from_its_tokens(a, b):
    tokenizer = task.build_tokenizer()
    ids = tokenizer(task.working(a, b))["input_ids"]
    assert len(ids) <= task.MAX_COMPLETION_TOKENS
    assert tokenizer.decode(ids, skip_special_tokens=True) == task.working(a, b)


def test_training_and_test_have_no_problem_in_common():
    train, test = task.problems("train", 3000, seed=1), task.problems("test", 3000, seed=1)
    assert not set(train) & set(test) and len(set(train)) == len(set(test)) == 3000
    assert all(task.is_held_out(*pair) for pair in test) and not any(task.is_held_out(*pair) for pair in train)
    assert train == task.problems("train", 3000, seed=1) != task.problems("train", 3000, seed=2)


def test_only_the_exact_answer_counts():
    completions = ["7+5+0=12;522", "522", "521", ";5222", ""]
    scores = task.exact_match(completions, ["522"] * 5)
    assert scores == [float(task.is_correct("522", completion)) for completion in completions]
    assert scores[0] == 1.0 and scores[2:] == [0.0] * 3


def test_a_dataset_holds_prompts_and_answers():
    row = task.dataset("train", 4)[0]
    a, b = row["prompt"].removesuffix("=").split("+")
    assert row["answer"] == str(int(a) + int(b))
