"""`fire-opd evaluate`: its options, its exit codes, and what a kill and Ctrl-C leave."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import fields

import pytest

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import command, run
from fire_opd_trl.evaluation.evaluate.settings import Settings


@pytest.fixture
def called(monkeypatch):
    """What `evaluate` would have been called with."""
    calls = []

    def evaluate(models, tasks, **options):
        calls.append({"models": models, "tasks": tasks, **options})
        return {"entries": [], "status": "complete"}

    monkeypatch.setattr(run, "evaluate", evaluate)
    return calls


def test_options_come_from_the_command_line_and_a_file_and_the_command_line_wins(called, tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        "model: [a, b]\ntasks: math500,own.jsonl\nn: 4\nthinking: on\ntop_p: 0.9\nlimit: 10\nseed: null\ndevice:\n"
    )
    assert command.main(["--config", str(config), "--n", "2", "--model", "c", "--model", "d", "e"]) == 0
    (call,) = called
    assert call.pop("command").startswith("fire-opd evaluate --config ")
    assert call == {
        "models": ["c", "d", "e"], "tasks": ["math500", "own.jsonl"],
        "n": 2, "thinking": True, "top_p": 0.9, "limit": 10,
    }  # fmt: skip
    command.main(["--model", "a", "--tasks", "math500", "--thinking", "off", "--overwrite"])
    assert called[1]["thinking"] is False and called[1]["overwrite"] is True
    assert called[1]["command"] == "fire-opd evaluate --model a --tasks math500 --thinking off", "which goes on"
    command.main(["--model", "a", "--tasks", "b", "--vllm_args", "--enforce-eager", "--n", "2"])
    assert (called[2]["vllm_args"], called[2]["n"]) == ("--enforce-eager", 2)
    assert "inspect view --log-dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature: 1.0", "no option 'temprature'. Did you mean"),
        ("n: many", "n: 'many' is no whole number"),
        ("thinking: maybe", "thinking: 'maybe' is neither on nor off"),
        ("tasks: [null]", "tasks: None is no name"),
        ("model: {a: b}", "model: {'a': 'b'} is no name"),
        ("device: [cpu]", "device: ['cpu'] is not one value"),
        ("overwrite: on", "overwrite is for the command line"),
        ('"\\e[31m": 1', "there is no option"),
        ("- n", "it must hold options"),
        ("n: [", "cannot be read as YAML"),
        ("n: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(text, said, called, tmp_path):
    (tmp_path / "evaluate.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        command.main(["--config", str(tmp_path / "evaluate.yaml"), "--model", "a", "--tasks", "b"])
    assert said in str(error.value) and not called and "\x1b" not in str(error.value)


def test_options_without_a_value_in_a_file_are_not_given(called, tmp_path):
    (tmp_path / "evaluate.yaml").write_text("tasks:\nmodel: null\nn: null\n")
    command.main(["--config", str(tmp_path / "evaluate.yaml")])
    assert not called[0]["models"] and not called[0]["tasks"] and "n" not in called[0]
    with pytest.raises(ValueError, match="--config .*gone.yaml: it cannot be read.*No such file"):
        command.main(["--config", str(tmp_path / "gone.yaml")])


def test_names_in_a_refusal_and_in_the_report_do_nothing_to_a_terminal(capsys, monkeypatch):
    with pytest.raises(ValueError) as error:
        command.main(["--model", "/no\x1b[31m\nfolder", "--tasks", "embedded"])
    assert str(error.value) == "--model /no␛[31m folder: there is no such folder."
    monkeypatch.setattr(
        run, "evaluate", lambda *_, **__: warnings.warn("file \x1b[31m", stacklevel=1) or {"status": ""}
    )
    with pytest.raises(KeyError):  # of these results
        command.main([])
    assert capsys.readouterr().err == "Warning: file ␛[31m\n"
    command.report({"entries": [], "status": "complete"}, run.Path("a \x1b[31m\nb"), stopped=False)
    assert "--log-dir 'a ␛[31m⏎b/logs'\n" in capsys.readouterr().out


def test_every_option_of_evaluate_is_an_option_with_help(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and all(f"--{one.name} " in said for one in fields(Settings))
    assert "3 partial" in said
    with pytest.raises(SystemExit) as ended:
        command.main(["--n", "x"])
    assert ended.value.code == 2 and "'x' is no whole number" in capsys.readouterr().err


def test_the_exit_code_says_whether_something_is_missing(capsys):
    partial = {"entries": [], "status": "partial"}
    assert command.report(partial, run.Path("out"), stopped=True) == 3
    assert "partial: interrupted. The same command" in capsys.readouterr().err
    assert command.report(partial, run.Path("out"), stopped=False) == 3
    assert "ended in an error" in capsys.readouterr().err
    command.report(partial, run.Path("out"), stopped=True, overwrite=True)
    assert "The same command, without --overwrite, runs what is missing." in capsys.readouterr().err
    assert command.report({"entries": [], "status": "complete"}, run.Path("out"), stopped=False) == 0


def test_the_first_error_of_a_sample_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    rows = [
        {"problem": "p1", "stop": "stop", "text": "2"},
        {"problem": "p2", "stop": "error", "text": "out of\n\x1b[2J"},
    ]
    (tmp_path / "samples/m.sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command.report({"entries": [], "status": "partial"}, tmp_path, stopped=False)
    said = capsys.readouterr().err
    assert "ended in an error (m.sums.jsonl, p2: out of " in said and "\x1b" not in said and said.count("\n") == 2


def test_a_full_disk_is_one_sentence(monkeypatch, capsys):
    def evaluate(*arguments, **options):
        raise run.DiskFull("out cannot be written: No space left on device.")

    monkeypatch.setattr(run, "evaluate", evaluate)
    assert command.main(["--model", "a", "--tasks", "b"]) == 1
    assert capsys.readouterr().err == "fire-opd evaluate: error: out cannot be written: No space left on device.\n"


# With processes

ARGUMENTS = ["--tasks", "embedded", "--limit", "12", "--n", "4", "--max_new_tokens", "40", "--batch_size", "4"]
TOTAL = 48


def logged(folder):
    """How many samples the newest log has on the disk."""
    logs = sorted(folder.glob("logs/student/*.eval"), key=os.path.getmtime)
    try:
        return sum(name.startswith("samples/") for name in zipfile.ZipFile(logs[-1]).namelist())
    except (IndexError, zipfile.BadZipFile, OSError):  # none yet, or being replaced
        return 0


def arguments(folder):
    return ["--model", model_path("student"), *ARGUMENTS, "--device", "cpu", "--output_dir", str(folder)]


def start(folder):
    program = [sys.executable, "-m", "fire_opd_trl.evaluation.evaluate.command", *arguments(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # Ctrl-C is for this process alone; a shell that runs the tests in the background has told it to ignore that.
    return subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for(process, folder, samples):
    until = time.monotonic() + 500
    while logged(folder) < samples and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.launch
def test_a_killed_and_an_interrupted_evaluation_go_on_with_what_is_missing(tmp_path, capsys):
    folder = tmp_path / "broken"
    killed = start(folder)
    wait_for(killed, folder, 6)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    killed.stdout.close()
    there = logged(folder)
    assert 6 <= there < TOTAL and not (folder / "results.json").exists()

    stopped = start(folder)
    wait_for(stopped, folder, there + 6)
    stopped.send_signal(signal.SIGINT)
    said, _ = stopped.communicate(timeout=500)
    assert stopped.returncode == 3, said
    assert f"{TOTAL - there} of {TOTAL} samples to run, {there} are there" in said
    assert "partial: interrupted. The same command runs what is missing." in said
    assert json.loads((folder / "results.json").read_text())["status"] == "partial"
    (entry,) = json.loads((folder / "results.json").read_text())["entries"]
    now = TOTAL - entry["summary"]["missing"]  # the log also has those that were under way, as errors
    assert there < now < TOTAL

    assert command.main(arguments(folder)) == 0  # here, which spares the start of a process
    assert f"{TOTAL - now} of {TOTAL} samples to run, {now} are there" in capsys.readouterr().out

    assert command.main(arguments(tmp_path / "whole")) == 0
    results = [json.loads((one / "results.json").read_text()) for one in (folder, tmp_path / "whole")]
    for one in results:
        assert one.pop("times")
        assert one.pop("command") == one["entries"][0].pop("command")  # names the folder
    assert results[0] == results[1]
    samples = [(one / "samples" / "student.embedded.jsonl").read_text() for one in (folder, tmp_path / "whole")]
    assert samples[0] == samples[1] and len(samples[0].splitlines()) == TOTAL
