r"""
Whether an answer is right: math-verify, in worker processes that can be killed.

Answers are written by models, and some never return: `9^{9^{9^9}}` computes until the memory ends. A worker therefore
lives under limits that the kernel holds, whatever Python does inside:

    processor time      `limit` seconds for an answer (SIGPROF; not by the clock, so that a busy machine grades as an
                        idle one does), and ten times that by the clock
    memory              1 GiB of address space; a worker that has needed half of it is replaced, and its answer counts
                        as one that it died of
    length              an answer of more than `LONGEST` characters is not parsed at all, unless it is the gold answer
                        to the letter: what long answers hold in practice is no final answer, or one repeated in a loop

A worker that dies is replaced, and costs one answer. It ends when its pipe closes, also after a `kill -9` of this
process; one that computes at that moment meets its time limit. The death signal of Linux (PDEATHSIG) would not do: it
comes when the *thread* ends that started the worker.

math-verify is asked with its defaults (`strict`, no set for a relation in the gold answer, floats rounded to 6
places), with two exceptions. The whole answer must be LaTeX that it can read: by default it searches an unreadable
one for the last number, and then `\neq 5` is 5. And some ways to write are made readable first, see [`tidy`].
"""

import importlib.metadata
import importlib.util
import logging
import queue
import re
import resource
import signal
import threading
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from typing import Any

from ..workers import Worker, WorkerFailed


VERDICTS = ("right", "wrong", "no answer", "timeout", "died", "unparsed")
LONGEST = 1000
MEMORY = 1 << 30
READY_SECONDS = 120
CLOSED = "These graders are closed."
CLOCK = 10  # seconds by the clock for a second of processor time
RULES = 1  # of `tidy` and of what is asked of math-verify; a change of them is another grader

# What is read like its neighbour: spaces between groups of three digits, and signs that LaTeX has a command for.
SIGNS = str.maketrans(
    {
        "−": "-",
        "·": r"\cdot ",
        "÷": r"\div ",
        "°": r"^\circ ",
        "∞": r"\infty ",
        "\u00a0": " ",
        "\u202f": " ",
        "\0": " ",
    }
)
GROUPS = re.compile(r"(?<=\d)(?:\\[,!;: ]|[ ~])(?=\d{3}(?!\d))")
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
MIXED = re.compile(r"(?<![\d/.^_])(\d+) +(\d+)/(\d+)")
DOLLARS = re.compile(r"\$([^$]*)\$")
STOP = re.compile(r"(?<!\\)(?<!\\right)[.,;]$")
ABOUT = re.compile(r"^(?:\\(?:approx|sim|simeq)(?![A-Za-z])|[≈~])\s*")
WORDS = re.compile(
    r"\\(?:text|mathrm|textbf|textit|mbox)\{([^{}\\$]*[A-Za-z]{3}[^{}\\$]*)\}|([A-Za-z]{3,}(?:[ -][A-Za-z0-9]+)*)"
)
NUMBER = re.compile(r"(-?)(?:(\d*\.?\d+)(?:/(\d+))?|\\frac\{(-?\d+)\}\{(\d+)\})")


def exact(gold: tuple[str, ...], answer: str) -> str:
    """Returns the verdict on an answer of a task of kind `exact`: the same text as a gold answer, but for the ends."""
    return "right" if answer.strip() in {one.strip() for one in gold} else "wrong"


def describe(limit: float) -> dict[str, Any]:
    """Returns what results.json says of the grader. Whoever writes results calls it."""
    version = importlib.metadata.version("math-verify")
    return {"name": "math-verify", "version": version, "rules": RULES, "limit": limit, "longest": LONGEST}


def tidy(answer: str) -> str:
    r"""
    Returns an answer as math-verify reads it right: without a full stop at its end (`10.` is no number to it), without
    spaces between groups of three digits (`10 000` is 10 times 000, hence 0), mixed numbers as such (`1 1/2` is 1),
    without a leading `\approx`, and without characters that are no text.
    """
    answer = answer.encode("utf-8", "replace").decode().translate(SIGNS).strip()
    if found := DOLLARS.fullmatch(answer):
        answer = found[1].strip()
    answer = ABOUT.sub("", STOP.sub("", answer))
    return MIXED.sub(r"\1\\frac{\2}{\3}", GROUPS.sub("", answer))


def normalised(answer: str) -> str:
    r"""
    Returns the one text that answers share which differ in spelling alone: spaces, `\left`, `\dfrac`, `0.50` for
    `1/2`. Whoever counts equal answers calls it; longer ones than [`LONGEST`] stay as they are.
    """
    if len(answer) > LONGEST:
        return answer
    answer = re.sub(r"\\(?:left|right)(?![A-Za-z])\.?|\\[!,;:]|\$", " ", tidy(answer))
    answer = " ".join(re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", answer).split())
    if words := as_words(answer):
        return words
    spaces = r"(?<!\d) | (?!\d)"  # not those between two numbers
    answer = answer.replace(",", "") if THOUSANDS.fullmatch(answer) else re.sub(spaces, "", answer)
    if found := NUMBER.fullmatch(answer):
        sign, top, bottom, above, below = found.groups()
        with suppress(ZeroDivisionError):
            value = Fraction(top or above) / Fraction(bottom or below or 1)
            return str(-value if sign else value)
    return answer


def as_words(answer: str) -> str | None:
    """
    Returns the words of an answer that is made of words, in small letters; `None` for all others. To math-verify a
    word is a product of its letters, so that "seat" is right for "east".
    """
    found = WORDS.fullmatch(answer)
    return " ".join((found[1] or found[2]).casefold().split()).strip(" ().") if found else None


def serve(link, limit: float, memory: int) -> None:
    """What a worker runs: sends "ready", then the verdict on each (gold, answer), and whether it is worn out."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verdict(("1",), r"\frac{1}{2}+x")  # the first one builds the tables of the grammar
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    link.send("ready")
    while True:
        try:
            gold, answer = link.recv()
        except EOFError:  # the parent has gone
            return
        signal.setitimer(signal.ITIMER_PROF, limit)  # at its end the kernel kills this process
        found = verdict(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        worn = most_memory() > memory / 2
        # That memory ran out is an error which sympy and math-verify swallow: they then call an answer wrong.
        link.send((found if found == "right" or not worn else "died", worn))
        if worn:
            return


def most_memory() -> int:
    """Returns the most bytes that this process held. `getrusage` counts what its parent held before `exec`, too."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def verdict(gold: tuple[str, ...], answer: str) -> str:
    """Returns what math-verify says of one answer. It may take forever: only a worker calls it."""
    from math_verify import verify

    found = parsed(answer)
    if any(verify(parsed(one), found, timeout_seconds=None) for one in gold):
        return "right"
    return "wrong" if found else "unparsed"


def parsed(answer: str) -> list:
    """Returns the expression of sympy that math-verify reads in an answer, in a list; or an empty list."""
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    text = rf"\boxed{{{tidy(answer)}}}"
    found = parse(text, config, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None)
    return [one for one in found if not isinstance(one, str)]


class Graders:
    """
    Workers that grade answers, one each at a time. [`~Graders.grade`] may be called from many threads.

    Args:
        workers (`int`, *optional*, defaults to 2): Number of processes, of about 70 MB each.
        limit (`float`, *optional*, defaults to 5.0): Seconds of processor time for an answer.
        memory (`int`, *optional*, defaults to 1 GiB): Bytes of address space of a process.

    Attributes:
        counts (`Counter`): How often each verdict was given.
        replaced (`int`): Workers that were started for one that had died, ran out of time or needed much memory.
    """

    def __init__(self, workers: int = 2, limit: float = 5.0, memory: int = MEMORY):
        if workers < 1 or limit <= 0:
            raise ValueError(f"Grading needs a worker and some time: workers={workers}, limit={limit}.")
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("Grading needs math-verify: pip install fire-opd-trl[eval]", name="math_verify")
        self.limit, self.memory, self.counts, self.replaced = limit, memory, Counter[str](), 0
        self._lock, self._closed = threading.Lock(), False
        self._all: set[Worker] = set()
        self._places: queue.Queue[Worker | None] = queue.Queue()  # `None`: whoever takes it starts a worker
        self._workers = workers
        for _ in range(workers):
            self._places.put(None)

    def __enter__(self) -> "Graders":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. Whoever made the graders calls it; a call of [`~Graders.grade`] that still waits fails."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.process.kill()
        places = [self._places.get() for _ in range(self._workers)]  # the busy ones, too: they are dead
        for place in places:
            self._end(place)
            self._places.put(None)

    def grade(self, gold: tuple[str, ...], answer: str) -> str:
        """Returns the verdict on an answer: right if it is equal to any of the gold answers."""
        if not answer.strip():
            found = "no answer"
        elif exact(gold, answer) == "right":
            found = "right"
        elif len(answer.strip()) > LONGEST:
            found = "unparsed"
        elif all(words := {as_words(tidy(one)) for one in gold}):
            found = "right" if (as_words(tidy(answer)) or tidy(answer).casefold()) in words else "wrong"
        else:
            found = self._ask(gold, answer)
        with self._lock:
            self.counts[found] += 1
        return found

    def check(self, gold: str) -> str:
        """Returns what math-verify says of a gold answer to itself: "right", unless the gold answer is of no use."""
        return "right" if as_words(tidy(gold)) else self._ask((gold,), gold)

    def _ask(self, gold: tuple[str, ...], answer: str) -> str:
        worker, ready, worn = self._places.get(), False, True
        try:
            if worker is None or worker.process.poll() is not None:  # it died after its last answer
                self._end(worker)
                worker = self._start()
                worker.receive(READY_SECONDS)  # its imports are not part of the limit
            ready = True
            worker.send((gold, answer))
            found, worn = worker.receive(CLOCK * self.limit)
            return found
        except WorkerFailed:
            if self._closed:
                raise RuntimeError(CLOSED) from None
            if worker is None or not ready:
                raise
            return "timeout" if worker.process.poll() in (None, -signal.SIGPROF) else "died"
        finally:
            if worn:
                self._end(worker)
            self._places.put(None if worn else worker)

    def _start(self) -> Worker:
        # Sets of sympy are ordered by hashes in places: the same ones in every worker of every run.
        environment = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            worker = Worker("A grader", f"{__name__}:serve", (self.limit, self.memory), environment)
            self._all.add(worker)
            return worker

    def _end(self, worker: Worker | None) -> None:
        """Ends a worker whose place is free; the next answer there gets another."""
        if worker is not None:
            worker.kill()
            with self._lock:
                self._all.discard(worker)
                self.replaced += not self._closed
