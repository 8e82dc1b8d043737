"""
Programs that a model has written for HumanEval+ and MBPP+, judged in a sandbox.

evalplus runs a program in one process with the expected results, and trusts what that process says. A program that
writes into the frame of its caller, or returns an object that equals everything, then passes. Here

* the program runs in a sandbox of its own, new for each set of tests. It gets the inputs one at a time, and what it
  returns leaves the sandbox as text that describes plain data. The expected results are never there, nor is the file
  of problems.
* this process measures the time, and asks with a number that cannot be guessed, so that an answer to no question is
  noticed. It reads nothing of an answer but that number and one word.
* the judge, in a second sandbox without any code of a model, has evalplus with its problems, reference solutions and
  tolerances. It lets evalplus' own check compare, with a function that returns what the program has returned.

A program can thus say what it returns, and nothing else. What is left of evalplus: the inputs, the expected results
(by its reference solutions), its rules of comparison, its limits of time, and its way to find the program in a text.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...trainer.ending import Refusal
from .sandbox import START_SECONDS, Ended, Limits, Running, Sandbox, SandboxFailed, TimedOut, TooLong


INSIDE = Path(__file__).with_name("inside.py")
EVALPLUS = "0.3.1"
DATASETS = {"HumanEval": "humaneval", "Mbpp": "mbpp"}
PARTS = ("base", "plus")
# The limits of the paper's authors: a second, evalplus' own, is soon over on a machine that has other work to do.
SECONDS, FACTOR = 10.0, 8.0
PART_SECONDS = 60.0  # for all tests of a part, as in evalplus
JUDGE_SECONDS = 600.0  # the judge runs the reference solution first, which takes its time for some problems
PART_BYTES = 64 << 20
JUDGE_LIMITS = Limits(memory=8 << 30, processes=64, disk=256 << 20, cpu_seconds=1_000_000, line=1 << 30, files=256)
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads count as processes
HIDDEN = re.compile(r"human_?eval|mbpp", re.IGNORECASE)
DATA = (".jsonl", ".gz", ".json", ".parquet", ".pkl")
ENVIRONMENT = Path(".venv-evalplus/bin/python")
HOW = "`make evalplus` makes it in a copy of this package's repository; docs/benchmarks_code.md has the commands."


@dataclass(frozen=True)
class CodeGrade:
    """
    What came of one program.

    Attributes:
        base (`str`): The verdict of the tests of the original benchmark, one of `grading.VERDICTS`.
        plus (`str`): The verdict of these and of evalplus' further tests.
        note (`str`): What happened, for whoever looks at the sample.
    """

    base: str
    plus: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """The verdict that counts: all tests."""
        return self.plus


@dataclass(frozen=True)
class Interpreter:
    """The Python of evalplus, and the folders that it needs."""

    path: str
    version: str
    folders: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()


WHAT_IS_THERE = """
import importlib.metadata as metadata, json, sys
print(json.dumps({
    "version": sys.version.split()[0], "prefix": sys.prefix, "base": sys.base_prefix,
    "packages": {each.metadata["Name"]: each.version for each in metadata.distributions()},
}))
"""


def find_interpreter(path: str | Path | None, sandbox: Sandbox | None = None) -> Interpreter:
    """
    Returns the interpreter of evalplus. The command calls this before it loads a model. Nothing is installed.

    Args:
        path (`str` or `Path`, *optional*):
            `--evalplus_python`. By default that of `.venv-evalplus` in this folder, and in a container `python3`.
        sandbox ([`Sandbox`], *optional*): Docker has the interpreter in its image; else it is one of this machine.
    """
    if sandbox is not None and sandbox.name == "docker":
        return interpreter_inside(str(path or "python3"), sandbox)
    python = Path(path or ENVIRONMENT).expanduser()
    option = f"--evalplus_python {str(python)!r}"
    if not python.is_file():
        raise Refusal(f"{option} is no file. evalplus {EVALPLUS} judges code, in an environment of its own: {HOW}")
    python = Path(os.path.abspath(python))  # not resolved: the link of an environment says which one it is
    try:
        command = [str(python), "-I", "-c", WHAT_IS_THERE]
        there = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS).stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise Refusal(f"{option} is no Python that runs ({error}). {HOW}") from error
    checked_packages(there["packages"], option)
    folders = {Path(there[name]) for name in ("prefix", "base") if not Path(there[name]).is_relative_to("/usr")}
    for folder in folders:
        if Path.home().is_relative_to(folder):
            raise Refusal(
                f"{option} belongs to {folder}, which holds your own files: code of a model would read them. Give an "
                f"environment of its own. {HOW}"
            )
    hidden = [found for folder in folders for found in data_files(folder)]
    return Interpreter(str(python), there["version"], tuple(sorted(folders)), tuple(hidden))


def interpreter_inside(python: str, sandbox: Sandbox) -> Interpreter:
    """Returns the interpreter of evalplus in an image of docker."""
    with sandbox.start([python, "-I", "-c", WHAT_IS_THERE]) as running:
        try:
            there = json.loads(running.line(START_SECONDS))
        except (Ended, TimedOut, TooLong, ValueError):
            complaint = running.complaint()
            raise Refusal(f"{sandbox.name} does not work here: {complaint}. {sandbox.advice(complaint)}") from None
    checked_packages(there["packages"], f"{python} of the image")
    return Interpreter(python, there["version"])


def checked_packages(packages: dict[str, str], where: str) -> None:
    """Refuses an environment without evalplus, or with another version of it."""
    found = packages.get("evalplus")
    if found != EVALPLUS:
        has = f"has evalplus {found}" if found else "has no evalplus"
        raise Refusal(f"{where} {has}; version {EVALPLUS} is needed. {HOW}")


def data_files(folder: Path) -> Iterable[Path]:
    """Yields what lies below a folder and looks like the data of a benchmark, with its solutions."""
    for place, folders, files in os.walk(folder):
        for name in files:
            if name.endswith(DATA) and HIDDEN.search(name):
                yield Path(place, name)
        folders[:] = [name for name in folders if name != "__pycache__"]


def read_problems(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file in evalplus' format: `HumanEvalPlus.jsonl` or `MbppPlus.jsonl`, perhaps packed."""
    rows = []
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path}: evalplus reads .jsonl or .jsonl.gz, as it publishes them, and nothing else.")
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    needed = "task_id prompt entry_point canonical_solution contract base_input plus_input atol".split()
    with opened as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                absent = [name for name in needed if name not in row]
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no JSON object ({error}).") from error
            if absent:
                raise ValueError(
                    f"{path}, line {number}: no {', '.join(absent)}. The file must be HumanEvalPlus.jsonl or "
                    "MbppPlus.jsonl as evalplus publishes them, not the original benchmark."
                )
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no problem.")
    return rows


def dataset_of(names: Iterable[str]) -> str:
    """Returns evalplus' name of the benchmark whose problems have these names: `humaneval` or `mbpp`."""
    kinds = {name.split("/")[0] for name in names}
    if len(kinds) == 1 and (kind := kinds.pop()) in DATASETS:
        return DATASETS[kind]
    raise ValueError(
        f"problems must be named HumanEval/NUMBER or Mbpp/NUMBER, not {', '.join(sorted(kinds))[:100]!r}."
    )


class CodeGraders:
    """
    Judges programs. The engine makes one for each task of code, and calls [`CodeGraders.grade`] from its threads.

    Args:
        problems (`Path`): The file of problems, in evalplus' format.
        sandbox ([`Sandbox`]): What runs the programs, and the judge.
        interpreter ([`Interpreter`]): The Python of evalplus.
        workers (`int`): How many programs run at a time.
        seconds, factor (`float`): The limit of a test is `seconds`, or `factor` times what the reference takes.
    """

    def __init__(
        self,
        problems: Path,
        sandbox: Sandbox,
        interpreter: Interpreter,
        workers: int = 2,
        seconds: float = SECONDS,
        factor: float = FACTOR,
    ):
        self.file, self.sandbox, self.interpreter = problems.resolve(), sandbox, interpreter
        self.seconds, self.factor = seconds, factor
        rows = read_problems(self.file)
        self.dataset = dataset_of(row["task_id"] for row in rows)
        self.entry_points = {row["task_id"]: row["entry_point"] for row in rows}
        self.command = [interpreter.path, "-I", "-B", "-c", INSIDE.read_text(encoding="utf-8")]
        self.inputs: dict[tuple[str, str], tuple[list[str], list[float]]] = {}
        self.slots, self.turn = threading.Semaphore(workers), threading.Lock()
        self.judge: Running | None = None
        sandbox.check(interpreter.path, interpreter.folders)
        try:
            self._start_judge()
        except (TimedOut, Ended, TooLong) as error:
            assert self.judge is not None
            complaint = self.judge.complaint().rpartition("\n")[2] or type(error).__name__
            raise Refusal(f"evalplus does not start with {self.file}: {complaint}. {HOW}") from None

    def __enter__(self) -> CodeGraders:
        return self

    def __exit__(self, *error) -> None:
        with self.turn:
            self._end_judge()

    def facts(self) -> dict[str, Any]:
        """Returns what makes the verdicts, for the file of results."""
        return {
            "name": "evalplus",
            "version": EVALPLUS,
            "dataset": self.dataset,
            "python": self.interpreter.version,
            "sandbox": self.sandbox.name,
            "seconds": self.seconds,
            "factor": self.factor,
        }

    def grade(self, problem: str, text: str | None) -> CodeGrade:
        """
        Returns what came of a program, or of a text that holds one.

        Args:
            problem (`str`): The name of the problem, `HumanEval/0`.
            text (`str`, *optional*): The block of code that was found in the completion.
        """
        if problem not in self.entry_points:
            raise ValueError(f"{self.file} has no problem {problem!r}.")
        if not (text or "").strip():
            return CodeGrade("no answer", "no answer")
        with self.slots:
            text = str(text).encode("utf-8", "replace").decode()
            program = self._ask({"do": "sanitize", "name": problem, "text": text})["program"]
            base, note = self._part(problem, program, "base")
            if base != "right":
                return CodeGrade(base, base, note)
            plus, note = self._part(problem, program, "plus")
            return CodeGrade(base, plus, note)

    def _part(self, problem: str, program: str, part: str) -> tuple[str, str]:
        """Returns the verdict of one part of the tests, and what happened."""
        if (problem, part) not in self.inputs:
            answer = self._ask({"do": "inputs", "name": problem, "part": part})
            self.inputs[problem, part] = answer["inputs"], answer["limits"]
        inputs, limits = self.inputs[problem, part]
        outputs, verdict, note = self._outputs(program, self.entry_points[problem], inputs, limits)
        if verdict is not None:
            return verdict, f"{part}: {note}"
        said = self._ask({"do": "check", "name": problem, "part": part, "outputs": outputs})["verdict"]
        return {"pass": "right", "timeout": "timeout"}.get(said, "wrong"), f"{part}: evalplus says {said}"

    def _outputs(
        self, program: str, entry_point: str, inputs: Sequence[str], limits: Sequence[float]
    ) -> tuple[list[str], str | None, str]:
        """
        Runs a program on inputs, in a sandbox of its own. Returns what it has returned, and, where it did not return
        for each input, a verdict and what happened.
        """
        outputs: list[str] = []
        size, number = 0, 0
        with self._start_program() as running:
            deadline = time.monotonic() + min(PART_SECONDS, sum(limits)) + 2 + SECONDS
            try:
                code = f'"code": {json.dumps(program)}, "entry_point": {json.dumps(entry_point)}'
                word, _ = ask(running, code, PART_SECONDS)
                if word != "loaded":
                    return outputs, "unparsed" if word == "unparsed" else "wrong", f"loading: {word}"
                for number, (each, limit) in enumerate(zip(inputs, limits, strict=True), 1):
                    seconds = min(limit, deadline - time.monotonic())
                    word, data = ask(running, f'"input": {each}', seconds)
                    if word != "returned":
                        return outputs, "wrong", f"test {number}: {word}"
                    size += len(data)
                    if size > PART_BYTES:
                        raise TooLong
                    outputs.append(data)
            except TimedOut:
                return outputs, "timeout", f"test {number}: no answer in time"
            except Ended:
                return outputs, "died", f"test {number}: the process ended"
            except TooLong:
                return outputs, "wrong", f"test {number}: more than {PART_BYTES >> 20} MB"
        return outputs, None, ""

    def _start_program(self) -> Running:
        """Starts the process of a program, which has not seen the program yet."""
        for _attempt in range(2):
            hide = [self.file, *self.interpreter.hidden]
            folders = self.interpreter.folders
            running = self.sandbox.start([*self.command, "program"], Limits(), folders, QUIET, hide)
            try:
                if running.line(START_SECONDS) == b"ready":
                    return running
            except (TimedOut, Ended, TooLong):
                pass
            complaint = running.complaint()
        raise SandboxFailed(f"{self.sandbox.name} no longer starts: {complaint or 'it says nothing'}")

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns the judge's answer. A judge that has died is started again, once."""
        line = json.dumps(order).encode()
        with self.turn:
            for _attempt in range(2):
                try:
                    if self.judge is None:
                        self._start_judge()
                    assert self.judge is not None
                    self.judge.send(line, JUDGE_SECONDS)
                    answer = json.loads(self.judge.line(JUDGE_SECONDS))
                    break
                except (TimedOut, Ended, TooLong, ValueError) as error:
                    complaint = self.judge.complaint() if self.judge is not None else ""
                    failure = f"{type(error).__name__} {complaint[-500:]}"
                    self.judge, answer = None, {"failed": failure}
        if "failed" in answer:
            raise SandboxFailed(f"evalplus cannot {order['do']} {order['name']} of {self.file}: {answer['failed']}")
        return answer

    def _start_judge(self) -> None:
        path = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}[self.dataset]
        environment = {path: str(self.file), "EVALPLUS_MAX_MEMORY_BYTES": "-1", **QUIET}  # -1: the sandbox has limits
        arguments = ["judge", self.dataset, str(self.seconds), str(self.factor)]
        see = [*self.interpreter.folders, self.file]
        self.judge = self.sandbox.start([*self.command, *arguments], JUDGE_LIMITS, see, environment)
        if self.judge.line(JUDGE_SECONDS) != b"ready":
            raise Ended

    def _end_judge(self) -> None:
        if self.judge is not None:
            self.judge.kill()
            self.judge = None


def ask(running: Running, order: str, seconds: float) -> tuple[str, str]:
    """
    Returns the word and the data with which a program answers an order. An answer without the order's number is no
    answer to it, whoever wrote it.

    Args:
        order (`str`): The fields of the order, as in a JSON object.
    """
    nonce = secrets.token_hex(16)
    deadline = time.monotonic() + seconds
    running.send(f'{{"nonce": "{nonce}", {order}}}'.encode(), seconds)
    number, _, rest = running.line(deadline - time.monotonic()).partition(b" ")
    if number != nonce.encode():
        return "an answer to no question", ""
    word, _, data = rest.partition(b" ")
    return word[:20].decode("ascii", "replace"), data.decode("ascii", "replace")


def programs_of(samples: Path) -> dict[str, list[str | None]]:
    """
    Returns the programs in a file `OUT/samples/MODEL.livecodebench.jsonl`, for each `question_id` in the order of its
    samples. `None` stands for a completion that holds no program.
    """
    found: dict[str, dict[int, str | None]] = {}
    with open(samples, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found.setdefault(str(row["problem"]), {})[row["sample"]] = row["answer"]
    return {question: [programs[number] for number in sorted(programs)] for question, programs in found.items()}


def write_livecodebench(path: Path, programs: dict[str, list[str | None]]) -> Path:
    """
    Writes what LiveCodeBench's own `lcb_runner.runner.custom_evaluator` reads, and returns the path. Nothing here runs
    its tests: docs/benchmarks_code.md says how to, in a sandbox.

    Its evaluator takes a list for each question, in the order of their `question_id` as text. It also names a form
    that holds the names of the questions, which ends in a TypeError in its own code.

    Args:
        programs (`dict[str, list[str]]`): For each `question_id` the programs, `None` where a completion held none.
    """
    ordered = [[program or "" for program in programs[question]] for question in sorted(programs)]
    path.write_text(json.dumps(ordered, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")
    return path


def read_livecodebench(path: Path) -> dict[str, list[bool]]:
    """
    Returns for each `question_id` whether its programs are right: the `graded_list` of the file
    `..._codegeneration_output_eval_all.json` that the evaluator writes.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {row["question_id"]: [bool(right) for right in row["graded_list"]] for row in rows}
