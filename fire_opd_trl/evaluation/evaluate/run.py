"""
`evaluate(...)`: models on tasks, from the checks to the page.

All that can be refused is refused before a model is loaded. What is there already is not run again: the logs below
`OUT/logs` are the only state, and results.json, the page and the samples are made from them.
"""

import importlib
import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...spelling import did_you_mean
from ..files import write_whole
from . import engine, results
from .answers import found_answer
from .model_facts import model_facts, model_folder, versions
from .problems import Problem, Task
from .prompts import STYLES, prompt_text
from .samples import Sample, to_row
from .tasks import load_task


if TYPE_CHECKING:
    from .engine import Job

BACKENDS = {"transformers": ".provider", "vllm": ".vllm"}
SANDBOXES = ("bubblewrap", "docker")
GRADER_SECONDS = 5.0
PROGRESS_SECONDS = 5.0
HAND_OVER = "livecodebench"  # is sampled here, and graded by its own runner (docs/benchmarks.md)
Graded = dict[str, tuple[engine.Grade, dict[str, Any]]]  # of each task: its grader, and what results.json says of it


class Interrupted(KeyboardInterrupt):
    """
    Ctrl-C or SIGTERM ended an evaluation. What was sampled is kept, and the results of it are written.

    Args:
        results (`dict`): The partial results.
    """

    def __init__(self, results: dict[str, Any]):
        super().__init__("the evaluation was interrupted; the same call goes on where it was.")
        self.results = results


@dataclass(frozen=True, eq=False)
class Model:
    """A model as the user named it, the folder it lies in, its name in tables, and its hashes."""

    name: str
    folder: Path
    label: str
    hashes: dict[str, str | None]


def evaluate(
    models: Sequence[str | Path] | str | Path,
    tasks: Sequence[str] | str,
    *,
    data_dir: str | Path | None = None,
    n: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 16384,
    seed: int = 42,
    prompt_style: str | None = None,
    thinking: bool = False,
    backend: str = "transformers",
    limit: int | None = None,
    output_dir: str | Path = "outputs/evaluate",
    batch_size: int = 32,
    dtype: str = "auto",
    device: str | None = None,
    graders: int = 2,
    sandbox: str | None = None,
    evalplus_python: str | None = None,
    vllm_args: str = "",
    vllm_url: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Sample `n` answers to each problem of each task with each model, grade them, and write results and a page.

    A second call with the same settings goes on where the first one was, and one with another model or task adds to
    the results. Refuses with `ValueError`, `ImportError` or `OSError` before a model is loaded.

    Args:
        models (`list[str]`): Folders of models, or names on the Hub.
        tasks (`list[str]`): Names of tasks, or paths of .jsonl files with `problem` and `answer`.
        data_dir (`str`, *optional*): Where the files of the benchmarks lie.
        n (`int`): Samples of each problem.
        temperature (`float`): 0 takes the likeliest token.
        top_p (`float`): 1 samples from the whole distribution.
        max_new_tokens (`int`): Where a completion is cut, and counted as truncated.
        seed (`int`): Each (problem, sample) has a seed made of this one.
        prompt_style (`str`, *optional*): `"boxed"`, `"authors"` or `"none"`; by default the task's own.
        thinking (`bool`): Whether a chat template that knows `enable_thinking` is told to.
        backend (`str`): `"transformers"` or `"vllm"`.
        limit (`int`, *optional*): The first so many problems of each task.
        output_dir (`str`): The folder of the results.
        batch_size (`int`): Completions sampled at once. It changes no sample.
        dtype (`str`): Of the weights; `"auto"` is the one that the model's config names.
        device (`str`, *optional*): By default the GPU, if there is one.
        graders (`int`): Processes that grade.
        sandbox (`str`, *optional*): `"bubblewrap"` or `"docker"`: where code that the model wrote runs.
        evalplus_python (`str`, *optional*): The Python of an environment with evalplus, for tasks of code.
        vllm_args (`str`): Further arguments of `vllm serve`.
        vllm_url (`str`, *optional*): The address of a server that runs already, in place of one of its own.
        trust_remote_code (`bool`): Whether Python files in the model's folder may run.
        overwrite (`bool`): Throw away what is there of these models and tasks, and run it again.
        command (`str`, *optional*): What the page names as the command that makes it.

    Returns:
        `dict`: What `results.json` holds; `results["status"]` is `"complete"` or `"partial"`.
    """
    check_environment(backend)
    names = [str(one) for one in ([models] if isinstance(models, str | Path) else models)]
    wanted = [one.strip() for one in (tasks.split(",") if isinstance(tasks, str) else tasks) if one.strip()]
    check_settings(names, wanted, n, temperature, top_p, max_new_tokens, limit, batch_size, graders, prompt_style)
    folder = Path(output_dir)
    loaded = [load_task(name, Path(data_dir) if data_dir is not None else None, limit) for name in wanted]
    check_tasks(loaded, sandbox)
    serving = importlib.import_module(BACKENDS[backend], __package__)
    vllm = {"arguments": vllm_args, "url": vllm_url} if backend == "vllm" else {}
    serving.check(**vllm, **({"device": device} if vllm else {}))
    found = [Model(*one) for one in named_models(names, folder)]
    with ExitStack() as stack:
        graded = stack.enter_context(graders_of(loaded, graders, sandbox, evalplus_python))
        stack.enter_context(terminations_interrupt())
        jobs = {
            model: [
                job(
                    model, task, serving, folder,
                    n=n, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed,
                    style=prompt_style or task.prompt_style, thinking=thinking, backend=backend, limit=limit,
                    batch_size=batch_size, dtype=dtype, device=device, grader=graded[task.name][1],
                    trust_remote_code=trust_remote_code, vllm_url=vllm_url,
                )
                for task in loaded
            ]
            for model in found
        }  # fmt: skip
        earlier = results.read(folder / "results.json") if (folder / "results.json").is_file() else None
        stack.enter_context(alone(folder))
        if overwrite:
            for of_model in jobs.values():
                for one in of_model:
                    engine.discard(one)
            earlier = without(earlier, jobs)
        for model, of_model in jobs.items():
            for one in of_model:
                check_log(model, one)
        remember(found, folder)
        run = Run(jobs, limit, folder, earlier, command)
        try:
            for model, of_model in jobs.items():
                missing = [one for one in of_model if run.done(one) < one.total]
                if not missing:
                    continue
                print(f"{model.label}: {', '.join(one.task.name for one in missing)} ({backend})", flush=True)
                with serving.served(
                    model.folder,
                    model.label,
                    dtype=dtype,
                    batch_size=batch_size,
                    thinking=thinking,
                    max_new_tokens=max_new_tokens,
                    trust_remote_code=trust_remote_code,
                    device=device,
                    prompts=[prompt for one in missing for prompt in one.prompts],
                    log=folder / "logs" / model.label / f"{backend}.log",
                    **vllm,
                ) as inspect_model:
                    for one in missing:
                        serving.expect(inspect_model, engine.missing(one, engine.find(one)), one.sampling)
                        run.task(model, one, inspect_model, graded[one.task.name][0])
        except KeyboardInterrupt:
            raise Interrupted(run.write()) from None
        return run.write()


class Run:
    """
    What is done while an evaluation runs: its progress, and its results so far.

    Args:
        jobs (`dict`): The jobs of each model.
        limit (`int`, *optional*): The `limit` of the call.
        folder (`Path`): The output folder.
        earlier (`dict`, *optional*): What results.json held before.
        command (`str`, *optional*): The command, for the page.
    """

    def __init__(
        self,
        jobs: dict[Model, list["Job"]],
        limit: int | None,
        folder: Path,
        earlier: dict[str, Any] | None,
        command: str | None,
    ):
        self.jobs, self.limit, self.folder, self.earlier, self.command = jobs, limit, folder, earlier, command
        self.entries: dict[tuple[str, str], tuple[int, dict[str, Any], dict[str, Any]]] = {}
        self.samples: dict[tuple[str, str], list[Sample]] = {}  # of which the page shows some

    def done(self, job: "Job") -> int:
        """Returns how many samples of a job are whole."""
        found = engine.find(job)
        return found.done if found else 0

    def task(self, model: Model, job: "Job", inspect_model: Any, grade: engine.Grade) -> None:
        """Runs what is missing of one task, and writes the results so far."""
        there = engine.find(job)
        progress = Progress(f"{model.label} {job.task.name}", job.total, there.done if there else 0)
        engine.run(job, inspect_model, grade, progress.one, there)
        progress.end()
        engine.tidy(job)
        self.write()

    def write(self) -> dict[str, Any]:
        """Returns the results of all logs there are, and writes them, the samples and the page."""
        from .page import write_report

        entries: list[dict[str, Any]] = []
        times: dict[str, Any] = {}
        whole = True
        for model, of_model in self.jobs.items():
            for one in of_model:
                found = engine.find(one)
                whole = whole and found is not None and found.done == one.total
                if found is None:
                    continue
                key = (model.label, one.task.name)
                if one.task.name == HAND_OVER:  # its samples are written, and there is no number
                    self.entry(model, one, found)
                    continue
                if key not in self.entries or self.entries[key][0] != found.done:
                    self.entries[key] = (found.done, *self.entry(model, one, found))
                entries.append(self.entries[key][1])
                times[f"{model.label} {one.task.name}"] = self.entries[key][2]
        built = results.build(entries, earlier=self.earlier, command=self.command, times=times)
        if not whole:
            built["status"] = "partial"
        if not built["entries"]:
            results.write(built, self.folder / "results.json")
            return built
        write_report(built, self.folder, self.samples, [one.task for one in next(iter(self.jobs.values()))])
        return built

    def entry(self, model: Model, job: "Job", found: engine.Found) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the entry of one log in results.json and its times; writes the samples beside it."""
        import json

        from .summary import summarize

        samples = engine.samples(job, found)
        path = self.folder / "samples" / f"{model.label}.{file_name(job.task.name)}.jsonl"
        lines = (json.dumps(to_row(one), ensure_ascii=True) for one in samples)
        write_whole(path, "".join(line + "\n" for line in lines))
        self.samples[model.label, job.task.name] = samples
        known = found.header.eval.metadata
        made = results.entry(
            model=known["model"],
            task=job.task,
            limit=self.limit,
            prompt=known["prompt"],
            backend=known["backend"],
            sampling=known["sampling"],
            grader=known["grader"],
            versions=known["versions"],
            samples=samples,
            summary=summarize(samples, job.n, len(job.task.problems)),
        )
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
        print(
            f"{name}: {total - there} of {total} samples to run" + (f", {there} are there" if there else ""),
            flush=True,
        )

    def one(self) -> None:
        """Called for each sample that is graded."""
        with self.lock:
            if not self.now:
                self.began = self.said = time.monotonic()  # what was before is no part of the rate
            self.now += 1
            if time.monotonic() - self.said >= PROGRESS_SECONDS:
                self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        rate = self.now / max(self.said - self.began, 1e-9)
        left = (self.total - self.there - self.now) / rate if rate else 0.0
        print(
            f"{self.name}: {self.there + self.now}/{self.total}, {rate:.3g} a second, {in_words(left)} left",
            flush=True,
        )

    def end(self) -> None:
        """Called after the last sample."""
        spent = in_words(time.monotonic() - self.began)
        print(f"{self.name}: {self.there + self.now}/{self.total} in {spent}", flush=True)


def in_words(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def file_name(task: str) -> str:
    """Returns the name of a task as a part of a file's name: `reasoning_gym:chain_sum` has a colon."""
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in task)


@contextmanager
def graders_of(tasks: list[Task], workers: int, sandbox: str | None, evalplus_python: str | None) -> Iterator[Graded]:
    """
    Yields what grades the completions of each task, by its name; its processes end with the context.

    `evaluate` enters this before it loads a model: whoever lacks a sandbox, or a package, learns it now.
    """
    found: Graded = {}
    with ExitStack() as stack:
        mathematics = None
        for task in tasks:
            if task.kind == "exact":
                found[task.name] = by_text(task), {"name": "exact", "version": None, "limit": None}
            elif task.name == HAND_OVER:
                found[task.name] = by_nobody(task), {"name": "none", "version": None, "limit": None}
            elif task.kind == "code":
                found[task.name] = by_tests(task, workers, sandbox, evalplus_python, stack)
            else:
                from .grading import Graders, describe

                mathematics = mathematics or stack.enter_context(Graders(workers, GRADER_SECONDS))
                found[task.name] = by_mathematics(task, mathematics), describe(GRADER_SECONDS)
        yield found


def by_text(task: Task) -> engine.Grade:
    """Returns the grader of a task whose answers must be equal as text."""
    from .grading import exact

    async def grade(problem: Problem, text: str) -> engine.Graded:
        answer = found_answer(text, task)
        return engine.Graded(answer, exact(problem.gold, answer) if answer is not None else "no answer")

    return grade


def by_nobody(task: Task) -> engine.Grade:
    """Returns what finds the programs of LiveCodeBench, which its own runner grades."""

    async def grade(problem: Problem, text: str) -> engine.Graded:
        program = found_answer(text, task)
        return engine.Graded(program, "no answer" if program is None else "unparsed", "not graded here")

    return grade


def by_mathematics(task: Task, processes: Any) -> engine.Grade:
    """Returns the grader of a task whose answers must be equal to math-verify."""
    import anyio

    async def grade(problem: Problem, text: str) -> engine.Graded:
        answer = found_answer(text, task)
        if answer is None:
            return engine.Graded(None, "no answer")
        verdict = await anyio.to_thread.run_sync(processes.grade, problem.gold, answer, abandon_on_cancel=True)
        return engine.Graded(answer, verdict)

    return grade


def by_tests(
    task: Task, workers: int, sandbox: str | None, evalplus_python: str | None, stack: ExitStack
) -> tuple[engine.Grade, dict[str, Any]]:
    """Returns the grader of a task of code, which runs tests in a sandbox, and its facts."""
    import anyio

    from .code import CodeGraders, find_interpreter
    from .sandbox import make_sandbox

    where = make_sandbox(sandbox)
    tests = stack.enter_context(
        CodeGraders(Path(task.source), where, find_interpreter(evalplus_python, where), workers)
    )

    async def grade(problem: Problem, text: str) -> engine.Graded:
        program = found_answer(text, task)
        if program is None:
            return engine.Graded(None, "no answer")
        found = await anyio.to_thread.run_sync(tests.grade, problem.id, program, abandon_on_cancel=True)
        return engine.Graded(program, found.verdict, f"base: {found.base}. {found.note}".strip())

    facts = tests.facts()
    return grade, {**facts, "limit": facts["seconds"]}


def job(
    model: Model,
    task: Task,
    serving: Any,
    folder: Path,
    *,
    n: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    style: str,
    thinking: bool,
    backend: str,
    limit: int | None,
    batch_size: int,
    dtype: str,
    device: str | None,
    grader: dict[str, Any],
    trust_remote_code: bool,
    vllm_url: str | None,
) -> "Job":
    """Returns what is asked of one model on one task, with all that makes its numbers."""
    from .provider import device_kind, read_prompts

    prompts = tuple(prompt_text(problem, task, style) for problem in task.problems)
    example, cuts = read_prompts(model.folder, list(prompts), max_new_tokens, thinking, trust_remote_code)
    if cuts is not None:
        print(f"{model.label} on {task.name}: the context of {cuts} tokens cuts completions before --max_new_tokens.")
    facts = {
        "model": {"label": model.label, "path": model.name, "hashes": model.hashes},
        "task": {"name": task.name, "source": task.source, "sha256": task.sha256, "limit": limit},
        "prompt": {
            "style": style,
            "thinking": thinking,
            "example": example,
        },
        "backend": {
            "name": backend,
            "versions": serving.versions(**({"url": vllm_url} if vllm_url else {})),
            "dtype": serving.dtype_used(model.folder, dtype, device, trust_remote_code),
            "device": device_kind(device),
        },
        "sampling": {
            "n": n,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": None,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        },
        "grader": grader,
        "versions": versions(),
    }
    sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens, **serving.extra(thinking)}
    where = folder / "logs" / model.label
    return engine.Job(task, where, facts, prompts, n, seed, sampling, connections=serving.connections(batch_size))


# Checks


def check_environment(backend: str) -> None:
    """Refuses a Python that is too old, and an environment without the extra."""
    if sys.version_info < (3, 11):
        have = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(
            f"Evaluation stands on inspect-ai, which needs Python 3.11 or later, and this is Python {have}: make an "
            "environment with a later one, and pip install fire-opd-trl[eval] there."
        )
    if backend not in BACKENDS:
        raise ValueError(f"--backend {backend}: there are {', '.join(BACKENDS)}.{did_you_mean(backend, BACKENDS)}")
    for module in ("inspect_ai", "math_verify", "scipy", "matplotlib", "jinja2"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"Evaluation needs {module}: pip install fire-opd-trl[eval]", name=module)


def check_settings(
    models: list[str],
    tasks: list[str],
    n: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    limit: int | None,
    batch_size: int,
    graders: int,
    prompt_style: str | None,
) -> None:
    """Refuses settings that make no evaluation."""
    if not models:
        raise ValueError("--model: name at least one model: a folder, or a name on the Hub.")
    if not tasks:
        raise ValueError("--tasks: name at least one task, for example embedded or my_file.jsonl.")
    for name, given in (("model", models), ("tasks", tasks)):
        twice = [one for index, one in enumerate(given) if one in given[:index]]
        if twice:
            raise ValueError(f"--{name}: {twice[0]} is named twice.")
    for name, value in (
        ("n", n),
        ("max_new_tokens", max_new_tokens),
        ("batch_size", batch_size),
        ("graders", graders),
    ):
        if value < 1:
            raise ValueError(f"--{name} {value}: give at least 1.")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: give at least 1, or leave it out for all problems.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"--temperature {temperature}: give 0 (the likeliest token) or more.")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top_p {top_p}: give more than 0, and at most 1 (the whole distribution).")
    if temperature == 0 and n > 1:
        raise ValueError(
            f"--temperature 0 gives the same answer each time: --n {n} would count it {n} times. Give --n 1."
        )
    if prompt_style not in (None, *STYLES):
        hint = did_you_mean(prompt_style, STYLES)
        raise ValueError(f"--prompt_style {prompt_style}: there are {', '.join(STYLES)}.{hint}")


def check_tasks(tasks: list[Task], sandbox: str | None) -> None:
    """Refuses two tasks of one name, and a sandbox that there is not."""
    names = [task.name for task in tasks]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise ValueError(
            f"--tasks: two tasks are called {twice[0]}; results are kept by name. Rename one of the files."
        )
    if sandbox is not None and sandbox not in SANDBOXES:
        raise ValueError(f"--sandbox {sandbox}: there are {', '.join(SANDBOXES)}.{did_you_mean(sandbox, SANDBOXES)}")


def check_log(model: Model, job: "Job") -> None:
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


def without(earlier: dict[str, Any] | None, jobs: dict[Model, list["Job"]]) -> dict[str, Any] | None:
    """Returns earlier results without what is to be run again."""
    if earlier is None:
        return None
    again = {(model.label, one.task.name) for model, of_model in jobs.items() for one in of_model}
    kept = [one for one in earlier["entries"] if (one["model"]["label"], one["task"]["name"]) not in again]
    return {**earlier, "entries": kept}


# Models


def named_models(names: list[str], folder: Path) -> Iterator[tuple[str, Path, str, dict[str, str | None]]]:
    """Yields name, folder, label and hashes of each model. A label is the shortest end of the path that no other has,
    also none of an earlier call."""
    folders = [model_folder(name) for name in names]
    taken = known_models(folder)
    for name, where in zip(names, folders, strict=True):
        whole = [
            part
            for part in (where.resolve().parts if Path(name).expanduser().is_dir() else name.split("/"))
            if part != "/"
        ]
        path = "/".join(whole)
        label = next((label for label, known in taken.items() if known == path), None)
        if label is None:
            others = ["/".join(p for p in other.resolve().parts if p != "/") for other in folders if other != where]
            tails = ["/".join(whole[-count:]) for count in range(1, len(whole) + 1)]
            alone = [tail for tail in tails if not any(f"/{other}".endswith(f"/{tail}") for other in others)]
            label = next(
                (
                    file_name(tail.replace("/", "-"))
                    for tail in alone
                    if file_name(tail.replace("/", "-")) not in taken
                ),
                f"{file_name(whole[-1])}-{len(taken) + 1}",
            )
        taken[label] = path
        yield name, where, label, model_facts(where)


def known_models(folder: Path) -> dict[str, str]:
    """Returns label and path of the models of earlier calls."""
    return {
        file.parent.name: file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("logs/*/model.txt"))
    }


def remember(models: list[Model], folder: Path) -> None:
    """Writes which model a label stands for, beside its logs."""
    for model in models:
        whole = model.folder.resolve().parts if Path(model.name).expanduser().is_dir() else model.name.split("/")
        path = "/".join(part for part in whole if part != "/")
        write_whole(folder / "logs" / model.label / "model.txt", path + "\n")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuses a second evaluation in the folder while one runs: each would remove logs of the other as superseded."""
    import fcntl

    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with open(folder / "logs" / ".lock", "w") as lock:
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
