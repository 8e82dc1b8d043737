"""One's own data: what is not there, which column is the prompt, which rows are used, which are held out."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from datasets import Dataset
from support.inspections import STUDENT, TEACHER, preflight_table, with_template
from trl import DatasetMixtureConfig

from fire_opd_trl.preflight.findings import Checked
from fire_opd_trl.preflight.loading import load_prompts


PROBLEMS = [
    {"question": f"{row}+{row}=", "level": row / 2, "topic": "odd" if row % 2 else None, "prompt": "not this"}
    for row in range(20)
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with a file of problems, and a cache of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, PROBLEMS)))
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    return tmp_path


def loaded(name="problems.jsonl", evaluated=False, size=None, checked=None, **arguments):
    script = {
        "dataset_name": name, "dataset_config": None, "dataset_streaming": False, "dataset_train_split": "train",
        "dataset_test_split": "test", "prompt_column": "prompt", "prompt_as_chat": False, "dataset_filter": None,
    }  # fmt: skip
    mixture = DatasetMixtureConfig(test_split_size=size)
    return load_prompts(SimpleNamespace(**{**script, **arguments}), mixture, evaluated, checked or Checked())


@pytest.mark.parametrize("name", ["nofile.jsonl", "data/train.parquet", "prompts/", "./prompts", "/a/b/c", "a/b/c"])
def test_a_path_to_nothing_is_no_such_file_and_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("fire_opd_trl.preflight.loading.load_dataset", pytest.fail)
    with pytest.raises(ValueError, match=re.escape(f"dataset_name={name!r}: no such file or folder (the working dir")):
        loaded(name)


def test_an_id_that_cannot_be_reached_is_said_to_be_one():
    with pytest.raises(ValueError, match="dataset_name='org/name' could not be loaded: .* HF_HUB_OFFLINE is set"):
        loaded("org/name")


def test_a_file_that_cannot_be_read_is_refused_with_its_name():
    with pytest.raises(ValueError, match="dataset_name='broken.jsonl' could not be read: "):
        loaded("broken.jsonl")


def test_a_column_takes_the_place_of_the_prompt():
    rows, _ = loaded(prompt_column="question")
    assert rows.column_names == ["prompt", "level", "topic"] and rows[3]["prompt"] == "3+3="
    rows, _ = loaded(prompt_column="question", dataset_streaming=True)
    assert next(iter(rows))["prompt"] == "0+0="
    with pytest.raises(ValueError, match="prompt_column='questoin' is no column .*: question, level, topic, prompt."):
        loaded(prompt_column="questoin")


def test_a_text_becomes_a_message_of_the_user():
    rows, _ = loaded(prompt_column="question", prompt_as_chat=True)
    assert rows[1]["prompt"] == [{"role": "user", "content": "1+1="}]


def test_rows_that_fulfil_all_conditions_are_left_and_counted():
    checked = Checked()
    rows, _ = loaded(dataset_filter=["level >= 6", "topic == odd"], checked=checked)
    assert list(rows["level"]) == [6.5, 7.5, 8.5, 9.5]  # levels 6 to 9.5, of which the odd rows have a topic
    assert checked.findings[0].text == "4 of 20 rows fulfil dataset_filter=['level >= 6', 'topic == odd']"
    assert loaded(dataset_filter="level<0.75")[0]["level"][:] == [
        0.0,
        0.5,
    ]  # one condition, as a text of the YAML file
    assert len(loaded(dataset_filter="topic != odd")[0]) == 10  # an empty cell is not `odd`
    assert len(loaded(dataset_filter="topic > a")[0]) == 10  # and fulfils no comparison of order


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("level => 6", "dataset_filter='level => 6' is no condition. Give COLUMN, one of == != >= <= > <"),
        ("__import__('os')", "is no condition"),
        ("difficulty >= 6", "'difficulty' is no column of the dataset, which has: question, level, topic, prompt."),
        ("level >= high", "the column and 'high' cannot be compared"),
        ("level >= 60", "dataset_filter='level >= 60' leaves none of the 20 rows."),
    ],
)
def test_a_condition_that_cannot_be_is_refused(condition, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        loaded(dataset_filter=[condition])


@pytest.mark.parametrize(("size", "rows"), [(0.25, 5), (4, 4), (4.0, 4)])
def test_one_file_is_split_for_evaluation_always_in_the_same_way(size, rows):
    (train, test), again = loaded(size=size, evaluated=True), loaded(size=size, evaluated=True)
    assert (len(train), len(test)) == (20 - rows, rows)
    assert sorted([*train["level"], *test["level"]]) == [row / 2 for row in range(20)]
    assert list(test["level"]) == list(again[1]["level"]) != sorted(test["level"])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"size": 0.1}, "test_split_size=0.1 holds rows out for evaluation, and there is none"),
        (
            {"size": 20, "evaluated": True},
            "test_split_size=20 is refused. Give a share in (0, 1), for example 0.1, or",
        ),
        ({"size": 1.5, "evaluated": True}, "test_split_size=1.5 is refused"),
        ({"size": 2, "evaluated": True, "dataset_streaming": True}, "a stream cannot be split"),
        (
            {"evaluated": True},
            "It has: train. Use one of them, or hold rows of the training out (test_split_size=0.1)",
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused(config, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        loaded(**config)


@pytest.fixture
def deepmath(here):
    """Rows with the columns of DeepMath-103K."""
    rows = [
        {"question": "1+1=" if row < 12 else "2" * 200, "final_answer": "2", "difficulty": row / 2, "topic": "Algebra"}
        | {f"r1_solution_{number}": "one and one is two" for number in (1, 2, 3)}
        for row in range(1200)
    ]
    Dataset.from_list(rows).to_parquet(here / "deepmath" / "train.parquet")
    return str(here / "deepmath")


def test_the_papers_recipe_passes_as_it_is_shipped(deepmath, here, capsys, monkeypatch):
    """
    All of strong-to-weak but its models, its data, and vLLM, which may not be installed. Rows 12 to 1199 have a
    difficulty of 6 or more; an epoch of 1188 rows is one window of 1024.
    """
    for name, folder in (("student", STUDENT), ("teacher", TEACHER)):
        shutil.copytree(folder, here / name, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((here / name / "config.json").read_text())
        (here / name / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20000}))
        with_template().save_pretrained(here / name)
    code, table = preflight_table(
        capsys,
        *("--accelerate_config", "zero3", "--config", "strong-to-weak", "--use_vllm", "false"),
        *("--model_name_or_path", str(here / "student"), "--teacher_model_name_or_path", str(here / "teacher")),
        *("--dataset_name", deepmath),
    )
    assert code == 0, table
    assert "1188 of 1200 rows fulfil dataset_filter=['difficulty >= 6']" in table
    assert "1024 trajectories = 8 processes x 4 x 32" in table and "; 1 window an epoch" in table
    assert "updates on 820" in table and "fillers" not in table
    assert f"{'2' * 200}=;" in table  # the chat template has rendered the problem


def test_without_a_column_prompt_the_columns_are_said_and_how_to_name_one(deepmath, capsys):
    code, table = preflight_table(
        capsys,
        *("--model_name_or_path", STUDENT, "--teacher_model_name_or_path", TEACHER, "--dataset_name", deepmath),
        *("--max_completion_length", "33"),
    )
    assert (
        code == 1
        and (
            "train_dataset has no column `prompt`. It has: question, final_answer, difficulty, topic, r1_solution_1, "
            "r1_solution_2, r1_solution_3. Name the one that holds the prompt with --prompt_column"
        )
        in table
    )


def test_an_empty_file_is_said_to_be_one(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty.jsonl' is an empty file. Give one with a row for each prompt."):
        loaded(str(tmp_path / "empty.jsonl"))


def test_local_files_without_rows_and_names_that_look_like_patterns(tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "junk.parquet").write_text("junk")
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "no.parquet"
    )
    said = {"blank.jsonl": "is an empty", "no.parquet": "is an empty", "junk.parquet": "could not be read: "}
    for name, why in said.items():
        with pytest.raises(ValueError, match=f"{name}' {why}"):
            loaded(str(tmp_path / name))
    (tmp_path / "run[1]").mkdir()
    (tmp_path / "run[1]" / "part[1].jsonl").write_text('{"prompt": "1+1="}\n')
    assert len(loaded(str(tmp_path / "run[1]" / "part[1].jsonl"))[0]) == 1
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text('{"prompt": "1+1="}\n')
    assert len(loaded(str(tmp_path / "folder"), dataset_config="null")[0]) == 1
