"""Rows from files and the Hub, as tables and as streams; what is written, and what is refused."""

import json
import re

import pytest
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from support.prompt_sets import deepmath, written

from fire_opd_trl.data import sources


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_a_file_is_read_whatever_its_kind(here, ending, streaming):
    written(deepmath(5), here / f"rows{ending}")
    rows = sources.load_rows(f"rows{ending}", "FILE", streaming=streaming)
    assert sources.table_of(rows)["question"][:] == [row["question"] for row in deepmath(5)]
    assert len(sources.table_of(rows, 2)) == 2


def test_a_file_on_the_hub_is_asked_for_by_its_kind(here, monkeypatch):
    asked = []

    def fake(builder, data_files, streaming):
        asked.append((builder, data_files))
        return load_dataset("parquet", data_files=str(written(deepmath(3), here / "x.parquet")))

    monkeypatch.setattr("datasets.load_dataset", fake)
    assert len(sources.load_rows("hf://datasets/a/b/c.parquet", "--source")) == 3
    assert asked == [("parquet", "hf://datasets/a/b/c.parquet")]
    with pytest.raises(ValueError, match="--source='hf://datasets/a/b': a file on the Hub must end in"):
        sources.load_rows("hf://datasets/a/b", "--source")


def test_splits_are_chosen_by_name(here):
    (here / "set").mkdir()
    for split in ("validation", "test"):
        written(deepmath(2), here / "set" / f"{split}.jsonl")
    assert len(sources.load_rows("set", "FILE", split="test")) == 2
    with pytest.raises(ValueError, match="FILE='set' has several splits: .*validation.* Choose one with --split"):
        sources.load_rows("set", "FILE")
    with pytest.raises(ValueError, match="--split train is no split of set, which has: "):
        sources.load_rows("set", "FILE", split="train")


def test_a_broken_line_is_named(here):
    (here / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl line 2 is not JSON: .* Its start: '\{\"prompt\": "):
        sources.load_rows("broken.jsonl", "FILE")


def broken_off():
    yield {"text": "a"}
    raise OSError("the line is dead\nand more")


def test_a_stream_that_breaks_off_says_so():
    with pytest.raises(ValueError, match="the stream could not be read to its end: the line is dead$"):
        sources.table_of(IterableDataset.from_generator(broken_off))


def test_a_stream_without_a_row_is_a_table_with_its_columns():
    features = Features({"text": Value("string"), "n": Value("int32")})
    none = IterableDataset.from_generator(broken_off).take(0)
    assert sources.converted(none, shouted, features, sign="!").features == features


def test_a_missing_file_is_refused_with_what_was_meant(here):
    written(deepmath(1), here / "mine.jsonl")
    with pytest.raises(ValueError, match=r"FILE='mien.jsonl': no such file .* Did you mean 'mine.jsonl'\?"):
        sources.refuse_missing_file("mien.jsonl", "FILE")
    for name in ("mine.jsonl", "org/name", "hf://datasets/a/b.parquet"):
        sources.refuse_missing_file(name, "FILE")


def shouted(row, sign):
    return {"text": row["question"].upper() + sign, "n": len(row["question"])}


def test_a_table_and_a_stream_become_the_same_and_the_cache_knows_the_work_again(here, monkeypatch):
    written(deepmath(4), here / "rows.parquet")
    features = Features({"text": Value("string"), "n": Value("int32")})

    def made(streaming, sign="!"):
        rows = sources.load_rows("rows.parquet", "FILE", streaming=streaming)
        return sources.converted(rows, shouted, features, sign=sign)

    table = made(False)
    assert table.to_list() == made(True).to_list() and table.features == made(True).features == features
    assert made(False)._fingerprint == table._fingerprint != made(False, "?")._fingerprint
    cached = sorted((here / "cache").rglob("*.arrow"))
    monkeypatch.setattr(Dataset, "_map_single", lambda *_, **__: pytest.fail("the work was done again"))
    assert made(False).to_list() == table.to_list() and sorted((here / "cache").rglob("*.arrow")) == cached


def test_another_edition_of_the_code_is_other_work(here, monkeypatch, tmp_path):
    written(deepmath(2), here / "rows.parquet")
    features = Features({"text": Value("string"), "n": Value("int32")})
    rows = sources.load_rows("rows.parquet", "FILE")
    before = sources.converted(rows, shouted, features, sign="!")._fingerprint
    (tmp_path / "sources.py").write_text("# changed")
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "sources.py"))
    assert sources.converted(rows, shouted, features, sign="!")._fingerprint != before


def test_a_prompt_becomes_messages_of_the_user():
    assert sources.as_messages(" What? ", "In a box.") == [{"role": "user", "content": "What?\nIn a box."}]
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert sources.as_messages(chat) == [{"role": "user", "content": "U"}]
    assert sources.as_messages(None) == sources.as_messages([5]) == []
    assert sources.as_messages("", "In a box.") == [{"role": "user", "content": ""}]


def test_a_value_inside_a_column():
    row = {"a": {"b": {"c": 5}}, "d": 1}
    assert [sources.value_at(row, path) for path in ("a.b.c", "d", "a.x", "d.e", "z")] == [5, 1, None, None, None]


def test_rows_are_left_out_with_the_reason():
    table = Dataset.from_dict({"prompt": ["a", "b", "a", "c", "c"], "dropped": ["", "why", "", "why", ""]})
    kept, why = sources.without_dropped(table)
    assert kept.to_dict() == {"prompt": ["a"]}
    assert why == {"why": 2, "the prompt of an earlier row": 2}


def test_a_draw_is_the_same_for_a_seed():
    table = Dataset.from_dict({"row": list(range(50))})
    drawn = sources.drawn(table, 10, 3)["row"][:]
    assert (
        drawn == sorted(set(drawn)) == sources.drawn(table, 10, 3)["row"][:] != sources.drawn(table, 10, 4)["row"][:]
    )
    assert sources.drawn(table, 50, 3) is table is sources.drawn(table, None, 3)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_what_is_written_is_whole_and_can_be_read(here, ending):
    table = Dataset.from_list([{"prompt": [{"role": "user", "content": "é"}], "answer": None}])
    output = here / "folder" / f"out{ending}"
    said = sources.write_rows(table, output, 3, {"why": 2, "never": 0})
    assert said == f"{output}: 1 of 3 rows\n        2 left out: why"
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert sources.load_rows(str(output), "FILE").to_list() == table.to_list()
    assert ending == ".parquet" or json.loads(output.read_text())["prompt"][0]["content"] == "é"
    with pytest.raises(ValueError, match=r"is not written: no row is left. Read: 1. Left out: why \(1\).$"):
        sources.write_rows(table.select([]), here / "none.jsonl", 1, {"why": 1})


def test_an_output_that_must_not_be_written_is_refused(here):
    (here / "there.jsonl").write_text("")
    (here / "folder.jsonl").mkdir()
    for name, said in {
        "there.jsonl": "there.jsonl is there already. --overwrite replaces it",
        "out.csv": "give a file that ends in .jsonl or .parquet",
        "folder.jsonl": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            sources.refuse_output(here / name, False)
    sources.refuse_output(here / "there.jsonl", True)


def test_values_by_name():
    assert sources.by_name("--weight", ["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    for words, said in {
        ("a",): "--weight a: give it as NAME=VALUE",
        ("a=1", "a=2"): "a is there twice",
        ("c=1",): "there is no source 'c'. Sources: a, b",
    }.items():
        with pytest.raises(ValueError, match=said):
            sources.by_name("--weight", list(words), ["a", "b"])


def test_a_column_that_is_not_there_is_refused_with_the_one_that_is():
    table = Dataset.from_dict({"question": ["a"], "reward_model": [{"x": 1}]})
    sources.refuse_unknown_columns(table, ["reward_model.x", "question"], "--source x")
    with pytest.raises(ValueError, match="--source x: 'qestion' is no column. It has: .* Did you mean 'question'"):
        sources.refuse_unknown_columns(table, ["qestion"], "--source x")
