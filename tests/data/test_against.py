"""The problems that prompts may not hold: of tasks and of any file."""

import json

import pytest

from fire_opd_trl.data.against import evaluation_problems


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "math500").mkdir()
    rows = [{"problem": f"What is {n} plus one?", "answer": str(n + 1), "unique_id": f"test/{n}"} for n in range(3)]
    (tmp_path / "math500" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.jsonl").write_text('{"question": "Who?"}\n{"prompt": [{"role": "user", "content": "Where?"}]}\n')
    return tmp_path


def test_a_task_and_a_file_without_answers(folder):
    with pytest.warns(UserWarning, match="3 problems, and the usual copy 500"):
        found = evaluation_problems(["MATH-500", str(folder / "mine.jsonl")], folder)
    assert list(found) == ["math500 test/0", "math500 test/1", "math500 test/2", "mine line 1", "mine line 2"]
    assert found["math500 test/1"] == "What is 1 plus one?" and found["mine line 2"] == "Where?"


def test_all_are_those_of_the_folder(folder):
    with pytest.warns(UserWarning, match="usual copy"):
        assert len(evaluation_problems(["all"], folder)) == 3
    with pytest.raises(ValueError, match="--against all: .* holds no benchmark. Name its folder with --data_dir"):
        evaluation_problems(["all"], folder / "math500")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("math5000", "There is no task 'math5000'. Did you mean 'math500'"),
        ("gone.jsonl", "There is no file"),
        ("none.jsonl", "--against none.jsonl: it holds no problem"),
        ("head.csv", "--against head.csv: it holds no problem"),
        ("odd.jsonl", "odd.jsonl line 1: there is none of the columns problem"),
    ],
)
def test_what_is_no_problem_is_refused(folder, name, said):
    for file, text in {"odd.jsonl": '{"solution": "4"}\n', "none.jsonl": "", "head.csv": "problem,answer\n"}.items():
        (folder / file).write_text(text)
    with pytest.raises(ValueError, match=said):
        evaluation_problems([name], folder)
