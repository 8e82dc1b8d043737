"""The measurements: rounds of interleaved steps, memory, growth with the work, growth with the ranks."""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import memory
from .names import FLOOR, GROWING
from .processes import StepWorker, rank_environments
from .sizes import AXES, DOUBLINGS, RANKS, Size


Rounds = dict[str, list[dict[str, Any]]]


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds or minutes, in words."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def rotated(names: list[str], by: int) -> list[str]:
    """The names, beginning with another one in every round, so that no arm always follows the same other one."""
    by %= len(names)
    return names[by:] + names[:by]


def interleave_steps(workers: dict[str, StepWorker], repeats: int, title: str, warm_up: int = 1) -> Rounds:
    """
    Do one step of each worker in every round, in rotated order.

    Args:
        workers (`dict[str, StepWorker]`): Workers that are ready.
        repeats (`int`): Rounds that count.
        title (`str`): For the lines of progress.
        warm_up (`int`): Rounds before them that do not.

    Returns:
        `dict[str, list[dict]]`: The answers of each worker, of the rounds that count.
    """
    answers: Rounds = {name: [] for name in workers}
    for number in range(warm_up + repeats):
        began = time.monotonic()
        for name in rotated(list(workers), number):
            workers[name].begin_step()
            answer = workers[name].finish_step()
            answers[name] += [answer] if number >= warm_up else []
        left = (time.monotonic() - began) * (warm_up + repeats - number - 1)
        label = "warm-up" if number < warm_up else f"round {number - warm_up + 1}/{repeats}"
        say(f"{title}, {label}: {time.monotonic() - began:.1f} s, {duration(left)} left of this")
    return answers


def build_all(workers: dict[str, StepWorker], size: Size, title: str) -> None:
    """Build the trainers of all workers at once, and wait for them."""
    began = time.monotonic()
    for name, worker in workers.items():
        worker.build(name, size)
    for worker in workers.values():
        worker.wait_until_built()
    say(f"{title}: {len(workers)} workers ready after {duration(time.monotonic() - began)}")


def measure_timing(arms: list[str], size: Size, equal: list[str], repeats: int, threads: int, logs: Path) -> tuple:
    """
    Measure the steps of all arms, interleaved; then those of some arms on completions that are all equally long.

    Returns:
        `dict`, `dict` or `None`: Rounds on the heavy tail, and on equal lengths.
    """
    with ExitStack() as stack:
        names = [*arms, FLOOR]
        workers = {name: stack.enter_context(StepWorker(name, logs / f"{name}.log", threads)) for name in names}
        build_all(workers, size, "timing")
        tailed, same = interleave_steps(workers, repeats, "timing"), None
        for worker in workers.values():
            worker.end_training()
        if equal:
            chosen = {name: workers[name] for name in equal}
            build_all(chosen, replace(size, max_to_mean=1), "equal lengths")
            same = interleave_steps(chosen, repeats, "equal lengths")
        for worker in workers.values():
            worker.quit()
    return tailed, same


def measure_memory(arms: list[str], size: Size, threads: int, logs: Path) -> Rounds:
    """Measure the memory of the second step of every arm, each in a process that has done nothing else."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                StepWorker(name, logs / f"{name}-memory.log", threads, memory=True, environment=memory.ENVIRONMENT)
            )
            for name in arms
        }
        build_all(workers, size, "memory")
        answers = interleave_steps(workers, 1, "memory")
        for worker in workers.values():
            worker.quit()
    return answers


def measure_growth(base: Size, repeats: int, threads: int, logs: Path) -> dict[str, list[dict[str, Any]]]:
    """
    Measure steps while rows, length and vocabulary are doubled three times each, from a smaller size.

    Returns:
        `dict[str, list[dict]]`: For each axis its points: `value` and the `rounds` of every growing arm.
    """
    points: dict[str, list[dict[str, Any]]] = {axis: [] for axis in AXES}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(StepWorker(name, logs / f"{name}-growth.log", threads)) for name in GROWING
        }
        for axis in AXES:
            for doublings in range(DOUBLINGS + 1):
                size = base.grown(axis, doublings)
                title = f"growth, {axis} {getattr(size, axis)}"
                build_all(workers, size, title)
                points[axis].append(
                    {"value": getattr(size, axis), "rounds": interleave_steps(workers, repeats, title)}
                )
                for worker in workers.values():
                    worker.end_training()
        for worker in workers.values():
            worker.quit()
    return points


def measure_ranks(size: Size, repeats: int, logs: Path) -> list[dict[str, Any]]:
    """
    Measure `fire` on 1, 2 and 4 gloo ranks of one thread, which share the same window.

    Returns:
        `list[dict]`: For each number of ranks, `steps`: in every round what each rank answered.
    """
    points = []
    for count in RANKS:
        with ExitStack() as stack:
            team = [
                stack.enter_context(
                    StepWorker(f"rank {rank} of {count}", logs / f"{count}-ranks-{rank}.log", 1, False, env)
                )
                for rank, env in enumerate(rank_environments(count))
            ]
            for worker in team:
                worker.build("fire", size, count)
            for worker in team:
                worker.wait_until_built(count)
            steps = [step_together(team) for _ in range(repeats + 1)][1:]
            for worker in team:
                worker.end_training()
            for worker in team:
                worker.quit()
        slowest = max(max(answer["seconds"] for answer in step) for step in steps)
        say(f"ranks, {count}: slowest of {repeats} steps {slowest:.1f} s")
        points.append({"ranks": count, "rows_of_a_rank": size.rows // count, "steps": steps})
    return points


def step_together(team: list[StepWorker]) -> list[dict[str, Any]]:
    """Do one step on all ranks at once."""
    for worker in team:
        worker.begin_step()
    return [worker.finish_step() for worker in team]
