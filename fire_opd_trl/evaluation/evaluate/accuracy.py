"""How good the student is while it trains: [`AccuracyCallback`] measures it every so often, and keeps the best."""

import importlib.util
import json
import math
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm.auto import tqdm

from ...config import FiReOPDConfig
from ...trainer.record import now
from ...trainer.sampling import Completion, Sampler, SamplingCallback
from ..files import write_json
from ..statistics import scipy_special
from .answers import found_answer
from .grading import Graders, exact
from .problems import Task
from .prompts import prompt_text
from .results import plain
from .samples import Sample, seed_of
from .settings import Settings
from .summary import Summary, summarize
from .tasks import load_task


Grade = Callable[[tuple[str, ...], str], str]
GRADERS = 2  # processes, on the main process's machine
SIGN_OF_LIFE = 10.0  # seconds after which the main process tells the other ranks that it still grades
BEST_OF_MANY = (
    "This is the best of several noisy numbers, so that it looks better than the model is. Measure it again with "
    "`fire-opd evaluate`, on other seeds."
)


class AccuracyCallback(SamplingCallback):
    """
    Measures Avg@n on a task before the first step, after every `every` steps, and after the last one, with the engine
    that samples for training. The training goes on as if nothing had been measured.

    Args:
        task (`str`, `Path` or `Task`): A task of `fire-opd evaluate`, or the path of a jsonl file.
        every (`int`, *optional*, defaults to 50): Optimizer steps between two measurements.
        n (`int`, *optional*, defaults to 4): Answers to each problem.
        limit (`int`, *optional*): Only the first so many problems.
        keep_best (`bool`, *optional*, defaults to `True`): Keep the best model in the folder `best` of output_dir.
        data_dir (`str`, *optional*): Folder with the files of the tasks.
        max_new_tokens (`int`, *optional*): Longest answer; by default that of training.
        temperature (`float`, *optional*, defaults to 1.0): 0 takes the likeliest token, with `n=1`.

    Example:

    ```python
    >>> from fire_opd_trl.evaluation.evaluate.accuracy import AccuracyCallback
    >>> trainer.add_callback(AccuracyCallback("my_file.jsonl", every=50))
    ```
    """

    def __init__(
        self,
        task: str | Path | Task,
        every: int = 50,
        n: int = 4,
        limit: int | None = None,
        keep_best: bool = True,
        data_dir: str | Path | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
    ):
        if type(every) is not int or every < 1:
            raise ValueError(f"every={every!r} is refused. Give a whole number of at least 1.")
        length: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        Settings(n=n, temperature=temperature, limit=limit, data_dir=data_dir, **length)  # refuses what is none
        if not isinstance(task, Task):
            task = load_task(task, data_dir, limit)
        elif limit is not None:
            raise ValueError(f"limit={limit!r} cuts a task that is loaded by its name. Cut the problems yourself.")
        if task.kind == "code":
            raise ValueError(
                f"{task.name} runs code, which needs a sandbox, and is not measured while training. Use `fire-opd "
                "evaluate` on a checkpoint."
            )
        if task.kind == "math" and importlib.util.find_spec("math_verify") is None:
            raise ImportError("Grading needs math-verify: pip install fire-opd-trl[eval]", name="math_verify")
        scipy_special()  # intervals need it
        self.task, self.every, self.n, self.keeps_best = task, every, n, keep_best
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.prompts = [prompt_text(problem, task, task.prompt_style) for problem in task.problems]
        self.bar: float | None = None  # the value to beat; only the main process knows it

    @classmethod
    def of(cls, args: FiReOPDConfig) -> "AccuracyCallback":
        """Returns the callback that a config asks for. `fire-opd train` and its preflight call it."""
        assert args.accuracy_task is not None
        return cls(
            args.accuracy_task,
            every=args.accuracy_steps,
            n=args.accuracy_n,
            limit=args.accuracy_limit,
            keep_best=args.keep_best,
            data_dir=args.accuracy_data_dir,
            max_new_tokens=args.accuracy_max_new_tokens,
        )

    def described(self) -> str:
        """Returns what the table of a preflight says of it."""
        count = len(self.task.problems)
        return (
            f"{self.task.name}: {count} problem{'s' * (count != 1)} from {self.task.source}, {self.n} answer"
            f"{'s' * (self.n != 1)} each, every {self.every} steps: {count * self.n} answers a measurement"
        )

    # What the trainer calls

    def on_train_begin(self, args, state, control, **kwargs):
        if self.sampler is None:
            raise ValueError("AccuracyCallback samples through FiReOPDTrainer; other trainers give it no sampler.")
        self.sampler.refuse_overlong(self.prompts, self.max_new_tokens)
        with self.sampler.alike():
            if self.keeps_best and self.sampler.main:
                self.bar = self.bar_of(best_folder(args), resumed=state.global_step > 0)
        if state.global_step == 0:
            self.measure(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or state.global_step % self.every == 0:
            self.measure(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        # A stream has ended before max_steps, so that no step was known to be the last.
        measured = state.stateful_callbacks.get(self.kept_as) == state.global_step
        if state.global_step > 0 and not measured and not args.load_best_model_at_end:
            self.measure(args, state)

    # A measurement

    @property
    def kept_as(self) -> str:
        """Under which a checkpoint's trainer_state.json holds the step that was measured last."""
        return f"fire_accuracy/{self.task.name}"

    def measure(self, args: FiReOPDConfig, state: Any) -> None:
        """Sample, grade, log, and keep the model if it is the best so far. All ranks do this together."""
        sampler, step, started = self.sampler, state.global_step, perf_counter()
        assert sampler is not None
        prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
        seed = seed_of(args.seed, self.task.name, step)  # another at each step, and the same again after a resume
        completions = sampler.sample(prompts, seed, self.temperature, self.max_new_tokens)
        summary = self.graded(sampler, completions, seed, step)
        values = facts = None
        if summary is not None:  # on the main process
            values = self.values(summary, perf_counter() - started)
            if self.keeps_best and (self.bar is None or summary.avg > self.bar):
                facts = self.told(args, step, summary)
        values, facts = sampler.from_main((values, facts))
        if values is None:
            return
        state.stateful_callbacks[self.kept_as] = step
        sampler.log(values)
        if summary is not None and args.print_metrics == "line":
            tqdm.write(self.line(state, summary, facts is not None))
        if facts is not None and self.keep(sampler, best_folder(args), facts):
            self.bar = facts["value"]

    def graded(self, sampler: Sampler, completions: list[Completion], seed: int, step: int) -> Summary | None:
        """
        Returns what the answers come to, on the main process. Meanwhile the other ranks hear from it again and again,
        since they would take a long silence for a fault. What fails here costs one measurement, and not the run.
        """
        futures: list[Future[Sample]] = []
        fault: Exception | None = None
        with ExitStack() as opened:
            try:
                if sampler.main:
                    threads = opened.enter_context(ThreadPoolExecutor(GRADERS))
                    grade: Grade = exact
                    if self.task.kind != "exact":
                        grade = opened.enter_context(Graders(GRADERS)).grade
                    futures = [threads.submit(self.judged, seed, grade, *row) for row in enumerate(completions)]
            except Exception as error:
                fault = error
            while sampler.from_main(bool(wait(futures, SIGN_OF_LIFE).not_done)):
                pass
        if not sampler.main:
            return None
        try:
            if fault is not None:
                raise fault
            return summarize([future.result() for future in futures], self.n)
        except Exception as error:
            warnings.warn(
                f"step {step}: the accuracy on {self.task.name} could not be measured ({type(error).__name__}: "
                f"{error}). Training goes on; later steps are tried again.",
                stacklevel=2,
            )
            return None

    def judged(self, seed: int, grade: Grade, row: int, completion: Completion) -> Sample:
        """Returns the sample of a numbered completion, in any thread."""
        problem = self.task.problems[row // self.n]
        answer = found_answer(completion.text, self.task)
        return Sample(
            task=self.task.name,
            problem=problem.id,
            sample=row % self.n + 1,
            seed=seed,
            text=completion.text,
            answer=answer,
            verdict="no answer" if answer is None else grade(problem.gold, answer),
            stop="stop" if completion.finished else "length",
            tokens=completion.tokens,
        )

    # What is said of it

    def values(self, summary: Summary, seconds: float) -> dict[str, float]:
        """Returns what is logged of a measurement."""
        named = {
            f"avg@{self.n}": summary.avg,
            "stderr": summary.stderr,
            "truncated": summary.truncated,
            "no_answer": summary.no_answer,
            "ungraded": summary.timeouts + summary.deaths,
            "tokens": summary.mean_tokens,
            "seconds": seconds,
        }
        known = {name: value for name, value in named.items() if not math.isnan(value)}
        return {f"accuracy/{self.task.name}/{name}": float(value) for name, value in known.items()}

    def line(self, state: Any, summary: Summary, best: bool) -> str:
        """Returns what a person reads of a measurement."""
        ungraded = summary.timeouts + summary.deaths
        low, high = summary.interval
        error = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        return (
            f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}  {self.task.name}: "
            f"avg@{self.n} {summary.avg:.3f}{error}  length {summary.mean_tokens:.0f}"
            f"  cut {summary.truncated:.0%}  no answer {summary.no_answer:.0%}"
            + (f"  {ungraded} not graded in time" if ungraded else "")
            + ("  best so far" if best else "")
        )

    def told(self, args: FiReOPDConfig, step: int, summary: Summary) -> dict[str, Any]:
        """Returns what best.json says."""
        return {
            "step": step,
            "metric": f"accuracy/{self.task.name}/avg@{self.n}",
            "value": summary.avg,
            "stderr": plain(summary.stderr),
            "interval": plain(summary.interval),
            "note": BEST_OF_MANY,
            "seed": args.seed,
            **self.measured_as(),
        }

    def measured_as(self) -> dict[str, Any]:
        """Returns what must be equal if two numbers are to be compared."""
        assert self.sampler is not None
        return {
            "task": self.task.name,
            "sha256": self.task.sha256,
            "problems": len(self.task.problems),
            "n": self.n,
            "prompt_style": self.task.prompt_style,
            "temperature": self.temperature,
            "max_new_tokens": self.sampler.longest(self.max_new_tokens),
        }

    # The best model

    def bar_of(self, folder: Path, resumed: bool) -> float | None:
        """
        Returns the value that a model must beat to be kept: that of the model which is in the folder, if this run has
        made it. A model of an earlier run, or one that was measured otherwise, is moved aside.
        """
        old = folder.with_name("best.old")
        if old.exists() and not folder.exists():  # a crash came between two renames
            old.rename(folder)
        if not folder.exists():
            return None
        try:
            kept = json.loads((folder / "best.json").read_text(encoding="utf-8"))
            if resumed and {name: kept[name] for name in self.measured_as()} == self.measured_as():
                return float(kept["value"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not ours, or broken: moved aside like one of an earlier run
        folder.rename(folder.with_name(f"best-before-{now().replace(':', '')}"))
        return None

    def keep(self, sampler: Sampler, folder: Path, facts: dict[str, Any]) -> bool:
        """
        Save the model in the place of the best one, whole or not at all; returns whether that went well. All ranks
        call this. A disk that is full costs the best model, and not the run.
        """
        part, old = folder.with_name("best.part"), folder.with_name("best.old")

        def make() -> None:
            if sampler.main:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)

        def exchange() -> None:
            if sampler.main:
                if not any(part.glob("*.safetensors")) and not any(part.glob("*.bin")):
                    raise OSError("no weights were written; FSDP saves a whole model with FULL_STATE_DICT alone")
                write_json(part / "best.json", facts)
                shutil.rmtree(old, ignore_errors=True)
                if folder.exists():
                    folder.rename(old)
                part.rename(folder)
                shutil.rmtree(old, ignore_errors=True)

        for act in (make, lambda: sampler.save(str(part)), exchange):
            fault: Exception | None = None
            try:
                act()
            except Exception as error:
                fault = error
                warnings.warn(
                    f"step {facts['step']}: the best model could not be kept in {folder} ({type(error).__name__}: "
                    f"{error}). Training goes on; the next better one is tried again.",
                    stacklevel=3,
                )
            if sampler.any_failed(fault is not None):
                if sampler.main:
                    shutil.rmtree(part, ignore_errors=True)
                return False
        return True


def best_folder(args: FiReOPDConfig) -> Path:
    """Returns where the best model is kept."""
    return Path(args.output_dir) / "best"
