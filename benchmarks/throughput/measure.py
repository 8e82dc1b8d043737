"""What is run: rounds of interleaved steps, memory, growth with the work, growth with the ranks."""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import memory
from .names import FLOOR, GROWING
from .processes import STEP_SECONDS, Worker, rank_environments
from .sizes import AXES, DOUBLINGS, RANKS, Size


Rounds = dict[str, list[dict[str, Any]]]


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds or minutes, in words."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def rotated(names: list[str], by: int) -> list[str]:
    """The names, beginning with another one in every round, so that none always follows the same neighbour's heat."""
    by %= len(names)
    return names[by:] + names[:by]


def interleaved(workers: dict[str, Worker], repeats: int, title: str, warm_up: int = 1) -> Rounds:
    """
    One step of each worker in every round, in rotated order.

    Args:
        workers (`dict[str, Worker]`): Workers that are ready.
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
            answer = workers[name].step()
            answers[name] += [answer] if number >= warm_up else []
        left = (time.monotonic() - began) * (warm_up + repeats - number - 1)
        label = "warm-up" if number < warm_up else f"round {number - warm_up + 1}/{repeats}"
        say(f"{title}, {label}: {time.monotonic() - began:.1f} s, {duration(left)} left of this")
    return answers


def built(workers: dict[str, Worker], size: Size, title: str) -> None:
    """Build the trainers of all workers at once, and wait for them."""
    began = time.monotonic()
    for name, worker in workers.items():
        worker.build(name, size)
    for worker in workers.values():
        worker.ready()
    say(f"{title}: {len(workers)} workers ready after {duration(time.monotonic() - began)}")


def timing(arms: list[str], size: Size, equal: list[str], repeats: int, threads: int, logs: Path) -> tuple:
    """
    The steps of all arms, interleaved; then of some of them on completions that are all equally long.

    Returns:
        `dict`, `dict` or `None`: Rounds on the heavy tail, and on equal lengths.
    """
    with ExitStack() as stack:
        names = [*arms, FLOOR]
        workers = {name: stack.enter_context(Worker(name, logs / f"{name}.log", threads)) for name in names}
        built(workers, size, "timing")
        tailed, same = interleaved(workers, repeats, "timing"), None
        for worker in workers.values():
            worker.end()
        if equal:
            chosen = {name: workers[name] for name in equal}
            built(chosen, replace(size, max_to_mean=1), "equal lengths")
            same = interleaved(chosen, repeats, "equal lengths")
        for worker in workers.values():
            worker.quit()
    return tailed, same


def memories(arms: list[str], size: Size, threads: int, logs: Path) -> Rounds:
    """The memory of the second step of every arm, each in a process of its own that has done nothing else."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(name, logs / f"{name}-memory.log", threads, memory=True, environment=memory.ENVIRONMENT)
            )
            for name in arms
        }
        built(workers, size, "memory")
        answers = interleaved(workers, 1, "memory")
        for worker in workers.values():
            worker.quit()
    return answers


def growth(base: Size, repeats: int, threads: int, logs: Path) -> dict[str, list[dict[str, Any]]]:
    """
    Rows, length and vocabulary doubled three times each from a smaller size.

    Returns:
        `dict[str, list[dict]]`: For each axis its points: `value` and the `rounds` of every growing arm.
    """
    points: dict[str, list[dict[str, Any]]] = {axis: [] for axis in AXES}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, logs / f"{name}-growth.log", threads)) for name in GROWING}
        for axis in AXES:
            for doublings in range(DOUBLINGS + 1):
                size = base.grown(axis, doublings)
                title = f"growth, {axis} {getattr(size, axis)}"
                built(workers, size, title)
                points[axis].append({"value": getattr(size, axis), "rounds": interleaved(workers, repeats, title)})
                for worker in workers.values():
                    worker.end()
        for worker in workers.values():
            worker.quit()
    return points


def ranks(size: Size, repeats: int, logs: Path) -> list[dict[str, Any]]:
    """
    `fire` on 1, 2 and 4 gloo ranks of one thread, the same window shared among them.

    Returns:
        `list[dict]`: For each number of ranks, `steps`: in every round what each rank answered.
    """
    points = []
    for count in RANKS:
        with ExitStack() as stack:
            team = [
                stack.enter_context(
                    Worker(f"rank {rank} of {count}", logs / f"{count}-ranks-{rank}.log", 1, False, env)
                )
                for rank, env in enumerate(rank_environments(count))
            ]
            for worker in team:
                worker.build("fire", size, count)
            for worker in team:
                worker.ready(count)
            steps = [together(team) for _ in range(repeats + 1)][1:]
            for worker in team:
                worker.end()
            for worker in team:
                worker.quit()
        slowest = max(max(answer["seconds"] for answer in step) for step in steps)
        say(f"ranks, {count}: slowest of {repeats} steps {slowest:.1f} s")
        points.append({"ranks": count, "rows_of_a_rank": size.rows // count, "steps": steps})
    return points


def together(team: list[Worker]) -> list[dict[str, Any]]:
    """One step of all ranks."""
    for worker in team:
        worker.tell("step")
    return [worker.answer(STEP_SECONDS) for worker in team]
