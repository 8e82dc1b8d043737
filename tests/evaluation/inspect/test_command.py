"""`fire-opd inspect`: what it writes, prints and refuses."""

import json
import shlex
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from support.commands import refusal
from support.launches import run_killably
from support.recorded import invented_run
from support.small_runs import small_run, trajectory

from fire_opd_trl import cli
from fire_opd_trl.evaluation.inspect import command, pair


def said(capsys, *argv) -> tuple[str, str]:
    code = cli.main(["inspect", *map(str, argv)])
    printed = capsys.readouterr()
    assert code == (2 if printed.err else 0)
    return printed.out, printed.err


def test_it_writes_one_page_and_says_where_it_is_and_what_it_holds(tmp_path, capsys):
    run = invented_run(tmp_path / "run", steps=2)
    out, _ = said(capsys, run)
    page = run / "inspect.html"
    assert (
        out == f"{page}\n  20 trajectories, token by token, and 2 warnings of the watchdogs. Open it in a browser.\n"
    )
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []  # nothing half written

    other = tmp_path / "new" / "page.html"
    out, _ = said(capsys, run, "--output", other, "--trajectories", 5, "--steps", "1,10-20")
    assert out.startswith(f"{other}\n  5 trajectories of the 20 that were recorded") and other.is_file()


def test_two_runs_are_in_one_page(tmp_path, capsys):
    runs = [small_run(tmp_path / name, {1: [trajectory(["a"])]}) for name in ("a", "b")]
    out, _ = said(capsys, runs[0], "--compare", runs[1])
    assert out.startswith(f"{runs[0] / 'inspect.html'}\n  2 trajectories, ")
    assert "<title>a and b" in (runs[0] / "inspect.html").read_text() and not (runs[1] / "inspect.html").exists()


def test_text_is_printed_without_colours_where_no_terminal_is_and_no_page_is_written(tmp_path, capsys):
    run = invented_run(tmp_path, steps=1)
    out, _ = said(capsys, run, "--text")
    assert out.startswith(f"{tmp_path.name}\nstatus ") and "\x1b" not in out and not (run / "inspect.html").exists()


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_has_colours_unless_it_is_told_not_to(tmp_path, capsys, monkeypatch, environment, coloured):
    run = small_run(tmp_path, {1: [trajectory(["a"])]})
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert ("\x1b[1m" in said(capsys, run, "--text")[0]) == coloured


def test_it_imports_nothing_slow_and_a_terminal_need_not_know_all_signs(tmp_path):
    run = small_run(tmp_path, {1: [trajectory(["é数"])]})
    program = (
        "import sys; from fire_opd_trl.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'trl', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    code, output = run_killably(
        [sys.executable, "-c", program, "inspect", str(run), "--text"], PYTHONIOENCODING="ascii"
    )
    assert code == 0 and "\\xe9\\u6570" in output


def test_a_reader_may_stop_reading():
    program = "from fire_opd_trl.evaluation.inspect.command import printed; raise SystemExit(printed('x\\n' * 10**6))"
    # Without a buffer, Python itself ends a write that nobody reads.
    reading = shlex.join(["env", "-u", "PYTHONUNBUFFERED", sys.executable, "-c", program])
    piped = f"{reading} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("x\n0\n", "")


def test_the_page_is_opened_on_demand(tmp_path, capsys, monkeypatch):
    run, opened = small_run(tmp_path / "a run", {1: [trajectory(["a"])]}), []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    out, _ = said(capsys, run, "--open")
    assert opened == [(run / "inspect.html").as_uri()] and "%20" in opened[0] and "No browser" not in out
    out, _ = said(capsys, run, "--open")
    assert out.endswith("  No browser could be started: open the file by hand.\n")


def test_wrong_arguments_are_refused_in_one_sentence(tmp_path, capsys):
    run = str(small_run(tmp_path / "run", {3: [trajectory(["a"])]}))
    for argv, sentence in [
        ([], "which run? Give the output_dir of a training, or a pair: --student, --teacher and --prompts."),
        (
            [run, "--student", "x"],
            f"{run} is a run, and --student asks for a look at two models. Leave one of them out.",
        ),
        (
            [run, "--rows", "5"],
            f"{run} is a run, and --rows asks for a look at two models. Leave one of them out.",
        ),
        ([run, "--text", "--open"], "--text prints, and writes no page: leave out --output and --open."),
        ([run, "--text", "--output", "x"], "--text prints, and writes no page: leave out --output and --open."),
        ([run, "--trajectories", "0"], "--trajectories 0: give at least 1."),
        ([run, "--steps", "1-x"], "'1-x' is no step. Give numbers and spans of them, such as 1,10-50."),
        ([run, "--steps", ""], "'' is no step. Give numbers and spans of them, such as 1,10-50."),
    ]:
        assert refusal(capsys, "inspect", *argv).endswith(sentence)
    for argv, sentence in [
        ([run, "--steps", "9"], "--steps: nothing was recorded there. Recorded are steps 3."),
        ([f"{run}/rollouts"], f"{run}/rollouts is no run: it holds no run.json, no metrics.jsonl and no rollouts/"),
        ([run, "--compare", "nowhere"], "nowhere is no run: there is no such folder."),
        ([run, "--output", f"{run}/run.json/x.html"], "File exists"),
    ]:
        out, err = said(capsys, *argv)
        assert err.startswith("fire-opd inspect: error: ") and sentence in err and err.count("\n") == 1 and out == ""
    assert not (Path(run) / "inspect.html").exists()


def test_a_pair_is_sampled_and_then_shown_like_a_run(tmp_path, capsys, monkeypatch):
    sampled = []

    def sample_pair(options):
        sampled.append(options.student)
        return invented_run(tmp_path / "pair", steps=1)

    monkeypatch.setattr(pair, "sample_pair", sample_pair)
    asked = ("--student", "small", "--teacher", "large", "--prompts", "prompts.jsonl")
    _, err = said(capsys, *asked, "--compare", tmp_path / "nowhere")
    assert "nowhere is no run" in err and sampled == []  # before the models are loaded
    out, _ = said(capsys, *asked)
    assert sampled == ["small"] and out.startswith(f"{tmp_path / 'pair' / 'inspect.html'}\n  10 trajectories, ")


def test_the_watchdogs_look_at_a_run_that_had_none(tmp_path, capsys):
    cut = [{"step": step, "fire/rows": 16, "completions/clipped_ratio": 0.9} for step in range(1, 31)]
    run = small_run(tmp_path, {}, cut)
    assert "What to do: " in said(capsys, run, "--text")[0]
    (run / "run.json").write_text(json.dumps({"watchdogs": {}}))  # it had watchdogs, which said nothing
    assert "What the watchdogs said\nNothing.\n" in said(capsys, run, "--text")[0]


def test_the_steps_of_a_command_line_are_numbers_and_spans():
    assert command.steps_of("3") == [(3, 3)] and command.steps_of("1, 10-50") == [(1, 1), (10, 50)]
