"""
`evaluate(...)`: models on tasks, from the checks to the page.

All that can be refused is refused before a model is loaded. What is there already is not run again: the logs below
`OUT/logs` are the only state, and results.json, the page and the samples are made from them.
"""

import errno
import importlib.util
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_whole
from . import engine, results
from .answers import found_answer
from .backend import Backend, Reader
from .engine import Job
from .model_facts import model_facts, model_folder, versions
from .problems import Problem, Task, text_id
from .prompts import prompt_text
from .provider import Transformers
from .samples import Sample, to_row
from .settings import Settings, settings_of, takes_settings
from .tasks import load_task
from .vllm import VLLM


GRADER_SECONDS = 5.0
PROGRESS_SECONDS = 5.0
HAND_OVER = "livecodebench"  # is sampled here, and graded by its own runner (docs/benchmarks.md)


class Interrupted(KeyboardInterrupt):
    """
    Ctrl-C or SIGTERM ended an evaluation. What was sampled is kept, and the results of it are written.

    Args:
        results (`dict`): The partial results.
    """

    def __init__(self, results: dict[str, Any]):
        super().__init__("the evaluation was interrupted; the same call goes on where it was.")
        self.results = results


class DiskFull(RuntimeError):
    """What could not be written. All that was there before is there still."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model as the user named it, the folder it lies in, what it is known by, and its name in tables."""

    name: str
    folder: Path
    path: str
    label: str


Jobs = dict[Model, list[Job]]


@takes_settings
def evaluate(
    models: Sequence[str | Path] | str | Path,
    tasks: Sequence[str] | str,
    *,
    command: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """
    Sample `n` answers to each problem of each task with each model, grade them, and write results and a page.

    A second call with the same settings goes on where the first one was, and one with another model or task adds to
    the results. Refuses with `ValueError`, `ImportError` or `OSError` before a model is loaded.

    Args:
        models (`list[str]`): Folders of models, or names on the Hub.
        tasks (`list[str]`): Names of tasks, or paths of .jsonl files with `problem` and `answer`.
        SETTINGS
        command (`str`, *optional*): What the page names as the command that makes these numbers.

    Returns:
        `dict`: What `results.json` holds; `results["status"]` is `"complete"` or `"partial"`.
    """
    check_environment()
    asked = settings_of(settings)
    folder, backend = Path(asked.output_dir), (VLLM if asked.backend == "vllm" else Transformers)(asked)
    loaded = tasks_of(tasks.split(",") if isinstance(tasks, str) else tasks, asked)
    backend.check()
    found = models_of([str(one) for one in ([models] if isinstance(models, str | Path) else models)], folder)
    with ExitStack() as stack:
        graded = stack.enter_context(graders_of(loaded, asked))
        stack.enter_context(terminations_interrupt())
        readers = {model: Reader(model.folder, asked) for model in found}
        jobs = {
            model: [job_of(model, hashes, task, reader, backend, graded[task.name][1]) for task in loaded]
            for model, reader in readers.items()
            for hashes in [model_facts(model.folder)]
        }
        earlier = results.read(folder / "results.json") if (folder / "results.json").is_file() else None
        stack.enter_context(room_in(folder))
        stack.enter_context(alone(folder))
        if asked.overwrite:
            earlier = without(earlier, jobs)
        else:
            for model, job in each(jobs):
                check_log(model, job)
        there = [one["model"] for one in earlier["entries"]] if earlier else []
        results.refuse_changed([*there, *(job.facts["model"] for _, job in each(jobs))])
        if asked.overwrite:
            for _, job in each(jobs):
                engine.discard(job)
        for model in found:
            write_whole(folder / "logs" / model.label / "model.txt", model.path + "\n")
        run = Run(jobs, folder, earlier, command)
        try:
            for model, of_model in jobs.items():
                missing = [job for job in of_model if engine.missing(job, engine.find(job))]
                if not missing:
                    continue
                print(f"{model.label}: {', '.join(job.task.name for job in missing)} ({backend.name})", flush=True)
                reader, log = readers[model], folder / "logs" / model.label / f"{backend.name}.log"
                prompts = [prompt for job in missing for prompt in job.prompts]
                with backend.served(model.folder, model.label, reader, prompts, log) as served:
                    for job in missing:
                        backend.expect(served, reader, engine.missing(job, engine.find(job)))
                        run.task(model, job, served, graded[job.task.name][0])
        except KeyboardInterrupt:
            raise Interrupted(run.write()) from None
        return run.write()


def each(jobs: Jobs) -> Iterator[tuple[Model, Job]]:
    """Returns all jobs, each with its model."""
    return ((model, job) for model, of_model in jobs.items() for job in of_model)


class Run:
    """
    What is done while an evaluation runs: its progress, and its results so far.

    Args:
        jobs (`dict`): The jobs of each model.
        folder (`Path`): The output folder.
        earlier (`dict`, *optional*): What results.json held before.
        command (`str`, *optional*): The command, for the page.
    """

    def __init__(self, jobs: Jobs, folder: Path, earlier: dict[str, Any] | None, command: str | None):
        self.jobs, self.folder, self.earlier, self.command = jobs, folder, earlier, command
        self.entries: dict[tuple[str, str], tuple[int, dict[str, Any], dict[str, Any]]] = {}
        self.samples: dict[tuple[str, str], list[Sample]] = {}  # of which the page shows some

    def task(self, model: Model, job: Job, served: Any, grade: engine.Grade) -> None:
        """Runs what is missing of one task, and writes the results so far."""
        there = engine.find(job)
        progress = Progress(f"{model.label} {job.task.name}", job.total, there.done if there else 0)
        engine.run(job, served, grade, progress.one, there)
        progress.end()
        engine.tidy(job)
        self.write()

    def write(self) -> dict[str, Any]:
        """Returns the results of all logs there are, and writes them, the samples and the page."""
        from .page import write_report

        whole, entries, times = True, [], {}
        for model, job in each(self.jobs):
            found, key = engine.find(job), (model.label, job.task.name)
            whole = whole and found is not None and found.done == job.total
            if found is None:
                continue
            if key not in self.entries or self.entries[key][0] != found.done:
                self.entries[key] = (found.done, *self.entry(model, job, found))
            if job.task.name != HAND_OVER:  # whose samples are written, and there is no number
                _, entry, times[" ".join(key)] = self.entries[key]
                entries.append(entry)
        built = results.build(entries, earlier=self.earlier, command=self.command, times=times)
        if not whole:
            built["status"] = "partial"
        if built["entries"]:
            write_report(built, self.folder, self.samples, [job.task for job in next(iter(self.jobs.values()))])
        else:
            results.write(built, self.folder / "results.json")
        return built

    def entry(self, model: Model, job: Job, found: engine.Found) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the entry of one log in results.json and its times; writes the samples beside it."""

        samples = engine.samples(job, found)
        path = self.folder / "samples" / f"{model.label}.{task_part(job.task.name)}.jsonl"
        write_whole(path, "".join(json.dumps(to_row(one)) + "\n" for one in samples))
        self.samples[model.label, job.task.name] = samples
        made = results.entry(found.header.eval.metadata, job.task, samples)
        stats = found.header.stats
        times = {"started": stats.started_at or None, "completed": stats.completed_at or None}
        seconds = [one.seconds for one in samples if one.seconds]
        return made, {**times, "mean_seconds_of_a_sample": sum(seconds) / len(seconds) if seconds else None}


class Progress:
    """
    Lines that say how far one task is: the first at once, then at most one every few seconds.

    Args:
        name (`str`): What the lines begin with.
        total (`int`): Samples in all.
        there (`int`): Samples that an earlier call has left.
    """

    def __init__(self, name: str, total: int, there: int):
        self.name, self.total, self.there, self.now = name, total, there, 0
        self.began = self.said = time.monotonic()
        self.lock = threading.Lock()
        self.say(f"{total - there} of {total} samples to run" + f", {there} are there" * bool(there))

    def say(self, what: str) -> None:
        self.said = time.monotonic()
        print(f"{self.name}: {what}", flush=True)

    def one(self) -> None:
        """Called for each sample that is graded."""
        with self.lock:
            now = time.monotonic()
            if not self.now:
                self.began = self.said = now  # what was before is no part of the rate
            self.now += 1
            if now - self.said >= PROGRESS_SECONDS:
                rate, there = self.now / (now - self.began), self.there + self.now
                left = in_words((self.total - there) / rate)
                self.say(f"{there}/{self.total}, {rate:.3g} a second, {left} left")

    def end(self) -> None:
        """Called after the last sample."""
        self.say(f"{self.there + self.now}/{self.total} in {in_words(time.monotonic() - self.began)}")


def in_words(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def file_name(name: str) -> str:
    """Returns a name as a part of a file's name."""
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in name)


def task_part(task: str) -> str:
    """Returns a task's name as a part of a file's name, without a dot; a hash keeps `a b` and `a_b` apart."""
    plain = file_name(task).replace(".", "_")
    return plain if plain == task else f"{plain}-{text_id(task)}"


# Grading


@contextmanager
def graders_of(tasks: list[Task], settings: Settings) -> Iterator[dict[str, tuple[engine.Grade, dict[str, Any]]]]:
    """
    Yields what grades the completions of each task, and what results.json says of it; processes end with the context.

    `evaluate` enters this before it loads a model: whoever lacks a sandbox, or a package, learns it now.
    """
    from .grading import Graders

    with ExitStack() as stack:
        processes = None  # all tasks of mathematics share them
        if any(task.kind == "math" for task in tasks):
            processes = stack.enter_context(Graders(settings.graders, GRADER_SECONDS))
        judges = {task.name: judge_of(task, settings, processes, stack) for task in tasks}
        yield {task.name: (grader(task, judges[task.name][0]), judges[task.name][1]) for task in tasks}


Judge = Callable[[Problem, str], tuple[str, str]]  # of an answer, its verdict and a note


def judge_of(task: Task, settings: Settings, processes: Any, stack: ExitStack) -> tuple[Judge, dict[str, Any]]:
    """Returns what judges the answers to a task, and its facts."""
    from .grading import describe, exact

    facts = {"version": None, "limit": None}
    if task.name == HAND_OVER:
        return lambda problem, answer: ("unparsed", "not graded here"), {"name": "none", **facts}
    if task.kind == "exact":
        return lambda problem, answer: (exact(problem.gold, answer), ""), {"name": "exact", **facts}
    if task.kind == "code":
        return judge_of_code(task, settings, stack)
    return lambda problem, answer: (processes.grade(problem.gold, answer), ""), describe(GRADER_SECONDS)


def judge_of_code(task: Task, settings: Settings, stack: ExitStack) -> tuple[Judge, dict[str, Any]]:
    """Returns what runs tests on programs in a sandbox, and its facts."""
    from .code import CodeGraders, find_interpreter
    from .sandbox import make_sandbox

    where = make_sandbox(settings.sandbox)
    python = find_interpreter(settings.evalplus_python, where)
    tests = stack.enter_context(CodeGraders(Path(task.source), where, python, settings.graders))

    def judge(problem: Problem, program: str) -> tuple[str, str]:
        found = tests.grade(problem.id, program)
        return found.verdict, f"base: {found.base}. {found.note}".strip()

    facts = tests.facts()
    return judge, {**facts, "limit": facts["seconds"]}


def grader(task: Task, judge: Judge) -> engine.Grade:
    """Returns the grader of a task for the engine. Judges wait for processes, hence in threads."""
    import anyio

    async def grade(problem: Problem, text: str) -> engine.Graded:
        answer = found_answer(text, task)
        if answer is None:
            return engine.Graded(None, "no answer")
        return engine.Graded(answer, *await anyio.to_thread.run_sync(judge, problem, answer, abandon_on_cancel=True))

    return grade


# What is asked


def job_of(
    model: Model, hashes: dict[str, Any], task: Task, reader: Reader, backend: Backend, grader: dict[str, Any]
) -> Job:
    """Returns what is asked of one model on one task, with all that makes its numbers."""
    settings = backend.settings
    style = settings.prompt_style or task.prompt_style
    prompts = tuple(prompt_text(problem, task, style) for problem in task.problems)
    if reader.cuts(prompts):
        what = f"the context of {reader.context} tokens cuts completions before --max_new_tokens."
        print(f"{model.label} on {task.name}: {what}", flush=True)
    facts = {
        "model": {"label": model.label, "path": model.name, "hashes": hashes},
        "task": {"name": task.name, "source": task.source, "sha256": task.sha256, "limit": settings.limit},
        "prompt": {"style": style, "thinking": settings.thinking, "example": reader.render(prompts[0])},
        "backend": backend.facts(reader),
        "sampling": settings.sampling,
        "grader": grader,
        "versions": versions(),
    }
    folder = Path(settings.output_dir) / "logs" / model.label
    return Job(task, folder, facts, prompts, settings, backend.connections)


def tasks_of(names: Sequence[str], settings: Settings) -> list[Task]:
    """Returns the tasks. Refuses none, and two of one name."""
    data = Path(settings.data_dir) if settings.data_dir is not None else None
    tasks = [load_task(str(name).strip(), data, settings.limit) for name in names if str(name).strip()]
    if not tasks:
        raise ValueError("--tasks: name at least one task, for example embedded or my_file.jsonl.")
    if twice := repeated([task.name for task in tasks]):
        raise ValueError(f"--tasks: two tasks are called {twice}; results are kept by name. Rename one of the files.")
    return tasks


def repeated(names: list[str]) -> str | None:
    """Returns the first name that was there before."""
    return next((one for index, one in enumerate(names) if one in names[:index]), None)


def models_of(names: list[str], folder: Path) -> list[Model]:
    """Returns the models. A label is the shortest end of the path that no other has, also none of an earlier call."""
    if not names:
        raise ValueError("--model: name at least one model: a folder, or a name on the Hub.")
    folders = [model_folder(name) for name in names]
    paths = [
        where.resolve().as_posix().strip("/") if Path(name).expanduser().is_dir() else name
        for name, where in zip(names, folders, strict=True)
    ]
    if twice := repeated(paths):
        raise ValueError(f"--model: {twice} is named twice.")
    logs = sorted(folder.glob("logs/*/model.txt"))
    taken = {log.parent.name: log.read_text(encoding="utf-8").strip() for log in logs}
    models = []
    for name, where, path in zip(names, folders, paths, strict=True):
        parts = path.split("/")
        tails = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f"/{one}" for one in paths if one != path]
        labels = [label for label, known in taken.items() if known == path]
        labels += [
            file_name(tail.replace("/", "-")) for tail in tails if not any(one.endswith(f"/{tail}") for one in others)
        ]
        labels += [f"{labels[0]}-{count}" for count in range(2, len(taken) + 3)]
        label = next(one for one in labels if taken.get(one, path) == path)
        taken[label] = path
        models.append(Model(name, where, path, label))
    return models


# Checks


def check_environment() -> None:
    """Refuses a Python that is too old, and an environment without the extra."""
    if sys.version_info < (3, 11):
        have = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(
            f"Evaluation stands on inspect-ai, which needs Python 3.11 or later, and this is Python {have}: make an "
            "environment with a later one, and pip install fire-opd-trl[eval] there."
        )
    for module in ("inspect_ai", "math_verify", "scipy", "matplotlib", "jinja2"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"Evaluation needs {module}: pip install fire-opd-trl[eval]", name=module)


def check_log(model: Model, job: Job) -> None:
    """Refuses to add to a log of other settings, another model or other data."""
    found = engine.find(job)
    if found is None:
        return
    there = found.header.eval.metadata or {}
    differences = list(engine.differing(job.facts, there))
    if found.done < job.total:  # a log of two versions would be of neither
        ours, theirs = job.facts["backend"]["versions"], there.get("backend", {}).get("versions", {})
        differences += [(f"backend.versions.{name}", now, then) for name, now, then in engine.differing(ours, theirs)]
    if differences:
        what = "; ".join(f"{name} is {ours!r}, and was {theirs!r}" for name, ours, theirs in differences[:4])
        raise ValueError(
            f"{model.label} on {job.task.name} was evaluated with something else, and numbers are not mixed: {what}. "
            "Take another --output_dir, or throw the old samples away with --overwrite."
        )


def without(earlier: dict[str, Any] | None, jobs: Jobs) -> dict[str, Any] | None:
    """Returns earlier results without what is to be run again."""
    if earlier is None:
        return None
    again = {(model.label, one.task.name) for model, one in each(jobs)}
    kept = [one for one in earlier["entries"] if (one["model"]["label"], one["task"]["name"]) not in again]
    return {**earlier, "entries": kept}


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Makes one sentence of a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(
            f"{error.filename or folder} cannot be written: {error.strerror}. What was there is kept: make room, and "
            "the same command runs what is missing."
        ) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuses a second evaluation in the folder while one runs: each would remove logs of the other as superseded."""
    import fcntl

    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        lock = open(folder / "logs" / ".lock", "w")
    except OSError as error:
        raise ValueError(f"--output_dir {folder}: no files can be made there ({error}). Take another.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--output_dir {folder}: another evaluation is running there. Wait, or take another."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


@contextmanager
def terminations_interrupt() -> Iterator[None]:
    """SIGTERM, which a scheduler sends, ends an evaluation as Ctrl-C does: with partial results."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
