"""One's own data: what is not there, which column is the prompt, which rows are used, which are held out."""

import gzip
import json
import re
import shutil
import sys
from datetime import date
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from datasets import Dataset
from support.inspections import STUDENT, TEACHER, preflight_table, with_template
from trl import DatasetMixtureConfig

from fire_opd_trl.preflight import arguments
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


def test_a_column_takes_the_place_of_the_prompt():
    rows, _ = loaded(prompt_column="question")
    assert rows.column_names == ["prompt", "level", "topic"] and rows[3]["prompt"] == "3+3="
    rows, _ = loaded(prompt_column="question", dataset_streaming=True)
    assert next(iter(rows))["prompt"] == "0+0="
    for streaming in (False, True):
        why = "prompt_column='questoin' is no column .*: question, level, topic, prompt."
        with pytest.raises(ValueError, match=why):
            loaded(prompt_column="questoin", dataset_streaming=streaming)


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
    with pytest.raises(ValueError, match=re.escape(sentence.replace("none of the 20 rows", "no row").split("'")[-1])):
        loaded(dataset_filter=[condition], dataset_streaming=True)


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


def test_a_fault_of_a_condition_is_said_without_a_bar(here, capsys):
    models = ("--model_name_or_path", STUDENT, "--teacher_model_name_or_path", TEACHER)
    rows = ("--dataset_name", "problems.jsonl", "--prompt_column", "question", "--dataset_filter", "level >= high")
    assert arguments.main([*models, *rows, "--output_dir", "never"]) == 1
    said = capsys.readouterr()
    assert "Filter" not in said.err and "cannot be compared" in " ".join(said.out.split())


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


def no_rows(path):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)


def packed(path):
    path.write_bytes(gzip.compress(b"\n\n"))


def folder_of(**files):
    def made(path):
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("_", ".")).write_text(content)

    return made


ROW = '{"prompt": "1+1="}\n'
NO_ROWS = "it has no rows. Give one with a row for each prompt."
UTF8 = "Save it as UTF-8, for example with: iconv"
# What lies at a path, and what is said of it.
UNREADABLE = {
    "empty.jsonl": (b"", NO_ROWS),
    "blank.jsonl": (b"\n\n", NO_ROWS),
    "none.json": (b"[]", NO_ROWS),
    "head.csv": (b"prompt,answer\n", NO_ROWS),
    "no.parquet": (no_rows, NO_ROWS),
    "blank.jsonl.gz": (packed, NO_ROWS),
    "blanks": (folder_of(a_jsonl="\n", b_jsonl=""), NO_ROWS),
    "junk.parquet": (b"junk", "Parquet"),
    "broken.jsonl": (b'{"prompt": ', "JSON parse error"),
    "ragged.csv": (b'a,b\n1,2,3,4\n"', "Error tokenizing data"),
    "latin.jsonl": (b'{"prompt": "\xe9"}\n', UTF8),
    "latin.csv": (b"prompt\n\xe9\n", UTF8),
    "noending": (ROW.encode(), "its ending '' is not known. Rename the file to one of .jsonl, .json, "),
    "rows.jsonl.bak": (ROW.encode(), "its ending '.bak' is not known."),
    "kinds": (folder_of(a_jsonl=ROW, b_csv="prompt\n1+1=\n"), "several kinds (a.jsonl, b.csv), of which only one"),
    "run[1]": (folder_of(a_jsonl=ROW), "a folder whose path holds one of [ * ? is read as a pattern."),
}  # fmt: skip


MEANT = "---\nconfigs:\n- config_name: one\n  data_files: a.jsonl\n---\n"
# Of these everything is read that is meant.
WHOLE = {
    "splits": folder_of(train_jsonl=ROW, test_jsonl=ROW, stats_csv="a\n1\n"),
    "meant": folder_of(a_jsonl=ROW, b_csv="prompt\n1+1=\n", README_md=MEANT),
    "empty_test": folder_of(train_jsonl=ROW, test_jsonl=""),
}


@pytest.mark.parametrize("name", WHOLE)
def test_folders_of_which_all_is_read_that_is_meant(name, here):
    WHOLE[name](here / name)
    streaming = name == "empty_test"  # `datasets` makes a table of all splits or of none
    assert len(list(loaded(name, dataset_streaming=streaming)[0])) == 1


def test_a_link_is_read_by_its_own_name(here):
    (here / "blob").write_text(ROW)
    (here / "rows.jsonl").symlink_to(here / "blob")
    assert len(loaded("rows.jsonl")[0]) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_wrong_with_a_file_is_said_with_its_name_in_one_sentence(name, streaming, here, capfd):
    content, said = UNREADABLE[name]
    content(here / name) if callable(content) else (here / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"dataset_name={name!r} could not be read: ")) as error:
        loaded(name, dataset_streaming=streaming)
    assert said in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)
    assert "Failed" not in capfd.readouterr().err


def test_files_and_folders_by_any_sound_name(here, monkeypatch):
    folder_of(train_jsonl=ROW, README_md="A card", config_json="{}", notes_txt="-")(here / "folder")
    assert len(loaded("folder", dataset_config="null")[0]) == 1
    folder_of(
        train_jsonl=ROW, test_csv="x", README_md="---\nconfigs:\n- config_name: a\n  data_files: train.jsonl\n---"
    )(here / "carded")
    assert len(loaded("carded")[0]) == 1
    (here / "run[1]").mkdir()
    for name in ("part[1].jsonl", "UPPER.JSONL", "rows.jsonl.gz", "rows.tsv"):
        content = gzip.compress(ROW.encode()) if name.endswith("gz") else ROW.encode()
        (here / "run[1]" / name).write_bytes(b"prompt\tanswer\n1+1=\t2\n" if name.endswith("tsv") else content)
        assert loaded(f"run[1]/{name}")[0]["prompt"][:] == ["1+1="]
    monkeypatch.chdir(here / "folder")
    assert loaded(".")[0]["prompt"][:] == ["1+1="]


CELLS = {
    "lang": ["no", "de", None], "day": ["2024-01-01", "2024-01-02", "null"], "code": ["007", "7", "10"],
    "topic": ["Algebra: basics", "[1", "*"], "f": [0.5, 1.0, 2.5], "n": [0, 1, 2], "solved": [True, False, None],
    "when": [date(2024, 1, 1), date(2024, 1, 2), None], "tags": [["a"], [], ["a", "b"]],
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("lang == no", [0]), ("lang != null", [0, 1]), ("lang == null", [2]), ("lang > a", [0, 1]),
        ("day == 2024-01-01", [0]), ("day == 'null'", [2]), ("code == 007", [0]), ("code == 7", [1]),
        ('code > "1"', [1, 2]), ("code > 6", "'007' is a text, and 6 a number"),
        ("topic == Algebra: basics", [0]), ("topic == [1", [1]), ("topic == *", [2]), ("topic == '[1'", [1]),
        ("f >= 1e0", [1, 2]), ("f == 1", [1]), ("n < 1.5", [0, 1]),
        ("n == null", "leaves no"), ("n > null", "'null' cannot be compared"), ("when > x", "Invalid isoformat"),
        ("solved == true", [0]), ("solved == False", [1]), ("solved != true", [1, 2]), ("solved > 0", [0]),
        ("when > 2024-01-01", [1]), ("when == 2024-01-01", [0]),
        ("n > x", "'x' cannot be compared"), ("n != one", "'one' cannot be compared"),
        ("solved != yes", "'yes' cannot be compared"), ("tags != []", "'[]' cannot be compared"),
        ("tags != null", [0, 1, 2]),
    ],
)  # fmt: skip
def test_the_value_of_a_condition_is_read_as_what_a_cell_is(condition, rows, streaming, here):
    Dataset.from_dict({"prompt": ["0", "1", "2"], **CELLS}).to_parquet(here / "cells.parquet")
    if isinstance(rows, list):
        left, _ = loaded("cells.parquet", dataset_filter=[condition], dataset_streaming=streaming)
        assert [int(row["prompt"]) for row in left] == rows
        return
    with pytest.raises(ValueError, match=re.escape(rows)) as error:
        loaded("cells.parquet", dataset_filter=[condition], dataset_streaming=streaming)
    assert condition in str(error.value)
