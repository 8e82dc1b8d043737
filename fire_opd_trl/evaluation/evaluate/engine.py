"""
One task on one model, through inspect-ai: it schedules, writes the log, and takes up a log that is not whole.

A log belongs to the facts that it was begun with: they are its metadata, and are compared before anything is added.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .problems import Problem, Task
from .samples import Sample, in_order, seed_of


class Graded(NamedTuple):
    """The answer found in a completion, the verdict on it, and what whoever looks at the sample should know."""

    answer: str | None
    verdict: str
    note: str = ""


Grade = Callable[[Problem, str], Awaitable[Graded]]
STOPS = {"stop": "stop", "max_tokens": "length", "model_length": "length"}


@dataclass(frozen=True)
class Job:
    """
    What is asked of one model on one task.

    Args:
        task (`Task`): The problems.
        folder (`Path`): Where the logs of this model lie.
        facts (`dict`): All that makes the numbers; what is compared when a log is taken up.
        prompts (`tuple[str, ...]`): The prompt of each problem, before the chat template.
        n (`int`): Samples of each problem.
        seed (`int`): The seed that [`seed_of`] starts from.
        sampling (`dict`): `temperature`, `top_p`, `max_tokens`, and what else inspect-ai's `GenerateConfig` gets.
        connections (`int`): How many samples are under way at once.
    """

    task: Task
    folder: Path
    facts: dict[str, Any]
    prompts: tuple[str, ...]
    n: int
    seed: int
    sampling: dict[str, Any]
    connections: int

    @property
    def total(self) -> int:
        return len(self.task.problems) * self.n


@dataclass(frozen=True)
class Found:
    """A log that was found: its header, where it is, and which of its samples, (problem, number), are whole."""

    header: Any
    info: Any
    whole: frozenset[tuple[str, int]]

    @property
    def done(self) -> int:
        return len(self.whole)


def find(job: Job) -> Found | None:
    """
    Returns the log of a job that has most samples; `None` if there is none. `run` calls this before a model is loaded.

    A log that was cut off before its first sample, and one that cannot be read, are as good as none.
    """
    best = None
    for info in _logs(job.folder):
        header = _header(info)
        if header is None or header.eval.task != job.task.name:
            continue
        found = Found(header, info, _whole(info))
        if best is None or found.done >= best.done:
            best = found
    return best


def _logs(folder: Path) -> list[Any]:
    from inspect_ai.log import list_eval_logs

    return list_eval_logs(str(folder), descending=False, recursive=False) if folder.is_dir() else []


def _header(info: Any) -> Any:
    """Returns the head of a log; `None` of a file that a kill has left without one."""
    from inspect_ai.log import read_eval_log

    try:
        return read_eval_log(info, header_only=True)
    except Exception:  # whatever a broken archive makes of its reader
        return None


def _whole(info: Any) -> frozenset[tuple[str, int]]:
    from inspect_ai.log import read_eval_log_sample_summaries

    try:
        return frozenset((str(one.id), one.epoch) for one in read_eval_log_sample_summaries(info) if one.error is None)
    except Exception:
        return frozenset()


def missing(job: Job, found: Found | None) -> list[tuple[str, int]]:
    """Returns prompt and seed of the samples that are not there yet, in the order in which inspect-ai runs them."""
    there = found.whole if found is not None else frozenset()
    return [
        (prompt, seed_of(job.seed, problem.id, number))
        for number in range(1, job.n + 1)
        for problem, prompt in zip(job.task.problems, job.prompts, strict=True)
        if (problem.id, number) not in there
    ]


def differing(asked: dict[str, Any], there: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Returns what two records of facts do not agree in: the name, what is asked, and what is there. What only tells
    where numbers came from (`versions`, `path`, `device`) may differ: a finished log keeps its own."""
    for name in sorted(asked.keys() | there.keys()):
        ours, theirs = asked.get(name), there.get(name)
        if name in ("versions", "path", "label", "device", "source", "example_prompt", "trust_remote_code"):
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            yield from differing(ours, theirs, f"{above}{name}.")
        elif ours != theirs:
            yield f"{above}{name}", ours, theirs


def run(job: Job, model: Any, grade: Grade, on_sample: Callable[[], None], found: Found | None) -> None:
    """
    Runs what is missing of a job. Its log says what came of it; `KeyboardInterrupt` comes when that is written.

    Args:
        job (`Job`): What is asked.
        model (`Any`): A model of inspect-ai.
        grade (`Grade`): The grader of the task.
        on_sample (`Callable`): Called when a sample is graded.
        found (`Found`, *optional*): The log to go on from.
    """
    from inspect_ai import eval as run_eval
    from inspect_ai._eval.task import (
        PreviousTask,
    )  # takes up a log with a task and a model made here, as eval_set does

    task: Any = _inspect_task(job, grade, on_sample)
    if found is not None:
        task = PreviousTask(
            id=found.header.eval.task_id,
            task=task,
            task_args={},
            model=model,
            model_roles=None,
            sandbox=None,
            log=found.header,
            log_info=found.info,
        )
    job.folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        logs = run_eval(
            task,
            model=model,
            log_dir=str(job.folder),
            metadata=job.facts,
            display="none",
            log_level="error",
            log_realtime=False,  # or it keeps a database of the samples in the user's home
            # The whole log is copied at each write: every sample of a small task, every hundredth part of a large one.
            log_buffer=max(1, job.total // 100),
            log_format="eval",
            fail_on_error=False,
            continue_on_fail=True,
            max_samples=job.connections,
            max_connections=job.connections,
            max_tasks=1,
            score_display=False,
        )
    if not logs or any(
        log.status in ("cancelled", "started") for log in logs
    ):  # Ctrl-C: it returns as if all were well
        raise KeyboardInterrupt
    for log in logs:
        if log.status == "error":
            raise RuntimeError(f"{job.task.name}: {log.error.message if log.error else 'inspect-ai failed.'}")


def discard(job: Job) -> None:
    """Removes the logs of a job: `run` calls this for `--overwrite`."""
    for info in _logs(job.folder):
        header = _header(info)
        if header is None or header.eval.task == job.task.name:
            _path(info).unlink(missing_ok=True)


def _path(info: Any) -> Path:
    from urllib.parse import unquote

    return Path(unquote(info.name.removeprefix("file://")))


def tidy(job: Job) -> None:
    """Removes the logs of earlier attempts when one holds every sample: `run` calls this at the end of a task."""
    found = find(job)
    if found is None or found.done < job.total:
        return
    for info in _logs(job.folder):
        header = _header(info)
        if info.name != found.info.name and (header is None or header.eval.task == job.task.name):
            _path(info).unlink(missing_ok=True)


def samples(job: Job, found: Found) -> list[Sample]:
    """Returns the samples of a log in the order of the problems, those with an error among them."""
    from inspect_ai.log import read_eval_log_samples

    known = {problem.id for problem in job.task.problems}
    rows = []
    for one in read_eval_log_samples(found.info, all_samples_required=False):
        if one.id in known:
            rows.append(_sample(job, one))
    return in_order(rows, [problem.id for problem in job.task.problems])


def _sample(job: Job, one: Any) -> Sample:
    """Returns our record of a sample of inspect-ai's."""
    seed = seed_of(job.seed, one.id, one.epoch)
    score = (one.scores or {}).get("graded")
    if one.error is not None or score is None:
        what = one.error.message if one.error is not None else "it was not graded"
        return Sample(job.task.name, one.id, one.epoch, seed, what, None, "wrong", "error", 0)
    known = score.metadata
    return Sample(
        task=job.task.name,
        problem=one.id,
        sample=one.epoch,
        seed=seed,
        text=one.output.completion,
        answer=score.answer,
        verdict=known["verdict"],
        stop=known["stop"],
        tokens=known["tokens"],
        seconds=one.output.time,
    )


def _inspect_task(job: Job, grade: Grade, on_sample: Callable[[], None]) -> Any:
    """Returns the task as inspect-ai knows it: an epoch is the number of a sample."""
    from inspect_ai import Epochs
    from inspect_ai import Task as InspectTask
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.dataset import Sample as Row
    from inspect_ai.model import GenerateConfig
    from inspect_ai.scorer import Score, mean, scorer, stderr
    from inspect_ai.solver import solver

    problems = {problem.id: problem for problem in job.task.problems}
    rows = [
        Row(id=problem.id, input=prompt, target=list(problem.gold))
        for problem, prompt in zip(job.task.problems, job.prompts, strict=True)
    ]

    @solver
    def seeded() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            return await generate(state, seed=seed_of(job.seed, state.sample_id, state.epoch))

        return solve

    @scorer(metrics=[mean(), stderr()])
    def graded() -> Any:
        async def score(state: Any, target: Any) -> Any:
            stop = STOPS.get(state.output.stop_reason)
            if stop is None:
                raise RuntimeError(f"the engine stopped for the reason {state.output.stop_reason!r}.")
            found = await grade(problems[state.sample_id], state.output.completion)
            on_sample()
            known = {"verdict": found.verdict, "stop": stop, "tokens": state.output.usage.output_tokens}
            right = float(found.verdict == "right")
            return Score(value=right, answer=found.answer, explanation=found.note or None, metadata=known)

        return score

    return InspectTask(
        name=job.task.name,
        dataset=MemoryDataset(rows, name=job.task.name, location=job.task.source),
        solver=seeded(),
        scorer=graded(),
        epochs=Epochs(job.n, "mean"),
        config=GenerateConfig(**job.sampling),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """inspect-ai reads settings from variables INSPECT_* and a .env file, which could change a number unseen."""
    there = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("INSPECT_EVAL_")}
    try:
        yield
    finally:
        os.environ.update(there)
