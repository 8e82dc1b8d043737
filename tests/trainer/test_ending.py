"""How a training script ends early: one sentence, one exit code, and a traceback only where something is broken."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support.launches import hear_signals

from fire_opd_trl.preflight.packaged import load_module
from fire_opd_trl.trainer import ending


def folder_with(path, *steps: int):
    """An output folder with whole checkpoints of these steps, and one that was being written."""
    for step in steps:
        (path / f"checkpoint-{step}").mkdir(parents=True)
        (path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (path / "checkpoint-999").mkdir(parents=True)
    return path


# Resume


def test_true_goes_on_from_the_last_whole_checkpoint(tmp_path):
    folder = folder_with(tmp_path, 20, 100, 3)
    for word in ("true", "True", True, "yes"):
        assert ending.checkpoint_to_resume(word, str(folder)) == str(folder / "checkpoint-100")
    for word in ("false", False, None, "no", "none"):
        assert ending.checkpoint_to_resume(word, str(folder)) is None
    assert ending.checkpoint_to_resume(str(folder / "checkpoint-3"), "elsewhere") == str(folder / "checkpoint-3")


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    folder = folder_with(tmp_path / "run", 20, 3)
    with pytest.raises(
        ValueError, match=r"='checkpoint-4': it is no folder of a checkpoint\. There is: (.*), (.*)\."
    ) as e:
        ending.checkpoint_to_resume("checkpoint-4", str(folder))
    assert f"{folder / 'checkpoint-3'}, {folder / 'checkpoint-20'}. Remove" in str(e.value)
    with pytest.raises(
        ValueError, match="='true': there is no checkpoint in .*empty. Remove the argument to start anew"
    ):
        ending.checkpoint_to_resume("true", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"no folder of a checkpoint\. None was saved there\."):
        ending.checkpoint_to_resume("x", str(tmp_path / "empty"))


# Refusals and bugs


SOURCE = """
def on_purpose():
    raise ValueError(
        "drop_fraction=2 is refused."
    )

def number():
    int("x")

def unpack():
    a, b = 1, 2, 3

def part_of_ours():
    import fire_opd_trl.no_such_room

def package():
    import a_package_that_nobody_has

def file():
    open("no such file")

def library():
    from pathlib import Path
    Path("x").relative_to("y")

def extra():
    raise ImportError("vLLM is not available. Install it with pip install trl[vllm].")

def version():
    from pathlib import NoSuchPath
"""


@pytest.mark.parametrize(
    ("cause", "mended"),
    [
        *(("on_purpose", True), ("package", True), ("file", True)),
        *(("extra", True), ("version", False)),
        *(("number", False), ("unpack", False), ("part_of_ours", False), ("library", False)),
    ],
)
def test_what_a_user_can_mend_is_told_from_a_bug(tmp_path, monkeypatch, cause, mended):
    package = tmp_path / "fire_opd_trl"
    package.mkdir()
    monkeypatch.setattr(ending, "PACKAGE", package)
    if cause == "extra":  # a library may say so
        package = tmp_path
    (package / "ours.py").write_text(SOURCE)
    with pytest.raises((ValueError, OSError, ImportError)) as caught, ending.refusals():
        vars(load_module(package / "ours.py"))[cause]()
    assert isinstance(caught.value, ending.Refusal) == mended
    if mended:
        assert str(caught.value) == str(caught.value.__cause__)


# A process


PROGRAM = """
import sys, time
from fire_opd_trl.trainer.ending import Ending, Refusal
sys.argv = ["train.py"]
ending = Ending()
{before}
with ending:
    ending.output_dir = {folder!r}
    {inside}
"""
READY = "print('ready', flush=True)"


def script(inside: str, folder="out", before: str = "", **environment: str) -> subprocess.Popen:
    """A script that does something inside of its run."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(inside=inside, folder=str(folder), before=before)],
        preexec_fn=hear_signals,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def end(process: subprocess.Popen, *numbers: int) -> tuple[int, str]:
    """Send signals to a script that is ready; its exit code and what it said."""
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


SLEEP = f"{READY}; time.sleep(20)"


def test_a_signal_ends_it_with_the_line_that_names_the_last_checkpoint(tmp_path):
    folder = folder_with(tmp_path, 4, 12)
    line = (
        f"The last checkpoint is {folder}/checkpoint-12; the same command with --resume_from_checkpoint true goes on"
    )
    assert end(script(SLEEP, folder), signal.SIGTERM) == (143, f"\ntrain.py: stopped by SIGTERM. {line} from it.\n")
    tidy = f"try: {SLEEP}\n    finally: time.sleep(0.3); print('tidy', flush=True)"
    twice = end(script(tidy, folder), signal.SIGINT, signal.SIGTERM)  # from a terminal, and from a launcher
    assert twice == (130, f"tidy\n\ntrain.py: stopped by Ctrl-C. {line} from it.\n")


def test_without_a_checkpoint_it_says_so():
    before = end(script("", before=SLEEP), signal.SIGINT)
    assert before == (130, "\ntrain.py: stopped by Ctrl-C.\n")
    code, output = end(script(SLEEP), signal.SIGINT)
    assert (
        code == 130 and "There is no checkpoint in out yet (--save_steps says how often); the same command" in output
    )


def test_whatever_a_signal_causes_is_no_failure():
    """The other rank has ended first, and a collective breaks."""
    code, output = end(
        script(f"try: {SLEEP}\n    except BaseException: pass\n    raise RuntimeError('Connection closed by peer')"),
        signal.SIGTERM,
    )
    assert code == 143 and "peer" not in output and "stopped by SIGTERM" in output


def test_other_ranks_and_those_below_fire_opd_train_leave_the_line_to_others():
    assert end(script(SLEEP, RANK="1"), signal.SIGTERM) == (143, "")
    assert end(script(SLEEP, **{ending.COMMAND: "fire-opd train"}), signal.SIGINT) == (130, "")


def test_workers_that_a_script_forks_end_silently():
    fork = f"import os, signal; child = os.fork()\n    if not child: time.sleep(20)\n    {READY}; time.sleep(0.2)"
    fork += "; os.kill(child, signal.SIGTERM); print(os.waitstatus_to_exitcode(os.wait()[1]))"
    assert end(script(fork)) == (0, "143\n")


def test_a_refusal_is_a_sentence_and_exit_code_2_and_a_bug_keeps_its_traceback():
    refusal = script("raise Refusal('drop_fraction=2 is refused.')")
    assert refusal.communicate(timeout=20)[0] == "train.py: error: drop_fraction=2 is refused.\n"
    assert refusal.returncode == 2
    bug = script("int('x')")
    assert "Traceback" in bug.communicate(timeout=20)[0] and bug.returncode == 1
    stop = script("from fire_opd_trl.trainer import ending as e; e.checkpoint_to_resume('x', 'y')")  # while it trains
    assert stop.communicate(timeout=20)[0].startswith("train.py: error: resume_from_checkpoint='x'")
    assert stop.returncode == 1


def test_a_refusal_of_another_rank_alone_is_said_by_it():
    begin = time.monotonic()
    refusal = script("raise Refusal('row 3 is wrong.')", RANK="1")
    assert refusal.communicate(timeout=20)[0] == "train.py (rank 1): error: row 3 is wrong.\n"
    assert refusal.returncode == 2 and time.monotonic() - begin > 7  # so long it leaves the word to rank 0
    refusal = script(f"{READY}; raise Refusal('row 3 is wrong.')", RANK="1")
    assert end(refusal, signal.SIGTERM) == (143, "")  # from the launcher: rank 0 has said it


def test_a_start_says_from_where_and_whose_checkpoints_lie_there(tmp_path):
    folder = str(tmp_path)
    assert ending.how_it_starts(None, folder) == ""
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    assert "holds checkpoint-5 of an earlier one. --resume_from_checkpoint true goes on" in ending.how_it_starts(
        None, folder
    )
    checkpoint = ending.checkpoint_to_resume("true", folder, max_steps=5)
    assert ending.how_it_starts(checkpoint, folder) == f"The run goes on from {tmp_path / 'checkpoint-5'}."
    with pytest.raises(ValueError, match="checkpoint-5 has made 5 steps, and max_steps=3. Raise max_steps, or"):
        ending.checkpoint_to_resume("true", folder, max_steps=3)
