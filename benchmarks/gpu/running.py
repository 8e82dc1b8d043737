"""
One part after the other, each in a process of its own, inside one budget of time. A part that fails, runs out of
memory or takes too long costs itself alone; the rows that it had sent are kept.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.throughput.measure import duration, say
from fire_opd_trl.evaluation.workers import Worker, WorkerFailed

from .serving import DONE, FAILED


LATE = "out of time"
Row = dict[str, Any]
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """
    A part of the run.

    Args:
        name (`str`): Its name on the command line and in the results.
        title (`str`): What it shows, in a few words.
        function (`str`): `"module:function"`, a generator of rows.
        weight (`float`): Its share of the time, beside the weights of the others.
        arguments (`tuple`): Arguments of the function.
        environment (`dict`): Variables that its process has from the start.
    """

    name: str
    title: str
    function: str
    weight: float
    arguments: tuple = ()
    environment: dict[str, str] = field(default_factory=dict)


def limit_of(section: Section, later: list[Section], left: float) -> float:
    """
    The seconds that a section may take: its share of what is left, so that what one does not use is there for those
    after it, and all together never take more than there is.
    """
    return left * section.weight / (section.weight + sum(one.weight for one in later))


def run_sections(
    sections: list[Section],
    known: dict[str, Outcome],
    seconds: float,
    logs: Path,
    on_outcome: Callable[[str, Outcome], None],
) -> None:
    """
    Run the sections that have no result yet.

    Args:
        sections (`list[Section]`): All of them, in their order.
        known (`dict`): Outcomes of an earlier run. One that is done is not run again.
        seconds (`float`): The time that all of them have together.
        logs (`Path`): The folder that gets what the processes print.
        on_outcome (`Callable`): Called with the name and the outcome of each section as soon as it ended.
    """
    waiting = [one for one in sections if known.get(one.name, {}).get("status") != DONE]
    for one in sections:
        if one not in waiting:
            say(f"{one.name}: its result is there (--overwrite runs it again)")
    began = time.monotonic()
    for number, section in enumerate(waiting):
        left = max(0.0, seconds - (time.monotonic() - began))
        limit = limit_of(section, waiting[number + 1 :], left)
        say(f"[{number + 1}/{len(waiting)}] {section.name}: at most {duration(limit)}; {duration(left)} left of all")
        outcome = run_section(section, limit, logs / f"{section.name}.log")
        say(
            f"    {outcome['status']} after {outcome['seconds']:.0f} s"
            + f": {outcome['reason']}" * bool(outcome["reason"])
        )
        on_outcome(section.name, outcome)


def run_section(section: Section, limit: float, log: Path) -> Outcome:
    """Run one section for at most so many seconds; return its status, the reason for it, its rows and its time."""
    began = time.monotonic()
    rows: list[Row] = []

    def outcome(status: str, reason: str = "") -> Outcome:
        return {"status": status, "reason": reason, "rows": rows, "seconds": time.monotonic() - began}

    place = "benchmarks.gpu.serving:serve"
    with Worker(section.name, place, (section.function, section.arguments), section.environment, log) as worker:
        try:
            while True:
                kind, content = worker.receive(max(0.0, began + limit - time.monotonic()))
                if kind == "row":
                    rows.append(content)
                else:
                    return outcome(*content)
        except WorkerFailed as error:
            if time.monotonic() - began >= limit:
                return outcome(LATE, f"it had {limit:.0f} s")
            return outcome(FAILED, str(error))
        finally:
            end_descendants(worker.process.pid)


def end_descendants(pid: int) -> None:
    """Kill what a process has started, also in sessions of their own, which a kill of its group does not reach."""
    try:
        started = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it ended by itself; those who read from it end as well
        return
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass  # it ended meanwhile
