"""
What it costs to watch a run: the seconds of everything that only observes, beside the seconds of the steps.

    python -m benchmarks.observing                                          # the embedded models
    python -m benchmarks.observing --student DIR --teacher DIR --prompts FILE.jsonl --rows 8 --length 512
    python -m benchmarks.observing --large 128 16384                        # the mathematics alone, on random numbers

Every function that only observes is timed where the trainer calls it, in the same run as the steps; the first step
warms up and does not count. docs/metrics.md has the figures.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from statistics import median
from time import perf_counter
from typing import Any

import torch

from fire_opd_trl import METHODS, Context, Rollout, Scores, distil, pipeline
from fire_opd_trl.rollouts import from_trl
from fire_opd_trl.stages import looped_tail_B, metrics
from fire_opd_trl.trainer import trainer
from fire_opd_trl.trainer.callbacks import StepTimer


TRIES = 3  # of the mathematics
# What only observes: its name here, and where the trainer finds it. Others may be added; none may contain another.
OBSERVERS = {
    "metrics of the window": (pipeline, "window_metrics"),
    "loops": (from_trl, "looped_tail_B"),
    "shares of the step": (StepTimer, "_say"),
    "metrics of each teacher, table of completions": (trainer.FiReOPDTrainer, "_report"),
    "records": (trainer.FiReOPDTrainer, "_record_rows"),
}


def noting(note: Callable[[float], None], function: Callable) -> Callable:
    """Returns the same function, of which each call's seconds are noted."""

    @wraps(function)
    def called(*args, **kwargs):
        started = perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            note(perf_counter() - started)

    return called


@contextmanager
def timed(observers: dict[str, tuple[Any, str]] = OBSERVERS) -> Iterator[dict[str, list[float]]]:
    """Inside this every observer notes the seconds of each of its calls."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def note(name: str) -> Callable[[float], None]:
        return lambda taken: seconds[name].append(taken)

    originals = {name: getattr(*place) for name, place in observers.items()}
    try:
        for name, (owner, attribute) in observers.items():
            setattr(owner, attribute, noting(note(name), originals[name]))
        yield seconds
    finally:
        for name, (owner, attribute) in observers.items():
            setattr(owner, attribute, originals[name])


def of_a_run(options: argparse.Namespace) -> dict[str, float]:
    """Returns median seconds: of a step, under "step", and of each observer, which is called once in it."""
    from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
    from fire_opd_trl.demo import task
    from fire_opd_trl.demo.run import model_path

    if options.prompts:
        from datasets import load_dataset

        data = load_dataset("json", data_files=options.prompts, split="train")
    else:
        data = task.dataset("train", 4 * options.rows * options.steps, seed=0)
    with tempfile.TemporaryDirectory() as folder, timed() as seconds:
        run = FiReOPDTrainer(
            options.student or model_path("student"),
            options.teacher or model_path("teacher"),
            FiReOPDConfig(
                folder,
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                per_device_train_batch_size=min(8, options.rows),
                gradient_accumulation_steps=max(1, options.rows // 8),
                max_steps=options.steps + 1,
                max_completion_length=options.length,
                logging_steps=1,
                log_rollouts=options.log_rollouts,
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=data,
        )
        run.train()
    steps = [log["step_time"] for log in run.state.log_history if "step_time" in log][1:]
    return {"step": median(steps)} | {name: median(each[1:]) for name, each in seconds.items()}


def of_the_mathematics(rows: int, tokens: int) -> dict[str, float]:
    """Returns the median seconds of a whole `distil`, under "step", and of what only observes."""
    generator = torch.Generator().manual_seed(0)
    logp_BT, other_BT, one_BT, two_BT = -torch.rand(4, rows, tokens, generator=generator)
    length_B1 = torch.randint(tokens // 8, tokens + 1, (rows, 1), generator=generator)
    mask_BT, id_BT = torch.arange(tokens) < length_B1, torch.randint(50_000, (rows, tokens), generator=generator)
    finished_B = length_B1.squeeze(1) < tokens
    rollout = Rollout(mask_BT, finished_B=finished_B, looped_B=looped_tail_B(id_BT, mask_BT))
    scores = Scores(logp_BT, other_BT, -one_BT, -two_BT)
    names = ("metrics of the window", "top decile of advantages")
    places = OBSERVERS[names[0]], (metrics, "top_decile_share")
    steps, loops = [], []
    with timed(dict(zip(names, places, strict=True))) as seconds:
        for _ in range(TRIES):
            started = perf_counter()
            distil(rollout, scores, METHODS["fire"](), Context())
            steps.append(perf_counter() - started)
            looped_tail_B(id_BT, mask_BT)
            loops.append(perf_counter() - started - steps[-1])
    return {"step": median(steps), **{name: median(each) for name, each in seconds.items()}, "loops": median(loops)}


def table(seconds: dict[str, float], whole: str) -> str:
    """Returns a Markdown table of the seconds, and of their shares in the whole."""
    lines = [f"| what | milliseconds | share of {whole} |", "| --- | --- | --- |"]
    lines += [
        f"| {whole if name == 'step' else name} | {1000 * value:.2f} | {value / seconds['step']:.2%} |"
        for name, value in seconds.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """`python -m benchmarks.observing` calls this."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--student", help="a model folder; by default the embedded student")
    parser.add_argument("--teacher", help="a model folder; by default the embedded teacher")
    parser.add_argument("--prompts", help="a JSONL file with a column `prompt`; by default the embedded task")
    parser.add_argument("--rows", type=int, default=32, help="rows of a window")
    parser.add_argument("--length", type=int, default=33, help="max_completion_length")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--log_rollouts", type=int, default=0, help="trajectories that are recorded at every step")
    parser.add_argument("--large", type=int, nargs=2, metavar=("ROWS", "TOKENS"), help="time the mathematics alone")
    options = parser.parse_args()
    if options.large:
        print(table(of_the_mathematics(*options.large), "the whole signal"))
    else:
        print(table(of_a_run(options), "a step"))


if __name__ == "__main__":
    main()
