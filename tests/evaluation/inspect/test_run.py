"""Reads what a run has left so far, and says what is no run."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.recorded import invented_run
from support.small_runs import small_run, trajectory

from fire_opd_trl.evaluation.inspect.run import NUMBERS, ROW, read_run
from fire_opd_trl.rollouts.records import SCHEMA, write_records


def test_every_number_of_every_token_is_the_one_in_the_files(tmp_path):
    records = read_run(invented_run(tmp_path / "run", steps=3, rows=10)).records
    files = sorted((tmp_path / "run" / "rollouts").iterdir())
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(records.rows) == len(rows) == 30 and len(files) == 3
    for number, row in enumerate(rows):
        assert records.rows[number] == {name: row[name] for name in ROW}
        tokens = slice(records.starts[number], records.starts[number + 1])
        assert [records.vocabulary[token] for token in records.tokens[tokens]] == row["tokens"]
        assert records.trains[tokens].tolist() == row["trains"]
        for name in NUMBERS:
            np.testing.assert_array_equal(records.numbers[name][tokens], np.array(row[name], np.float32))
    assert records.starts[-1] == len(records.tokens) == sum(len(row["tokens"]) for row in rows)
    assert records.row_of_token.tolist() == [n for n, row in enumerate(rows) for _ in row["tokens"]]


def test_a_number_that_a_method_does_not_read_is_none_and_one_that_some_rows_lack_is_said_for_each(tmp_path):
    opd = read_run(invented_run(tmp_path / "opd", steps=1, method="opd")).records
    assert [name for name in NUMBERS if opd.numbers[name] is None] == ["student_entropy", "teacher_entropy"]
    rows = [trajectory(["a", "b"], weight=None), trajectory(["c"], weight=[2.0])]
    mixed = read_run(small_run(tmp_path / "mixed", {1: rows})).records
    assert mixed.has["weight"].tolist() == [False, True]
    np.testing.assert_array_equal(mixed.numbers["weight"], [math.nan, math.nan, 2.0])


def test_files_and_rows_are_in_the_order_of_numbers(tmp_path):
    folder = small_run(tmp_path, {9: [trajectory(["a"])], 99_999: [trajectory(["b"])], 100_000: [trajectory(["c"])]})
    rows = [{**trajectory([text]), "row": row} for row, text in ((7, "late"), (2, "early"))]
    write_records(folder, 10, rows, {"method": "fire", "temperature": 1.0, "reads": []})
    records = read_run(folder).records
    assert [(row["step"], row["row"]) for row in records.rows] == [(9, 0), (10, 2), (10, 7), (99_999, 0), (100_000, 0)]
    assert [records.vocabulary[token] for token in records.tokens] == ["a", "early", "late", "b", "c"]


def test_a_run_that_is_under_way_is_read_as_far_as_it_is_written(tmp_path):
    folder = invented_run(tmp_path / "run", steps=3)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "loss": 0.0')  # half a line
    (folder / "rollouts" / ".rollouts_00030.parquet.part").write_bytes(b"PAR1")
    run = read_run(folder)
    assert len(run.logs) == 3 and len(run.warnings) == 2 and run.lacks == []

    files = sorted((folder / "rollouts").glob("*.parquet"))
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\nnonsense\n[1]\n{"step": 2}\n')
    (folder / "watchdogs.jsonl").write_text('{"step": 1, "says": "Too long."}\n{"step": 2}\n')
    run = read_run(folder)
    assert len(run.records.rows) == 20 and [log["step"] for log in run.logs] == [1, 2]
    assert run.lacks[0] == "metrics.jsonl: 1 line cannot be read, the first is line 2."
    assert run.lacks[1].startswith("rollouts/rollouts_00020.parquet cannot be read: ") and len(run.lacks) == 2
    assert run.warnings == [
        {
            "watchdog": "watchdog",
            "metric": "",
            "value": None,
            "limit": None,
            "remedy": "",
            "step": 1,
            "says": "Too long.",
        }
    ]


def test_silence_of_watchdogs_that_could_not_see_is_not_taken_for_health(tmp_path):
    def unwatched(about: dict, steps: int, each: int = 1) -> str:
        logs = [{"step": each * number} for number in range(1, steps + 1)]
        return read_run(small_run(tmp_path, {}, logs, about)).unwatched

    assert unwatched({"asked": {}}, 1) == "Nothing was trained, so that they had nothing to watch."
    assert unwatched({"watchdogs": {}, "settings": {"on_sick": "ignore"}}, 50).startswith("They were switched off")
    assert unwatched({"watchdogs": {}}, 9) == unwatched({}, 9, each=10) == "It is too early: they need 10 windows."
    assert unwatched({"watchdogs": {}}, 1, each=10) == unwatched({}, 10) == ""
    (tmp_path / "watchdogs.jsonl").write_text('{"step": 1, "says": "Too long."}\n')
    assert unwatched({}, 1) == ""


def test_what_a_run_lacks_is_said_with_what_to_do(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    run = read_run(tmp_path)
    assert run.lacks == [
        "There is no run.json: what ran is not known.",
        "No trajectories were recorded. log_rollouts=16 in the settings of a training records 16 at each log, with "
        "every number of every token.",
    ]
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "metrics.jsonl").unlink()
    assert read_run(tmp_path).lacks[:2] == [
        "run.json cannot be read: what ran is not known.",
        "There is no metrics.jsonl with a log yet (logging_steps says how often one is written).",
    ]


def refused(path) -> str:
    with pytest.raises(ValueError) as error:
        read_run(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_run_is_refused_with_the_folder_that_was_meant(tmp_path, monkeypatch):
    run = invented_run(tmp_path / "outputs" / "first", steps=1)
    (run / "checkpoint-10").mkdir()
    for inside in (run / "rollouts", run / "checkpoint-10", run / "metrics.jsonl", run / "rollouts" / "x.parquet"):
        assert refused(inside).endswith(f" Did you mean '{run}'?"), inside
    assert "it is a file, and the folder of a run is needed" in refused(run / "metrics.jsonl")
    assert refused(tmp_path / "outputs").endswith(
        f"outputs is no run: it holds no run.json, no metrics.jsonl and no rollouts/*.parquet. Did you mean '{run}'?"
    )
    shutil.copytree(run, tmp_path / "outputs" / "second")
    assert refused(tmp_path / "outputs").endswith(f" Did you mean '{run}' or '{tmp_path / 'outputs' / 'second'}'?")
    assert refused(tmp_path / "outputs" / "frist").endswith(
        f"frist is no run: there is no such folder. Did you mean '{run}'?"
    )
    monkeypatch.chdir(run)
    assert refused(tmp_path / "elsewhere").endswith(
        " Give the output_dir of a training, such as outputs/demo after `fire-opd demo`."
    )
    monkeypatch.chdir(tmp_path)
    assert refused(run / "rollouts").endswith(" Did you mean 'outputs/first'?")


def test_records_of_another_version_are_refused(tmp_path):
    folder = small_run(tmp_path, {1: [trajectory(["a"])]})
    file = folder / "rollouts" / "rollouts_00001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"fire_opd": json.dumps({"format": 2})}), file)
    version = "it was written by another version of fire_opd_trl. Use that version."
    assert refused(folder) == f"{file} has format 2, and 1 is known: {version}"
    pq.write_table(table.drop_columns(["looped"]), file)
    assert refused(folder) == f"{file} has no column looped: {version}"


def test_it_reads_the_columns_that_the_records_have():
    assert set(SCHEMA.names) - {"prompt_ids", "completion", "token_ids"} == {*ROW, "tokens", "trains", *NUMBERS}
