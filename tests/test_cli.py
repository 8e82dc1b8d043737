"""`fire-opd`: fast to say what it can do, exact in what it passes on, one sentence for what is wrong."""

import os
import resource
import sys
from types import SimpleNamespace

import pytest
from support.commands import refusal
from support.launches import run_killably

from fire_opd_trl import METHODS, __version__, cli


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], [], ["trian"], *([name, "--help"] for name in cli.COMMANDS if name != "train")],
    ids=" ".join,
)
def test_what_needs_no_model_is_said_at_once(argv):
    """A third of a second, and neither torch nor what is slower. `train --help` has the fields of TRL to show."""
    program = (
        "import sys; from fire_opd_trl.cli import main\n"
        f"try: code = main({argv!r})\n"
        "except SystemExit as exit: code = exit.code\n"
        "print('exit', code, [m for m in ('torch', 'trl', 'transformers', 'yaml', 'psutil') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, output = run_killably([sys.executable, "-c", program])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert output.endswith(f"exit {2 if argv == ['trian'] else 0} []\n"), output
    # Seconds of work, not of waiting: a busy machine is not our fault.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.3
    if argv[:1] != ["trian"]:
        assert max(map(len, output.splitlines())) <= 82


def test_help_names_every_command_once(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    output = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in output.splitlines()) == 1


def test_without_a_command_help_is_shown(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fire-opd {__version__}\n"


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    message = refusal(capsys, "trian")
    assert "there is no command 'trian'. Did you mean 'train'?" in message
    assert all(name in message for name in cli.COMMANDS)
    assert "Did you mean" not in refusal(capsys, "quantize")


def test_what_a_user_can_mend_is_said_without_a_traceback(tmp_path, capsys):
    (tmp_path / "file").touch()
    for command in (["demo"], ["compare", "--preset", "smoke"]):
        assert cli.main([*command, "--output_dir", str(tmp_path / "file" / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"fire-opd {command[0]}: error: ") and said.count("\n") == 1
        assert "Not a directory" in said


def test_a_command_that_is_interrupted_says_so_in_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fire_opd_trl.demo.run", SimpleNamespace(main=interrupted))
    assert cli.main(["demo"]) == 130 and capsys.readouterr().err == "\nfire-opd demo: stopped by Ctrl-C.\n"


def test_methods_are_listed_with_their_arguments_and_first_lines(capsys):
    assert cli.main(["methods"]) == 0
    output = capsys.readouterr().out
    assert [line.split("(")[0] for line in output.splitlines() if not line.startswith(" ")] == list(METHODS)
    assert "fire(drop_fraction=0.2, confidence=1.0, confusion=1.0, scope='batch', rows='hard'," in output
    assert "exopd(extrapolation=1.25)\n    ExOPD" in output
    assert len(output.splitlines()) == 2 * len(METHODS)
    for recipe in METHODS.values():  # the first line stands alone
        assert (recipe.__doc__ or "").strip().split("\n")[0].endswith((".", ":"))


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_explained_in_full(capsys, name):
    assert cli.main(["methods", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}(") and len(lines) > 3
    told = " ".join(lines)
    assert (name == "opd" or "opd`" in told) and any(word in told for word in ("Source", "described in", "Ours"))


def test_an_unknown_method_is_answered_with_the_known_ones(capsys):
    message = refusal(capsys, "methods", "grpo")
    assert all(name in message for name in METHODS)
    for command in (["methods", "fier"], ["demo", "--method", "fier"]):
        assert "there is no method 'fier'. Did you mean 'fire'?" in refusal(capsys, *command)


def test_demo_gets_its_arguments(monkeypatch):
    monkeypatch.setitem(sys.modules, "fire_opd_trl.demo.run", SimpleNamespace(main=lambda argv: len(argv)))
    assert cli.main(["demo", "--steps", "3"]) == 2


def test_threads_that_wait_give_up_their_core_unless_the_user_says_otherwise(monkeypatch):
    seen = SimpleNamespace(main=lambda argv: os.environ["OMP_WAIT_POLICY"])
    monkeypatch.setitem(sys.modules, "fire_opd_trl.demo.run", seen)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert cli.main(["demo"]) == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cli.main(["demo"]) == "passive"
