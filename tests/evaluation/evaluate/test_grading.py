r"""Right and wrong answers, what math-verify is known to get wrong, and answers that no process survives."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fire_opd_trl.evaluation import workers
from fire_opd_trl.evaluation.evaluate import grading
from fire_opd_trl.evaluation.evaluate.grading import Graders, exact, normalised, tidy


pytestmark = pytest.mark.launch
LIMIT = 0.5


@pytest.fixture(scope="module")
def graders():
    with Graders(workers=2, limit=LIMIT) as graders:
        yield graders


def table(text: str) -> list[tuple[str, str]]:
    """Pairs of a gold answer and an answer, one a line."""
    return [tuple(line.split(" | ")) for line in text.strip().splitlines()]  # type: ignore[misc]


RIGHT = table(r"""
10 | 10
10 | 10.0
10 | 10.
10 | +10
10 | $10$
10 | \boxed{10}
10 | \text{10}
10 | 10\text{ apples}
10 | x = 10
10 | x = 5 + 5 = 10
10 | 010
10 | \$10
10 | \approx 10
10 | 10^\circ
10 | 10°
10 | 20/2
-5 | −5
10000 | 10,000
10000 | 10{,}000
10000 | 10\,000
10000 | 10 000
10000 | 1 \times 10^4
1/2 | 0.5
1/2 | .5
1/2 | \frac12
1/2 | \dfrac{1}{2}.
\frac{1}{2} | 1/2
\frac{1}{3} | 0.333333
\frac{9}{2} | 4\frac{1}{2}
9/2 | 4 1/2
x^2+1 | 1 + x^2
x^2+1 | f(x) = x^2 + 1
(x+1)(x-1) | x^2-1
(1,2) | \left( 1, 2 \right)
(1,2) | (x,y) = (1,2)
(1,-2,3) | (1, -2, 3)
1,2 | 2, 1
1,2 | x=1, x=2
1,2 | 1 \text{ and } 2
\pm 2 | 2, -2
[0,1) | \left[0,1\right)
[0,1) | x \in [0,1)
0 \le x < 1 | [0,1)
x < 1 | 1 > x
(-\infty,1) \cup (2,\infty) | (2,\infty) \cup (-\infty,1)
50\% | 50\%
50\% | 50
50\% | \frac{1}{2}
5 \text{ cm} | 5\text{ cm}
5 \text{ cm} | 5
A | \text{(A)}
A | \textbf{A}
\text{Evelyn} | Evelyn
Evelyn | \text{evelyn}.
June 20 | \text{June 20}
3\sqrt{13} | \sqrt{117}
1+i | i+1
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\\3&4\end{bmatrix}
2^{100} | 1267650600228229401496703205376
\binom{5}{2} | 10
120^\circ | 120
y=2x+1 | 2x-y+1=0
\log_2 3 | \frac{\ln 3}{\ln 2}
""")
WRONG = table(r"""
10 | 1
10 | 9, 10
10 | 9 \text{ or } 10
10 | 9 \rightarrow 10
10 | \text{not } 9 & 10
10 | 10!
10 | 10x
10 | 1010
10 | 0.1
10 | 10 \pm 1
0 | 10 000
1 | 1 1/2
5 | \neq 5
5 | >5
1 | 0.999999
\frac{1}{3} | 0.333
\pi | 3.14
\pi | \frac{22}{7}
2 | \pm 2
1,2 | 1
(1,2) | (2,1)
(1,2) | [1,2]
[0,1) | (0,1)
[0,1) | [0,1]
x < 1 | x \le 1
x^2+1 | y^2+1
A | B
east | seat
\text{even} | \text{odd}
Yes | No
-1 | 1
1-i | 1+i
x=5 | y=5
1.5 | 1,5
11/2 | 1 1/2
2^{1000} | 2^{1000}+1
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&2\\4&3\end{pmatrix}
""")
# What math-verify 0.9 says, though a teacher would say otherwise. docs/evaluate_statistics.md says why.
FALSE_RIGHT = table(r"""
5 \text{ cm} | 5 \text{ m}
101 | 101_2
10 | 10\%
10 | 9 = 10
10 | 9 \equiv 10
0.0000001 | 0.0000002
\{1,2\} | (1,2)
(1,2) | 1, 2
5 | 5 \text{ or more}
5 | 5, 5
5 | 500\%
1,1 | 1
2n | 2N
x=5 | 5
""")
FALSE_WRONG = table(r"""
10 | 10 = x
10 | \text{The answer is } 10
[0,1) | 0 \le x < 1
(-\infty,1) | x < 1
120^\circ | \frac{2\pi}{3}
\text{no solution} | \emptyset
A | \textbf{(A)}\ 10
1/3 | 0.\overline{3}
1000 | 1e3
\sqrt{2} | √2
(1,2) | \begin{pmatrix}1\\2\end{pmatrix}
x^2+1 | (x+i)(x-i)
6-5i | a=6, b=-5
2x | 2t
""")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [(RIGHT, True), (WRONG, False), (FALSE_RIGHT, True), (FALSE_WRONG, False)],
    ids=["right", "wrong", "right, says math-verify", "wrong, says math-verify"],
)
def test_answers_are_graded_as_a_teacher_would_or_as_math_verify_is_known_to(graders, pairs, expected):
    verdicts = [(gold, answer, graders.grade((gold,), answer)) for gold, answer in pairs]
    assert [one for one in verdicts if (one[2] == "right") is not expected] == []


def test_any_of_several_gold_answers_is_right(graders):
    assert [graders.grade(("7", r"\frac{1}{2}"), answer) for answer in ("7.0", "0.50", "8")] == ["right"] * 2 + [
        "wrong"
    ]


def test_verdicts_say_why_an_answer_is_not_right(graders):
    before = graders.counts.copy()
    answers = {"": "no answer", " \n": "no answer", "10 \\equiv": "unparsed", "11": "wrong", "10": "right"}
    assert {answer: graders.grade(("10",), answer) for answer in answers} == answers
    assert graders.counts - before == {"no answer": 2, "unparsed": 1, "wrong": 1, "right": 1}
    assert set(answers.values()) | {"timeout", "died"} == set(grading.VERDICTS)
    assert graders.grade((r"\equiv ??",), r"\equiv ??") == "right"  # what nobody can parse is right to the letter


def test_a_gold_answer_that_is_of_no_use_is_found(graders):
    golds = ["10", "1/2", r"\frac{1}{2}", "x^2+1", "(1,2)", "[0,1)", r"50\%", r"5 \text{ cm}", "A", r"\text{Evelyn}"]
    assert [gold for gold in golds if graders.check(gold) != "right"] == []
    assert graders.check(r"\equiv ??") == "unparsed"


def test_exact_answers_are_compared_as_text():
    assert exact(("a b", " 12 "), "12\n") == exact(("a b",), " a b") == "right"
    assert exact(("12",), "12.0") == exact((), "") == exact(("a b",), "a  b") == "wrong"


@pytest.mark.parametrize(
    ("ways", "others"),
    [
        (["1/2", "0.5", ".50", r"\frac{1}{2}", r"\dfrac{2}{4}", " 0.5. ", "$0.5$"], ["5", "-1/2", "1/3", "0,5"]),
        (["10000", "10,000", r"10\,000", "10 000", "10000.0"], ["10,00", "1000", "10, 000"]),
        (["-3", "-3.0", r"\frac{-3}{1}", "-6/2"], ["3"]),
        (["(1,2)", r"\left( 1, 2 \right)", "( 1 ,2)"], ["(2,1)", "(12)", "1,2"]),
        (["1 2", "1  2"], ["12", "1,2"]),
        ([r"\text{East }", "east", "East."], ["seat"]),
        (["1/0"], ["0", "1"]),
        ([r"\left\{1\right.", r"\{1."], [r"\{2"]),
    ],
)
def test_equal_answers_have_one_text(ways, others):
    assert len({normalised(way) for way in ways}) == 1
    assert not {normalised(way) for way in ways} & {normalised(other) for other in others}
    assert normalised("7" * 2000) == "7" * 2000  # too long to be looked at


def test_tidied_answers_are_text_that_utf8_can_hold():
    assert tidy("\ud800 10 \udc80").encode() == b"? 10 ?"
    assert tidy(b"\xff10.".decode("utf-8", "surrogateescape")) == "?10"
    assert tidy(r"\left\{1, 2\right.") == r"\left\{1, 2\right." and tidy(r"10\,") == r"10\,"


HOSTILE = {  # and whether it costs the whole limit
    "a tower": ("9^{9^{9^9}}", True),
    "factorials": ("(10^{10})!", True),
    "a sum of 10^12 terms": (r"\sum_{k=1}^{10^{12}} \sin(k)", True),
    "a thousand open braces": ("{" * 1000, None),
    "nine hundred closed ones": ("}" * 900, None),
    "braces in braces": ("{" * 400 + "10" + "}" * 400, None),
    "1 MB of digits": ("9" * 1_000_000, False),
    "1 MB of a sum": ("1+" * 500_000 + "1", False),
    "1 MB of spaces": (" " * 500_000 + "3" + " " * 500_000 + "4", False),
    "lone surrogates": ("\ud800\udfff 10 \udc80", False),
    "no UTF-8": (b"\xff\xfe\x00 10".decode("utf-8", "surrogateescape"), False),
    "control characters": ("".join(map(chr, range(1, 32))), False),
}


def test_hostile_answers_cost_a_timeout_each_and_nothing_else(graders):
    counted, replaced = graders.counts.copy(), graders.replaced
    work = [(name, ("10",), answer) for name, (answer, _) in HOSTILE.items()]
    work += [("right", (str(k),), f"{k}.0") for k in range(20)] + [("wrong", (str(k),), str(k + 1)) for k in range(20)]
    random.Random(0).shuffle(work)

    def grade(job: tuple[str, tuple[str, ...], str]) -> tuple[str, str]:
        return job[0], graders.grade(*job[1:])

    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(grade, work))
    hostile = {name: verdict for name, verdict in verdicts if name in HOSTILE}
    assert [one for one in verdicts if one[0] not in HOSTILE and one[0] != one[1]] == []
    assert all(slow is None or (hostile[name] == "timeout") is slow for name, (_, slow) in HOSTILE.items()), hostile
    assert set(hostile.values()) <= {"timeout", "unparsed", "wrong", "died"}
    timeouts = sum(verdict in ("timeout", "died") for verdict in hostile.values())
    found = graders.counts - counted
    assert found["timeout"] + found["died"] == graders.replaced - replaced == timeouts
    assert found.total() == len(work) and found["right"] == 20


def test_the_limit_is_processor_time_without_the_start_and_ten_times_that_by_the_clock(monkeypatch):
    with Graders(workers=1, limit=0.3) as graders:  # to import sympy takes longer
        assert graders.grade(("10",), "10.0") == "right"
        (worker,) = graders._all
        with monkeypatch.context() as patch:
            patch.setattr(grading, "CLOCK", 200)
            assert graders.grade(("10",), "9^{9^{9^9}}") == "timeout" and graders.replaced == 1
        assert worker.process.returncode == -signal.SIGPROF  # the kernel was first
        assert graders.grade(("10",), "10.0") == "right"
        (worker,) = graders._all
        os.kill(worker.process.pid, signal.SIGSTOP)  # as if it waited for a processor
        threading.Timer(0.3, os.kill, (worker.process.pid, signal.SIGCONT)).start()
        assert graders.grade(("10",), "11.0") == "wrong" and graders.replaced == 1
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert graders.grade(("10",), "10.0") == "timeout" and graders.replaced == 2


def test_a_worker_that_is_killed_costs_one_answer_at_most():
    with Graders(workers=1, limit=30) as graders:
        assert graders.grade(("10",), "10.0") == "right"
        (busy,) = graders._all
        threading.Timer(0.3, busy.process.kill).start()
        assert graders.grade(("10",), "9^{9^{9^9}}") == "died"
        assert graders.grade(("10",), "10.0") == "right" and graders.replaced == 1
        (idle,) = graders._all
        idle.process.kill()
        idle.process.wait()
        assert graders.grade(("10",), "10.0") == "right" and graders.replaced == 2
        assert busy.process.returncode == idle.process.returncode == -signal.SIGKILL
        assert graders.counts == {"right": 3, "died": 1}


def test_an_answer_that_needs_the_memory_of_a_worker_costs_one_answer():
    with Graders(workers=1, limit=20, memory=160 << 20) as graders:
        assert graders.grade(("10",), r"0.5 \cdot 2^{10^8}") == "died"
        assert graders.grade(("10",), "10.0") == "right" and graders.replaced == 1
        assert graders.counts == {"died": 1, "right": 1}


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_no_process_outlives_its_graders():
    graders = Graders(workers=2, limit=60)
    assert [graders.grade(("10",), "10.0") for _ in range(2)] == ["right"] * 2
    found = list(graders._all)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(graders.grade, ("10",), "9^{9^{9^9}}") for _ in range(3)]  # one of them waits
        time.sleep(0.3)
        graders.close()
        for one in asked:
            with pytest.raises(RuntimeError, match="closed"):
                one.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        graders.grade(("10",), "10.0")
    graders.close()
    assert [worker.process.returncode for worker in found] == [-signal.SIGKILL] * 2


def test_no_process_outlives_a_parent_that_is_killed():
    program = (
        "import threading, time\n"
        "from fire_opd_trl.evaluation.evaluate.grading import Graders\n"
        "graders = Graders(2, 1.0)\n"
        "for _ in range(2): graders.grade(('10',), '10.0')\n"
        "threading.Thread(target=graders.grade, args=(('10',), '9^{9^{9^9}}')).start()\n"  # one computes, one waits
        "time.sleep(0.1)\n"
        "print(*(worker.process.pid for worker in graders._all), flush=True)\n"
        "time.sleep(100)\n"
    )
    root = str(Path(workers.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_grader_that_cannot_start_is_no_verdict(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install fire-opd-trl\[eval\]"):
            Graders()
    with pytest.raises(ValueError, match="workers=0, limit=5.0"):
        Graders(workers=0)
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    with Graders(workers=1) as graders, pytest.raises(workers.WorkerFailed, match="A grader ended with code 1"):
        graders.grade(("10",), "10.0")
    assert not graders.counts


def test_what_results_say_of_the_grader():
    found = grading.describe(2.5)
    assert (found["name"], found["limit"], found["longest"]) == ("math-verify", 2.5, 1000)
    assert found["version"].startswith("0.9")
