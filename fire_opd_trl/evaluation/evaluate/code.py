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
from .sandbox import START_SECONDS, Ended, Limits, NoAnswer, Running, Sandbox, SandboxFailed, TimedOut, TooLong
from .tasks import json_lines


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
NEEDED = "task_id prompt entry_point canonical_solution contract base_input plus_input atol".split()
ENVIRONMENT = Path(".venv-evalplus/bin/python")
HOW = "`make evalplus` makes it in a copy of this package's repository; docs/benchmarks.md has the commands."


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


# Says which versions of Python and evalplus there are, and the folders that this Python needs.
WHAT_IS_THERE = """
import importlib.metadata as metadata, json, sys
found = [each.version for each in metadata.distributions() if each.metadata["Name"] == "evalplus"]
print(json.dumps([sys.version.split()[0], "".join(found[:1]), sys.prefix, sys.base_prefix]), flush=True)
"""


def find_interpreter(path: str | Path | None, sandbox: Sandbox) -> Interpreter:
    """
    Returns the interpreter of evalplus. The command calls this before it loads a model. Nothing is installed.

    Args:
        path (`str` or `Path`, *optional*):
            `--evalplus_python`. By default that of `.venv-evalplus` in this folder, and in a container `python3`.
        sandbox ([`Sandbox`]): Docker has the interpreter in its image; else it is one of this machine.
    """
    in_image = sandbox.name == "docker"
    # Not resolved: the link of an environment says which one it is.
    python = str(path or "python3") if in_image else os.path.abspath(Path(path or ENVIRONMENT).expanduser())
    option, command = f"--evalplus_python {python!r}", [python, "-I", "-c", WHAT_IS_THERE]
    if not in_image and not Path(python).is_file():
        raise Refusal(f"{option} is no file. evalplus {EVALPLUS} judges code, in an environment of its own: {HOW}")
    if in_image:
        with sandbox.start(command) as running:
            try:
                said = running.line(START_SECONDS)
            except NoAnswer as error:
                raise sandbox.broken(running, error) from None
    try:
        if not in_image:
            said = subprocess.run(command, capture_output=True, timeout=START_SECONDS).stdout
        version, evalplus, *prefixes = json.loads(said)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise Refusal(f"{option} is no Python that runs ({error}). {HOW}") from error
    if evalplus != EVALPLUS:
        has = f"evalplus {evalplus}" if evalplus else "no evalplus"
        raise Refusal(f"{option} has {has}; version {EVALPLUS} is needed. {HOW}")
    if in_image:
        return Interpreter(python, version)
    folders = {Path(prefix) for prefix in prefixes if not Path(prefix).is_relative_to("/usr")}
    for folder in folders:
        if Path.home().is_relative_to(folder):
            raise Refusal(
                f"{option} belongs to {folder}, which holds your own files: code of a model would read them. Give an "
                f"environment of its own. {HOW}"
            )
    hidden = [found for folder in folders for found in data_files(folder)]
    return Interpreter(python, version, tuple(sorted(folders)), tuple(hidden))


def data_files(folder: Path) -> Iterable[Path]:
    """Yields what lies below a folder and looks like the data of a benchmark, with its solutions."""
    for place, folders, files in os.walk(folder):
        for name in files:
            if name.endswith(DATA) and HIDDEN.search(name):
                yield Path(place, name)
        folders[:] = [name for name in folders if name != "__pycache__"]


def read_problems(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file in evalplus' format: `HumanEvalPlus.jsonl` or `MbppPlus.jsonl`, perhaps packed."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path}: evalplus reads .jsonl or .jsonl.gz, as it publishes them, and nothing else.")
    rows = []
    for place, row in json_lines(path):
        if absent := [name for name in NEEDED if name not in row]:
            raise ValueError(
                f"{path} {place}: no {', '.join(absent)}. The file must be HumanEvalPlus.jsonl or MbppPlus.jsonl as "
                "evalplus publishes them, not the original benchmark."
            )
        rows.append(row)
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
        except NoAnswer as error:
            complaint = self._end_judge().rpartition("\n")[2] or type(error).__name__
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
        hide = [self.file, *self.interpreter.hidden]
        running = self.sandbox.start([*self.command, "program"], None, self.interpreter.folders, QUIET, hide)
        try:
            if running.line(START_SECONDS) == b"ready":
                return running
        except NoAnswer:
            pass
        raise SandboxFailed(f"{self.sandbox.name} no longer starts: {running.kill() or 'it says nothing'}")

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns the judge's answer. A judge that has died is started again, once."""
        with self.turn:
            for _attempt in range(2):
                try:
                    judge = self.judge or self._start_judge()
                    judge.send(json.dumps(order).encode(), JUDGE_SECONDS)
                    answer = json.loads(judge.line(JUDGE_SECONDS))
                    break
                except (NoAnswer, ValueError) as error:
                    answer = {"failed": f"{type(error).__name__} {self._end_judge()[-500:]}"}
        if "failed" in answer:
            raise SandboxFailed(f"evalplus cannot {order['do']} {order['name']} of {self.file}: {answer['failed']}")
        return answer

    def _start_judge(self) -> Running:
        path = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}[self.dataset]
        environment = {path: str(self.file), "EVALPLUS_MAX_MEMORY_BYTES": "-1", **QUIET}  # -1: the sandbox has limits
        arguments = ["judge", self.dataset, str(self.seconds), str(self.factor)]
        see = [*self.interpreter.folders, self.file]
        self.judge = self.sandbox.start([*self.command, *arguments], JUDGE_LIMITS, see, environment)
        if self.judge.line(JUDGE_SECONDS) != b"ready":
            raise Ended
        return self.judge

    def _end_judge(self) -> str:
        """Ends the judge, and returns what it complained of."""
        judge, self.judge = self.judge, None
        return judge.kill() if judge is not None else ""


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


def write_livecodebench(samples: Path, path: Path) -> None:
    """
    Writes what LiveCodeBench's own `lcb_runner.runner.custom_evaluator` reads: for each question a list of programs,
    in the order of the `question_id` as text. Nothing here runs its tests: docs/benchmarks.md says how to, in a
    sandbox.

    Args:
        samples (`Path`): A file `OUT/samples/MODEL.livecodebench.jsonl`, in which each line is a sample.
        path (`Path`): What is written. A completion without a program is an empty one.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for _, row in json_lines(samples):
        found.setdefault(str(row["problem"]), []).append((row["sample"], row["answer"] or ""))
    ordered = [[program for _, program in sorted(found[question])] for question in sorted(found)]
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
