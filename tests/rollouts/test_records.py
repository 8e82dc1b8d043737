"""The files of recorded trajectories: whole or not at all, bounded, and read by what people have."""

import json
import random
import re
import resource
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.recorded import invented_run

from fire_opd_trl.rollouts.records import (
    NUMBERS,
    SCHEMA,
    TOKEN_SCHEMA,
    begin_records,
    recorded_steps,
    records_file,
    thin_out,
    write_bounded,
    write_records,
    write_whole,
)


ABOUT = {"method": "opd", "temperature": 1.0, "reads": ["teacher_logp_BT", "student_logp_BT"]}


def row(number: int = 0, tokens: int = 3, seed: int = 0) -> dict:
    random = np.random.default_rng([seed, number])
    return {
        "row": number,
        "kept": True,
        "token_ids": random.integers(0, 150_000, tokens),
        "tokens": [f"{number}"] * tokens,
        "weight": random.random(tokens),
    }


def test_files_have_the_columns_that_they_promise_and_say_what_made_them(tmp_path):
    invented_run(tmp_path / "fire", steps=2)
    invented_run(tmp_path / "opd", steps=1, method="opd", teachers=("teacher",), rewards=False)
    for name, step in (("fire", 10), ("opd", 1)):
        table = pq.read_table(records_file(tmp_path / name, step))
        assert table.schema.equals(SCHEMA)
        about = json.loads(table.schema.metadata[b"fire_opd"])
        assert about["format"] == 1 and about["method"] == name and about["temperature"] == 1.0
        for line in table.to_pylist():
            known = [line[column] for column in TOKEN_SCHEMA.names if line[column] is not None]
            assert {len(values) for values in known} == {len(line["token_ids"])}
            assert (line["student_entropy"] is None) == (line["reward"] is None) == (name == "opd")
    assert list(recorded_steps(tmp_path / "fire")) == [1, 10]


def test_datasets_and_pandas_read_them_hostile_texts_and_broken_numbers_alike(tmp_path):
    invented_run(tmp_path, steps=2, rows=10, seed=3)
    files = [str(path) for path in recorded_steps(tmp_path).values()]
    frame = pd.concat(pd.read_parquet(path) for path in files)
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(frame) == 20 and loaded.column_names == list(frame.columns) == SCHEMA.names
    for line, (_, other) in zip(loaded, frame.iterrows(), strict=True):
        assert line["tokens"] == list(other["tokens"]) and line["prompt"] == other["prompt"]
        for name in NUMBERS:
            np.testing.assert_array_equal(np.array(line[name], dtype=np.float32), other[name])
    texts = {text for line in loaded for text in line["tokens"]}
    assert {"<script>alert(1)</script>", "<0xE2>", "שלום עולם", "\x00", "x" * 100_000} <= texts
    assert set(frame["dropped_because"].dropna()) == {"filter", "empty", "nonfinite_teacher"}
    assert any(np.isnan(line["teacher_logp"]).any() and np.isinf(line["teacher_logp"]).any() for line in loaded)


def test_a_file_is_whole_or_not_there_also_where_the_disk_is_full(tmp_path):
    path = tmp_path / "rollouts" / "one"
    write_whole(path, b"before")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # of a file that this process writes
    try:
        with pytest.raises(OSError):
            write_whole(path, b"after" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert path.read_bytes() == b"before" and [file.name for file in path.parent.iterdir()] == ["one"]
    with open(path, "rb") as reader:
        write_whole(path, b"after")
        assert reader.read() == b"before"  # who reads at that moment reads the whole of the earlier file
    assert path.read_bytes() == b"after" and len(list(path.parent.iterdir())) == 1


def test_files_are_thinned_evenly_and_the_first_and_the_last_stay(tmp_path):
    size = records_file(tmp_path, 1)
    write_records(tmp_path, 1, [row()], ABOUT)
    limit = 10 * size.stat().st_size + 5
    for step in range(1, 101):
        assert write_bounded(tmp_path, step, [row()], ABOUT, limit) == 1
        steps = list(recorded_steps(tmp_path))
        assert steps[0] == 1 and steps[-1] == step and len(steps) == min(step, 10)
        gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
        # In 9 gaps of 100 steps an even one is 11. The two gaps that become one are the smallest together, hence at
        # most twice the mean pair: no gap is more than 4 times an even one.
        assert max(gaps, default=0) <= 4 * max(1, step / 9)


@pytest.mark.parametrize("seed", range(3))
def test_files_of_any_sizes_stay_below_the_limit(seed, tmp_path):
    draw = random.Random(seed)
    for step in range(1, 30):
        write_bounded(
            tmp_path, step, [row(n, draw.randint(1, 2000), seed) for n in range(draw.randint(1, 5))], ABOUT, 100_000
        )
        assert sum(path.stat().st_size for path in recorded_steps(tmp_path).values()) <= 100_000
    assert thin_out({}, 0) is None


def test_a_window_larger_than_its_share_keeps_fewer_rows_evenly_chosen(tmp_path):
    rows = [row(number, 1000) for number in range(20)]
    write_records(tmp_path / "all", 1, rows, ABOUT)
    whole = records_file(tmp_path / "all", 1).stat().st_size
    written = write_bounded(tmp_path, 1, rows, ABOUT, whole)  # half of the limit is a file's
    kept = pq.read_table(records_file(tmp_path, 1)).column("row").to_pylist()
    assert 7 <= written == len(kept) <= 10 and kept[0] == 0 and kept[-1] >= 16 and kept == sorted(kept)
    assert records_file(tmp_path, 1).stat().st_size <= whole / 2
    assert write_bounded(tmp_path, 2, rows, ABOUT, 1000) == 0 and list(recorded_steps(tmp_path)) == [1]


def test_a_run_that_goes_on_replaces_later_steps_and_one_that_begins_moves_earlier_files(tmp_path):
    for step in (1, 5, 10, 100_000):
        write_records(tmp_path, step, [row()], ABOUT)
    assert list(recorded_steps(tmp_path)) == [1, 5, 10, 100_000]
    begin_records(tmp_path, 5, "before")
    assert list(recorded_steps(tmp_path)) == [1, 5] and not (tmp_path / "before").exists()
    begin_records(tmp_path, 0, "before")
    assert list(recorded_steps(tmp_path)) == [] and len(list((tmp_path / "before").iterdir())) == 2
    begin_records(tmp_path, 0, "before")  # there is nothing to move


def test_two_hundred_trajectories_of_a_thousand_tokens_are_small_and_quick(tmp_path):
    """Random numbers cannot be compressed: 6 x 4 bytes a token. Texts and ids of a vocabulary can."""
    invented_run(tmp_path, steps=1, rows=200, tokens=1000, long_token=False)
    (path,) = recorded_steps(tmp_path).values()
    assert path.stat().st_size < 6e6
    started = time.perf_counter()
    pq.read_table(path)
    assert time.perf_counter() - started < 2


PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text()


def test_the_page_has_every_column_and_its_questions_are_answered(tmp_path, monkeypatch, capsys):
    named = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    assert [name for cell in named for name in re.findall(r"`(\w+)`", cell)] == SCHEMA.names
    invented_run(tmp_path / "output", steps=3, rows=30)
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1:]:  # the first one trains
        exec(block, variables)
    said = capsys.readouterr().out
    # Of ten rows one is empty, one broken, one cut, and one loops until it is cut. Of the six others one is dropped.
    kept = variables["kept"].agg(["mean", "size"])
    assert kept.loc[True, False].tolist() == [pytest.approx(5 / 6), 54] and kept.loc[False, True].tolist() == [1.0, 9]
    assert " therefore" in said and "'method': 'fire'" in said and len(variables["by_text"]) > 10
    assert variables["place"].max() == 50 and variables["tokens"].shape[0] == variables["frame"].tokens.map(len).sum()
