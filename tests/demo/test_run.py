"""The demo as files. Its steps are taken where it is installed: laws/test_wheel.py and examples/test_examples.py."""

import json

import pytest

from fire_opd_trl.demo import run, task
from fire_opd_trl.preflight import arguments


def test_the_exported_files_are_a_run_that_preflight_lets_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--export", "own"]) == 0
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"student", "teacher", "problems.jsonl", "run.yaml"}
    rows = [json.loads(line) for line in (tmp_path / "own" / "problems.jsonl").read_text().splitlines()]
    assert len(rows) == run.EXPORTED
    for row in rows[:50]:
        a, b = (int(number) for number in row["question"].removesuffix("=").split("+"))
        assert row["answer"] == str(a + b) and not task.is_held_out(a, b)
    assert arguments.main(["--accelerate_config", "cpu", "--config", "own/run.yaml"]) == 0
    assert "no warnings" in capsys.readouterr().out


def test_nothing_is_written_into_a_folder_that_is_in_use(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run.main(["--export", str(tmp_path)])
    assert stopped.value.code == 2 and "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
