"""Worker processes: a world of their own, time limits that hold, and errors that say what happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fire_opd_trl.evaluation import workers
from fire_opd_trl.evaluation.workers import Worker, WorkerFailed, do_jobs


MODULE = """
import os, subprocess, sys, time
def obey(link, *arguments):
    while (order := link.recv()) != "quit":
        if order == "fail": raise ValueError("no such order")
        if order == "sleep": time.sleep(100)
        if order == "leave": sys.exit(3)
        if order == "print": print("to stdout", flush=True); print("to stderr", file=sys.stderr, flush=True)
        if order == "child":
            link.send(subprocess.Popen(["sleep", "100"]).pid)
            continue
        link.send((arguments, os.environ.get("OF_THIS_TEST"), os.getsid(0) == os.getpid(), "torch" in sys.modules))
    if "stay" in arguments: time.sleep(100)
    if "limp" in arguments: sys.exit(4)
"""


@pytest.fixture(autouse=True)
def importable(tmp_path, monkeypatch):
    """A worker imports its function from where this process would."""
    (tmp_path / "obedient.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_worker_has_an_environment_and_a_session_of_its_own(tmp_path, capfd):
    log = tmp_path / "logs" / "one.log"
    with Worker("one", "obedient:obey", (1, "two"), {"OF_THIS_TEST": "set"}, log) as worker:
        worker.send("look")
        assert worker.receive(30) == ((1, "two"), "set", True, False)  # variables come before torch
        worker.send("print")
        worker.receive(30)
        worker.quit()
    assert log.read_text() == "to stdout\nto stderr\n" and "OF_THIS_TEST" not in os.environ
    with Worker("nobody listens to", "obedient:obey") as worker:
        worker.send("print")
        worker.receive(30)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("fail", r"one ended with code 1\. .*one\.log says: ValueError: no such order$"),
        ("leave", r"one ended with code 3\. .*one\.log says: nothing$"),
        ("sleep", r"one did not answer within 0\.5 s\. .*one\.log says: nothing$"),
    ],
)
def test_what_went_wrong_is_said_with_the_last_line_of_the_log(order, sentence, tmp_path):
    with Worker("one", "obedient:obey", log=tmp_path / "one.log") as worker:
        worker.send("look")
        worker.receive(30)
        worker.send(order)
        worker.send("look")  # to a worker that may be dead: nothing happens here
        with pytest.raises(WorkerFailed, match=sentence):
            worker.receive(0.5 if order == "sleep" else 30)


@pytest.mark.parametrize(
    ("argument", "sentence"), [("stay", r"one did not end within 0\.5 s"), ("limp", r"one ended with code 4")]
)
def test_a_worker_that_does_not_quit_well_is_an_error(argument, sentence, monkeypatch):
    with Worker("one", "obedient:obey", (argument,)) as worker:
        worker.send("look")
        worker.receive(30)
        monkeypatch.setattr(workers, "QUIT_SECONDS", 0.5 if argument == "stay" else 30)
        with pytest.raises(WorkerFailed, match=sentence):
            worker.quit()
    assert worker.process.returncode in (4, -signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("order", ["sleep", "leave"])
def test_the_children_of_a_worker_end_with_it_even_if_it_died_alone(order):
    with Worker("one", "obedient:obey") as worker:
        worker.send("child")
        child = worker.receive(30)
        worker.send(order)
        if order == "leave":
            worker.process.wait(30)
        assert is_running(child)
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def test_a_worker_that_dies_between_two_jobs_costs_none():
    started, answers = [], []

    def start():
        started.append(Worker("one", "obedient:obey"))
        return started[-1]

    def on_answer(job, answer):
        answers.append(answer)
        if len(answers) == 1:
            started[0].process.kill()
            started[0].process.wait()

    do_jobs(["look"] * 3, 1, start, on_answer)
    assert len(started) == 2 and answers == [((), None, True, False)] * 3
    assert all(worker.process.returncode == -signal.SIGKILL for worker in started)


def test_workers_end_when_their_answers_cannot_be_taken():
    started = []

    def start():
        started.append(Worker("one", "obedient:obey"))
        return started[-1]

    def interrupt(job, answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_jobs(["look", "sleep", "look"], 2, start, interrupt)
    assert len(started) == 2 and all(worker.process.poll() is not None for worker in started)


@pytest.mark.parametrize("way", ["-c", "a script without a guard"])
def test_a_worker_does_not_run_the_main_program_again(way, tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fire_opd_trl.evaluation.workers import Worker\n"
        "print('main')\n"
        "with Worker('one', 'obedient:obey') as worker:\n"
        "    worker.send('look')\n"
        "    print(worker.receive(30)[3])\n"
        "    worker.quit()\n"
    )
    (tmp_path / "script.py").write_text(program)
    command = ["-c", program] if way == "-c" else [str(tmp_path / "script.py")]
    root = str(Path(workers.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": root}
    )
    assert (done.stdout, done.returncode) == ("main\nFalse\n", 0), done.stderr
