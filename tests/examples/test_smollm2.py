"""The example with a real language model, without its download: the embedded models stand in for its two."""

import re
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from support.commands import script_refusal
from transformers import AutoModelForCausalLM, AutoTokenizer

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


@pytest.fixture(scope="module")
def example():
    return load_module(packaged_folder("examples") / "smollm2.py")


def chatting(name: str, folder):
    """An embedded model as a chat model: its chats are what is said in them, and end with its end token."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(name))
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(model_path(name), dtype="float32").save_pretrained(folder)
    return folder


def additions(split: str, count: int, tasks=("chain_sum",)) -> Dataset:
    """Problems of the embedded models in the form of the example's."""
    pairs = task.problems({"sft": "train"}.get(split, split), count, seed=0)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": task.prompt(a, b)}],
                "completion": [{"role": "assistant", "content": task.working(a, b)}],
                "answer": str(a + b),
                "task": "chain_sum",
            }
            for a, b in pairs
        ]
    )


def test_a_worked_sum_goes_from_left_to_right(example):
    assert example.worked_sum("4 - 1 - 7") == "First, 4 - 1 = 3. Then, 3 - 7 = -4. So the answer is -4. \n#### -4"
    assert example.worked_sum("10 + 5") == "First, 10 + 5 = 15. So the answer is 15. \n#### 15"


def test_an_answer_is_right_by_its_last_number(example):
    texts = ["so 3 + 4 = 7\n#### 7", "it is 1,024.", "#### -4", "#### 4", "none", "first 7, then 8", "8.0 apples"]
    right = ["7", "1024", "-4", "-4", "7", "7", "8"]
    assert example.right_answer(texts, right) == [1, 1, 1, 0, 0, 0, 1]
    chat = [[{"role": "assistant", "content": "#### 7"}]]
    assert example.right_answer(chat, ["7"], task=["chain_sum"]) == [1]


def test_problems_are_short_split_apart_and_balanced(example, monkeypatch):
    asked = []

    def create_dataset(name, size, seed, **settings):
        asked.append((name, seed))
        for number in range(size):
            solution = "long " * (200 * (number % 2)) + f"#### {number}"
            facts = {"expression": f"{number} + {seed}", "answer_cot": solution}
            yield {"question": f"{name} {number}?", "answer": number, "metadata": facts}

    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset))
    rows = example.problems("train", 9)
    assert sorted(rows["task"]) == ["chain_sum"] * 5 + ["gsm_symbolic"] * 4
    assert rows["task"] != sorted(rows["task"])  # in random order
    for row in rows:
        question, solution = row["prompt"][0]["content"], row["completion"][0]["content"]
        assert question.endswith(example.INSTRUCTION) and len(solution) <= example.LONGEST  # 1000 letters are left out
        assert solution.startswith("First, " if row["task"] == "chain_sum" else "#### ")
    example.problems("test", 2)
    example.problems("sft", 2)
    assert len({seed for _, seed in asked}) == 3  # each split has a seed of its own


def test_both_models_learn_worked_solutions_and_are_made_once(example, tmp_path, monkeypatch):
    untouched = chatting("student", tmp_path / "untouched")
    monkeypatch.setattr(example, "problems", additions)
    monkeypatch.setattr(example, "STUDENT_STEPS", 2)  # the first one is at a learning rate of 0
    monkeypatch.setattr(example, "TEACHER_STEPS", 4)
    folders = example.pair(tmp_path)  # the model lies there already: nothing is downloaded
    assert folders == (tmp_path / "student", tmp_path / "teacher")
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (untouched, *folders)]
    moved = [sum(float((some[name] - weights[0][name]).abs().sum()) for name in some) for some in weights]
    assert 0 == moved[0] < moved[1] < moved[2]
    assert all(AutoTokenizer.from_pretrained(folder).chat_template for folder in folders)

    monkeypatch.setattr(example.SFTTrainer, "train", lambda *a, **k: pytest.fail("it was trained again"))
    assert example.pair(tmp_path) == folders


def test_the_example_trains_draws_and_measures_and_a_second_call_does_not_train_again(
    example, tmp_path, monkeypatch, capsys
):
    chatting("student", tmp_path / "untouched")
    for name in ("student", "teacher"):
        chatting(name, tmp_path / name)
    monkeypatch.setattr(example, "problems", additions)
    small, distil = {"max_steps": 2, "max_completion_length": 31}, example.distil
    trained = []
    monkeypatch.setattr(example, "distil", lambda *a: trained.append(1) or distil(*a, **small))
    argv = ["--output_dir", str(tmp_path), "--problems", "40"]
    example.main(argv)

    run = tmp_path / "fire"
    assert [path.name for path in sorted((run / "rollouts").iterdir())] == [
        "rollouts_00001.parquet", "rollouts_00002.parquet",
    ]  # fmt: skip
    page = (run / "inspect.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    shares = dict(re.findall(r"^([\w, ]+): chain_sum (\d+)% right$", capsys.readouterr().out, re.MULTILINE))
    assert list(shares) == ["student", "teacher", "student, trained"]
    assert int(shares["teacher"]) > int(shares["student"]) + 20  # 98 % and 49 %; 40 problems: s.e. 8 points

    example.main(argv)
    assert len(trained) == 1


def test_what_is_wrong_is_said_before_anything_is_downloaded(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "pair", pytest.fail)
    assert script_refusal(example.main, ["--problems", "0"], capsys).endswith("--problems 0: give at least 1")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # Python then finds none
    text = script_refusal(example.main, ["--output_dir", str(tmp_path)], capsys)
    assert text.endswith("Run: pip install reasoning-gym")
