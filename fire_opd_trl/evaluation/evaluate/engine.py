"""
One task on one model, through inspect-ai: it schedules, writes the log, and takes up a log that is not whole.

A log belongs to the facts that it was begun with: they are its metadata, and are compared before anything is added.
"""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .problems import Problem, Task
from .samples import Sample, in_order, seed_of
from .settings import Settings


class Graded(NamedTuple):
    """The answer found in a completion, the verdict on it, and what whoever looks at the sample should know."""

    answer: str | None
    verdict: str
    note: str = ""


Grade = Callable[[Problem, str], Awaitable[Graded]]
STOPS = {"stop": "stop", "max_tokens": "length", "model_length": "length"}


# What only tells where numbers came from may differ: a finished log keeps its own. So may how vLLM uses its GPUs.
MAY_DIFFER = {"versions", "path", "label", "device", "source", "tp", "dp", "pp", "gpu-memory-utilization"}
MAY_DIFFER |= {f"{kind}-parallel-size" for kind in ("tensor", "data", "pipeline")} | {"max-num-seqs", "enforce-eager"}


@dataclass(frozen=True)
class Job:
    """
    What is asked of one model on one task.

    Args:
        task (`Task`): The problems.
        folder (`Path`): Where the logs of this model lie.
        facts (`dict`): All that makes the numbers; what is compared when a log is taken up.
        prompts (`tuple[str, ...]`): The prompt of each problem, before the chat template.
        settings ([`Settings`]): Those of the evaluation.
        connections (`int`): How many samples are under way at once.
    """

    task: Task
    folder: Path
    facts: dict[str, Any]
    prompts: tuple[str, ...]
    settings: Settings
    connections: int

    @property
    def total(self) -> int:
        return len(self.task.problems) * self.settings.n

    def seed_of(self, problem: str, sample: int) -> int:
        return seed_of(self.settings.seed, problem, sample)


@dataclass(frozen=True)
class Found:
    """A log that was found: its header, where it is, and which of its samples, (problem, number), are whole."""

    header: Any
    path: Path
    whole: frozenset[tuple[str, int]]

    @property
    def done(self) -> int:
        return len(self.whole)


def logs(job: Job) -> list[Found]:
    """Returns the logs of a job, oldest first. One that cannot be read, as a kill may leave it, has no header."""
    from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries

    found = []
    # inspect-ai would list them as URLs, in which `#`, `?` and `%20` of a folder mean something else.
    for path in sorted(job.folder.absolute().glob("*.eval"), key=lambda path: (path.stat().st_mtime, path.name)):
        try:
            header = read_eval_log(path, header_only=True)
            rows = read_eval_log_sample_summaries(path)
        except Exception:  # whatever a broken archive makes of its reader
            found.append(Found(None, path, frozenset()))
            continue
        if header.eval.task == job.task.name:
            found.append(Found(header, path, frozenset((str(one.id), one.epoch) for one in rows if one.error is None)))
    return found


def find(job: Job) -> Found | None:
    """Returns the newest of the logs of a job that have most samples; `None` if there is none."""
    readable = [one for one in logs(job) if one.header is not None]
    return max(reversed(readable), key=lambda one: one.done, default=None)


def missing(job: Job, found: Found | None) -> list[tuple[str, int]]:
    """Returns prompt and seed of the samples that are not there yet, in the order in which inspect-ai runs them."""
    there = found.whole if found is not None else frozenset()
    return [
        (prompt, job.seed_of(problem.id, number))
        for number in range(1, job.settings.n + 1)
        for problem, prompt in zip(job.task.problems, job.prompts, strict=True)
        if (problem.id, number) not in there
    ]


def differing(asked: dict[str, Any], there: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Returns what two records of facts do not agree in: the name, what is asked, and what is there."""
    for name in sorted((asked.keys() | there.keys()) - MAY_DIFFER):
        ours, theirs = asked.get(name), there.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            yield from differing(ours, theirs, f"{above}{name}.")
        elif ours != theirs:
            yield f"{above}{name}", ours, theirs


def run(job: Job, model: Any, grade: Grade, on_sample: Callable[[], None], found: Found | None) -> None:
    """
    Runs what is missing of a job. Its log says what came of it; `KeyboardInterrupt` comes when that is written,
    and `OSError` when the disk is full.

    Args:
        job (`Job`): What is asked.
        model (`Any`): A model of inspect-ai.
        grade (`Grade`): The grader of the task.
        on_sample (`Callable`): Called when a sample is graded.
        found (`Found`, *optional*): The log to go on from.
    """
    from inspect_ai import eval as run_eval
    from inspect_ai._eval.task import PreviousTask  # takes up a log with a task and a model made here
    from inspect_ai.log import EvalLogInfo

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
            log_info=EvalLogInfo(
                name=str(found.path), type="file", size=0, mtime=None, task="", task_id="", suffix=None
            ),
        )
    job.folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        ended = run_eval(
            task,
            model=model,
            log_dir=str(job.folder.absolute()),
            metadata=job.facts,
            display="none",
            log_level="error",
            ctl_server=False,  # or it listens on a socket in the user's home
            log_realtime=False,  # or it keeps a database of the samples in the user's home
            # The whole log is copied at each write: every sample of a small task, half a percent of a large one.
            log_buffer=max(1, job.total // 200),
            log_format="eval",
            fail_on_error=False,
            continue_on_fail=True,
            max_samples=job.connections,
            max_connections=job.connections,
            max_tasks=1,
            score_display=False,
        )
    if not ended or ended[0].status in ("cancelled", "started"):  # Ctrl-C: it returns as if all were well
        raise KeyboardInterrupt
    if ended[0].error is not None:
        if os.strerror(errno.ENOSPC) in ended[0].error.message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.folder))
        raise RuntimeError(f"{job.task.name}: {ended[0].error.message}")


def discard(job: Job, keep: Found | None = None) -> None:
    """Removes the logs of a job, those that cannot be read among them, but for one."""
    for one in logs(job):
        if keep is None or one.path != keep.path:
            one.path.unlink(missing_ok=True)


def tidy(job: Job) -> None:
    """Removes the logs of earlier attempts when one holds every sample: `run` calls this at the end of a task."""
    found = find(job)
    if found is not None and found.done == job.total:
        discard(job, keep=found)


def samples(job: Job, found: Found) -> list[Sample]:
    """Returns the samples of a log in the order of the problems, those with an error among them."""
    from inspect_ai.log import read_eval_log_samples

    rows = [_sample(job, one) for one in read_eval_log_samples(found.path, all_samples_required=False)]
    return in_order(rows, [problem.id for problem in job.task.problems])


def _sample(job: Job, one: Any) -> Sample:
    """Returns our record of a sample of inspect-ai's."""
    seed = job.seed_of(one.id, one.epoch)
    score = (one.scores or {}).get("graded")
    if one.error is not None or score is None:
        what = one.error.message if one.error is not None else "it was not graded"
        return Sample(job.task.name, one.id, one.epoch, seed, what, None, "wrong", "error", 0)
    text, seconds = one.output.completion, one.output.time
    return Sample(job.task.name, one.id, one.epoch, seed, text, score.answer, seconds=seconds, **score.metadata)


def _inspect_task(job: Job, grade: Grade, on_sample: Callable[[], None]) -> Any:
    """Returns the task as inspect-ai knows it: an epoch is the number of a sample."""
    import inspect_ai
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.dataset import Sample as Row
    from inspect_ai.model import GenerateConfig
    from inspect_ai.scorer import Score, mean, scorer, stderr
    from inspect_ai.solver import solver

    asked, problems = job.settings, {problem.id: problem for problem in job.task.problems}
    rows = [
        Row(id=problem.id, input=prompt, target=list(problem.gold))
        for problem, prompt in zip(job.task.problems, job.prompts, strict=True)
    ]

    @solver
    def seeded() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            return await generate(state, seed=job.seed_of(state.sample_id, state.epoch))

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

    return inspect_ai.Task(
        name=job.task.name,
        dataset=MemoryDataset(rows, name=job.task.name, location=job.task.source),
        solver=seeded(),
        scorer=graded(),
        epochs=inspect_ai.Epochs(asked.n, "mean"),
        config=GenerateConfig(temperature=asked.temperature, top_p=asked.top_p, max_tokens=asked.max_new_tokens),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """inspect-ai reads settings from variables INSPECT_* and a .env file, which could change a number unseen."""
    there = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("INSPECT_EVAL_")}
    try:
        yield
    finally:
        os.environ.update(there)
