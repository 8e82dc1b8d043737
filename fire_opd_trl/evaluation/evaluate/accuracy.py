"""How good the student is while it trains: [`AccuracyCallback`] measures it every so often, and keeps the best."""

import importlib.util
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm.auto import tqdm

from ...config import FiReOPDConfig
from ...trainer.record import now
from ...trainer.sampling import Completion, Sampler, Sampling, SamplingCallback
from ..statistics import scipy_special
from .answers import found_answer
from .grading import Graders, exact
from .problems import Task
from .prompts import STYLES, prompt_text
from .samples import Sample, seed_of
from .summary import Summary, summarize
from .tasks import load_task


CHUNK = 16  # answers that the main process grades before it tells the other ranks that it lives
BEST_OF_MANY = (
    "This is the best of several noisy numbers, so that it looks better than the model is. Measure it again with "
    "`fire-opd evaluate`, on other seeds."
)


class AccuracyCallback(SamplingCallback):
    """
    Measures Avg@n on a task before the first step, after every `every` steps, and after the last one, with the engine
    that samples for training. The training goes on as if nothing had been measured.

    Args:
        task (`str` or `Task`): A task of `fire-opd evaluate`, or the path of a jsonl file.
        every (`int`, *optional*, defaults to 50): Optimizer steps between two measurements.
        n (`int`, *optional*, defaults to 4): Answers to each problem.
        limit (`int`, *optional*): Only the first so many problems.
        keep_best (`bool`, *optional*, defaults to `True`): Keep the best model in the folder `best` of output_dir.
        data_dir (`str`, *optional*): Folder with the files of the tasks.
        max_new_tokens (`int`, *optional*): Longest answer; by default that of training.
        temperature (`float`, *optional*, defaults to 1.0): 0 takes the likeliest token.
        top_p (`float`, *optional*, defaults to 1.0): Share of the distribution that is sampled from.
        prompt_style (`str`, *optional*): What is added to a problem; by default that of the task.
        at_start (`bool`, *optional*, defaults to `True`): Measure before the first step, too.
        graders (`int`, *optional*, defaults to 2): Processes that grade, on the main process's machine.

    Example:

    ```python
    >>> from fire_opd_trl.evaluation.evaluate.accuracy import AccuracyCallback
    >>> trainer.add_callback(AccuracyCallback("my_file.jsonl", every=50))
    ```
    """

    def __init__(
        self,
        task: str | Task,
        every: int = 50,
        n: int = 4,
        limit: int | None = None,
        keep_best: bool = True,
        data_dir: str | Path | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        prompt_style: str | None = None,
        at_start: bool = True,
        graders: int = 2,
    ):
        for name, value in {"every": every, "n": n, "graders": graders}.items():
            if value < 1:
                raise ValueError(f"{name}={value!r} is refused. Give a whole number of at least 1.")
        if not temperature >= 0 or not 0 < top_p <= 1:
            wrong = f"temperature={temperature!r}, top_p={top_p!r}"
            raise ValueError(f"{wrong}: give a temperature of at least 0, and a share in (0, 1].")
        if prompt_style is not None and prompt_style not in STYLES:
            raise ValueError(f"prompt_style={prompt_style!r} is none of: {', '.join(STYLES)}.")
        if isinstance(task, str):
            task = load_task(task, None if data_dir is None else Path(data_dir), limit)
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
        self.task, self.every, self.n, self.keeps_best, self.at_start = task, every, n, keep_best, at_start
        self.sampling = Sampling(temperature, top_p, max_new_tokens)
        self.style, self.graders = prompt_style or task.prompt_style, graders
        self.prompts = [prompt_text(problem, task, self.style) for problem in task.problems]
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
            temperature=args.accuracy_temperature,
            top_p=args.accuracy_top_p,
            prompt_style=args.accuracy_prompt_style,
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
        self.sampler.refuse_overlong(self.prompts, self.sampling)
        with self.sampler.alike():
            if self.keeps_best and self.sampler.main:
                self.bar = self.bar_of(best_folder(args), resumed=state.global_step > 0)
        if self.at_start and state.global_step == 0:
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
        sampler, started = self.sampler, perf_counter()
        assert sampler is not None
        prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
        # Another at each step, and the same again after a resume.
        seed = seed_of(args.seed, self.task.name, state.global_step)
        completions = sampler.sample(prompts, seed, self.sampling)
        summary = self.graded(sampler, completions, seed, state.global_step)
        found: dict[str, Any] = {}
        if summary is not None:
            found = {"values": self.values(summary, perf_counter() - started)}
            found["best"] = self.keeps_best and (self.bar is None or summary.avg > self.bar)
        found = sampler.from_main(found)
        if not found:
            return
        state.stateful_callbacks[self.kept_as] = state.global_step
        sampler.log(dict(found["values"]))
        if summary is not None and args.print_metrics == "line":
            tqdm.write(self.line(state, summary, found["best"]))
        if found["best"] and self.keep(sampler, args, self.told(args, state, summary)) and summary is not None:
            self.bar = summary.avg

    def graded(self, sampler: Sampler, completions: list[Completion], seed: int, step: int) -> Summary | None:
        """
        Returns what the answers come to, on the main process. Meanwhile the other ranks hear from it again and again,
        since they would take a long silence for a fault. What fails here costs one measurement, and not the run.
        """
        samples: list[Sample] = []
        fault: Exception | None = None
        with ExitStack() as opened:
            judge: Callable[[int, Completion], Sample] | None = None
            threads = opened.enter_context(ThreadPoolExecutor(self.graders))
            for start in range(0, len(completions), CHUNK):
                try:
                    if sampler.main and fault is None:
                        judge = judge or opened.enter_context(self.judge(seed))
                        part = completions[start : start + CHUNK]
                        samples += threads.map(judge, range(start, start + len(part)), part)
                except Exception as error:
                    fault = error
                sampler.any_failed(fault is not None)
        if not sampler.main:
            return None
        try:
            if fault is not None:
                raise fault
            return summarize(samples, self.n)
        except Exception as error:
            warnings.warn(
                f"step {step}: the accuracy on {self.task.name} could not be measured ({type(error).__name__}: "
                f"{error}). Training goes on; later steps are tried again.",
                stacklevel=2,
            )
            return None

    @contextmanager
    def judge(self, seed: int) -> Iterator[Callable[[int, Completion], Sample]]:
        """Gives a function that makes a sample of a numbered completion, in any thread; its workers end with it."""

        def judged(row: int, completion: Completion) -> Sample:
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
                seconds=None,
            )

        with ExitStack() as opened:
            if self.task.kind == "exact":
                grade: Callable[[tuple[str, ...], str], str] = exact
            else:
                grade = opened.enter_context(Graders(self.graders)).grade
            yield judged

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

    def told(self, args: FiReOPDConfig, state: Any, summary: Summary | None) -> dict[str, Any]:
        """Returns what best.json says, on the main process."""
        if summary is None:
            return {}
        return {
            "step": state.global_step,
            "metric": f"accuracy/{self.task.name}/avg@{self.n}",
            "value": summary.avg,
            "stderr": number(summary.stderr),
            "interval": [number(end) for end in summary.interval],
            "note": BEST_OF_MANY,
            "seed": args.seed,
            **self.measured_as(),
        }

    def measured_as(self) -> dict[str, Any]:
        """Returns what must be equal if two numbers are to be compared."""
        return {
            "task": self.task.name,
            "sha256": self.task.sha256,
            "problems": len(self.task.problems),
            "n": self.n,
            "prompt_style": self.style,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_new_tokens": self.sampling.max_new_tokens,
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

    def keep(self, sampler: Sampler, args: FiReOPDConfig, facts: dict[str, Any]) -> bool:
        """
        Save the model in the place of the best one, whole or not at all; returns whether that went well. All ranks
        call this. A disk that is full costs the best model, and not the run.
        """
        folder = best_folder(args)
        part, old = folder.with_name("best.part"), folder.with_name("best.old")
        fault: Exception | None = None
        try:
            if sampler.main:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
        except OSError as error:
            fault = error
        if not sampler.any_failed(fault is not None):
            try:
                sampler.save(str(part))
            except Exception as error:
                fault = error
            sampler.any_failed(False)  # all files are written
            try:
                if sampler.main and fault is None:
                    if not any(part.glob("*.safetensors")) and not any(part.glob("*.bin")):
                        raise OSError("no weights were written; FSDP saves a whole model with FULL_STATE_DICT alone")
                    (part / "best.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
                    shutil.rmtree(old, ignore_errors=True)
                    if folder.exists():
                        folder.rename(old)
                    part.rename(folder)
                    shutil.rmtree(old, ignore_errors=True)
            except OSError as error:
                fault = error
        if fault is not None:
            shutil.rmtree(part, ignore_errors=True)
            warnings.warn(
                f"step {facts.get('step')}: the best model could not be kept in {folder} ({type(fault).__name__}: "
                f"{fault}). Training goes on; the next better one is tried again.",
                stacklevel=3,
            )
        return not sampler.any_failed(fault is not None)


def number(value: float) -> float | None:
    """Returns a number that JSON can have: what one problem cannot tell is `None`."""
    return None if math.isnan(value) else value


def best_folder(args: FiReOPDConfig) -> Path:
    """Returns where the best model is kept."""
    return Path(args.output_dir) / "best"
