"""
What the metrics of many windows say of a run that is sick. Each watchdog compares one number with a limit, and says
what was seen and what to do. Plain arithmetic on plain numbers: a run can be examined while it trains, or afterwards.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


FEWEST = 10  # windows that a mean needs: with fewer, its standard error is itself a guess
RECENT = 20  # windows that a mean looks back on: long enough that one odd window is not a sickness
COUNTED = 200  # windows over which the filter's choices are counted: looped answers are rare
FEWEST_ROWS = 30  # looped or cut answers among them
FIRST = 5  # windows that are the beginning
ERRORS = 4.0  # standard errors beyond the limit; of ten windows, t(9), once in 640 looks at a run at the very limit
AGAIN = 500  # windows after which a sickness that lasts is named again
RISEN = 0.05  # more cut or looped answers than at the beginning, as a share of all: then length is no progress
SMALLEST_KL = 0.01  # nats a token: what happens to a KL below this is of no account
WINDOW = "fire/rows"  # a log that has it tells of windows
# The metrics whose beginning is remembered.
BEGINNINGS = {
    "completions/clipped_ratio",
    "completions/mean_length",
    "completions/mean_terminated_length",
    "fire/looped_ratio",
    "fire/reverse_kl",
    "entropy",
}


@dataclass(frozen=True)
class Mean:
    """The mean of a metric over windows, with its standard error: windows differ by more than chance among rows."""

    value: float
    error: float
    windows: int = 1

    @classmethod
    def of(cls, values: list[float]) -> "Mean":
        """The mean of at least two values."""
        count, mean = len(values), sum(values) / len(values)
        return cls(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count), count)

    @property
    def spread(self) -> float:
        """The standard deviation of a window."""
        return self.error * math.sqrt(self.windows)

    def over(self, other: "Mean") -> "Mean":
        """The ratio of two means, with its error to first order."""
        ratio, below = self.value / max(other.value, 1e-9), max(other.value, 1e-9)
        return Mean(ratio, math.hypot(self.error, ratio * other.error) / below)

    def above(self, other: "Mean") -> "Mean":
        """The difference of two means."""
        return Mean(self.value - other.value, math.hypot(self.error, other.error))


class Past:
    """
    What is remembered of a run: its last windows, how it began, and the lowest KL so far.

    Args:
        beginning (`dict`, *optional*): From [`Past.to_keep`] of a run that goes on. Its last windows are not taken
            over: what was changed before it goes on is judged by what comes after.
    """

    def __init__(self, beginning: Mapping[str, Any] | None = None):
        beginning = beginning or {}
        self.windows: deque[dict[str, float]] = deque(maxlen=COUNTED)
        self.first: dict[str, list[float]] = {
            name: list(values) for name, values in beginning.get("first", {}).items()
        }
        self.lowest_kl = Mean(*beginning["lowest_kl"]) if beginning.get("lowest_kl") else None

    def to_keep(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it."""
        lowest = self.lowest_kl
        return {"first": self.first, "lowest_kl": [lowest.value, lowest.error, lowest.windows] if lowest else None}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Remember a window by those of its metrics that are numbers."""
        window = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if not window.get("fire/kept_rows"):  # nothing has trained, and means over nothing are 0
            window = {name: value for name, value in window.items() if name.startswith("completions/")}
        if window.get("completions/clipped_ratio") == 1.0:  # so is the length of answers that ended
            window.pop("completions/mean_terminated_length", None)
        self.windows.append(window)
        for name in BEGINNINGS & set(window):
            if len(first := self.first.setdefault(name, [])) < FIRST:
                first.append(window[name])
        kl = self.recent("fire/reverse_kl", RECENT)
        if kl is not None and (self.lowest_kl is None or kl.value < self.lowest_kl.value):
            self.lowest_kl = kl

    def last(self, name: str) -> list[float]:
        """A metric in those of the last windows that have it."""
        return [window[name] for window in list(self.windows)[-RECENT:] if name in window]

    def recent(self, name: str, fewest: int = FEWEST) -> Mean | None:
        """The mean of a metric over the last windows, unless too few have it."""
        values = self.last(name)
        return Mean.of(values) if len(values) >= fewest else None

    def beginnings(self, name: str, counts: bool = False) -> list[Mean]:
        """
        How a metric began: its first window, which no update had touched yet, with the spread of the last ones; and
        the mean of the first windows, which is more certain unless the run fell ill in them. Where the first window is
        lower, its spread is less by the root of that, as for sums over few tokens; but not if it `counts` answers,
        since none among 16 does not mean none at all.
        """
        now, first = self.recent(name), self.first.get(name, [])
        if now is None or not first:
            return []
        lower = min(1.0, max(first[0], 0.0) / now.value) if now.value > 0 and not counts else 1.0
        return [Mean(first[0], math.sqrt(lower) * now.spread), *([Mean.of(first)] if len(first) == FIRST else [])]


@dataclass(frozen=True)
class Sight:
    """
    What a watchdog sees.

    Args:
        number (`Mean`): What is compared with the limit.
        facts (`dict[str, float]`): Further numbers for the sentence.
        metric (`str`, *optional*): The metric that it is about, where the watchdog has several.
    """

    number: Mean
    facts: dict[str, float] = field(default_factory=dict)
    metric: str | None = None


@dataclass(frozen=True)
class Watchdog:
    """
    One sickness.

    Args:
        name (`str`): Its name in settings, logs and files.
        metric (`str`): The metric to look at.
        limit (`float`): Beyond it a run is sick.
        above (`bool`): Whether beyond is above.
        largest (`float`): The largest limit that makes sense; the smallest is 0.
        reason (`str`): Why the limit is what it is.
        look (`Callable`): `(past) -> list[Sight]`, of which the surest counts; none while too little is known.
        says (`str`): What was seen, to be filled with `value`, `limit` and the facts.
        remedy (`str`): What to do.
    """

    name: str
    metric: str
    limit: float
    above: bool
    largest: float
    reason: str
    look: Callable[[Past], list[Sight]]
    says: str
    remedy: str


@dataclass(frozen=True)
class Alarm:
    """A line of watchdogs.jsonl: which watchdog saw what, in which step, and what to do."""

    step: int
    watchdog: str
    metric: str
    value: float
    limit: float
    says: str
    remedy: str


# What each of them looks at


def falls(values: list[float]) -> bool:
    """Whether the later half of some values is lower in the mean."""
    half = len(values) // 2
    return sum(values[half:]) / (len(values) - half) < sum(values[:half]) / half - 1e-9


def cut_answers(past: Past) -> list[Sight]:
    """
    The share of answers that were cut at the length limit. While it falls, the student is learning to end, and nothing
    is said.
    """
    values = past.last("completions/clipped_ratio")
    return [] if len(values) < FEWEST or falls(values) else [Sight(Mean.of(values))]


def shorter_answers(past: Past) -> list[Sight]:
    """
    The length of answers that ended by themselves, as a share of that at the beginning. All answers would not do: a
    student that learns to end gets shorter in health.
    """
    now, thens = past.recent(name := "completions/mean_terminated_length"), past.beginnings(name)
    return [Sight(now.over(then), {"now": now.value, "then": then.value}) for then in thens if now]


def longer_answers(past: Past) -> list[Sight]:
    """
    The length of answers over that at the beginning, if more of them are cut or looped now. Else they grew because the
    teacher's are long.
    """
    now, thens = past.recent(name := "completions/mean_length"), past.beginnings(name)
    rise = {"cut": 0.0, "looped": 0.0}
    for kind, share in (("cut", "completions/clipped_ratio"), ("looped", "fire/looped_ratio")):
        late = past.recent(share)
        for early in past.beginnings(share, counts=True):
            if late and (more := late.above(early)).value > RISEN + ERRORS * more.error:
                rise[kind] = more.value
    grown = any(rise.values())
    return [
        Sight(now.over(then) if grown else Mean(1.0, 0.0), {"now": now.value, "then": then.value, **rise})
        for then in thens
        if now
    ]


def kept_beyond_finished(past: Past, kind: str, ratio: str) -> list[Sight]:
    """
    By how much more of the looped (or cut) answers the filter has kept than of those that ended. They are compared
    inside each window, since a filter ranks one window, and the counts of many windows add up, since one window of 16
    rows says nothing. Of a window with n such rows and m that ended, of which the shares k and f are kept, k - f is
    the excess, and counts n m / (n + m) (Mantel and Haenszel's weights). The error is that of a weighted mean over
    windows, or, if that is more, what a filter that chooses at random among the rows of each window would have: where
    there is one such row a window, thirty windows that all keep it differ by nothing, and say little all the same.
    """
    counts = []
    for window in past.windows:
        kept, finished = window.get(f"fire/keep_ratio_{kind}"), window.get("fire/keep_ratio_finished")
        if kept is None or finished is None or ratio not in window or window.get("fire/keep_ratio", 1.0) == 1.0:
            continue
        n, m = window[ratio] * window["fire/rows"], window["fire/rows"] * (1 - window["completions/clipped_ratio"])
        if n and m:
            counts.append((n, m, kept, finished))
    rows = sum(n for n, *_ in counts)
    if len(counts) < FEWEST or rows < FEWEST_ROWS:
        return []
    weights = [n * m / (n + m) for n, m, _, _ in counts]
    whole, excesses = sum(weights), [kept - finished for _, _, kept, finished in counts]
    more = sum(weight * excess for weight, excess in zip(weights, excesses, strict=True)) / whole
    squares = sum((weight * (excess - more)) ** 2 for weight, excess in zip(weights, excesses, strict=True))
    by_chance = sum(chance(*count) for count in counts)
    error = math.sqrt(max(squares * len(counts) / (len(counts) - 1), by_chance)) / whole
    share = sum(weight * kept for weight, (_, _, kept, _) in zip(weights, counts, strict=True)) / whole
    facts = {"kept": share, "kept_finished": share - more, "rows": rows, "looped": float(kind == "looped")}
    return [Sight(Mean(more, error, len(counts)), facts, f"fire/keep_ratio_{kind}")]


def chance(n: float, m: float, kept: float, finished: float) -> float:
    """
    The variance of `(k - f) n m / (n + m)` where as many of n + m rows are kept as here, but at random: that of the
    hypergeometric distribution, as in Mantel and Haenszel's test.
    """
    share = (kept * n + finished * m) / (n + m)
    return n * m * share * (1 - share) / max(n + m - 1, 1.0)


def kept_loops(past: Past) -> list[Sight]:
    """Looped answers, and those that were cut, as most loops are."""
    looped = kept_beyond_finished(past, "looped", "fire/looped_ratio")
    return looped + kept_beyond_finished(past, "truncated", "completions/clipped_ratio")


def effective_tokens(past: Past) -> list[Sight]:
    """The effective share of the tokens that have any weight: a method may choose few, and weigh those evenly."""
    ess, kept, active = "fire/weight_ess", "fire/kept_token_ratio", "fire/active_token_ratio"
    values = [
        window[ess] * window[kept] / window[active]
        for window in list(past.windows)[-RECENT:]
        if window.get(ess) and window.get(kept) and window.get(active)
    ]
    return [Sight(Mean.of(values))] if len(values) >= FEWEST else []


def risen_kl(past: Past) -> list[Sight]:
    """
    By how much the KL to the teacher lies above its lowest mean over as many windows, or above the first window. The
    measure is the geometric mean of that level and of the beginning: of a KL that fell from 0.5 to 0.02, a rise to 0.2
    has lost most of what was learned, though 0.2 is less than half of the beginning.
    """
    now, begun, lowest = past.recent("fire/reverse_kl", RECENT), past.beginnings("fire/reverse_kl"), past.lowest_kl
    sights: list[Sight] = []
    if now is None or lowest is None:
        return sights
    for low in (lowest, *begun[:1]):
        rise, least = now.above(low), max(low.value, SMALLEST_KL)
        scale = max(least, math.sqrt(least * max(begun[0].value, least)))
        more = max(now.value, 0.0) - max(low.value, 0.0)  # the estimate is below 0 where answers are not its own
        facts = {"now": now.value, "lowest": low.value, "then": begun[0].value}
        sights.append(Sight(Mean(more / scale, rise.error / scale), facts))
    return sights


def remaining_entropy(past: Past) -> list[Sight]:
    """
    The student's entropy over that of the teacher at the same tokens or, if less, over its own at the beginning. A
    student that becomes as sure as its teacher is in health; where the method reads no entropy of the teacher, the
    beginning alone is the measure.
    """
    now, teacher = past.recent("entropy"), past.recent("fire/teacher_entropy")
    sights: list[Sight] = []
    if now is None:
        return sights
    for then in past.beginnings("entropy"):
        least = teacher if teacher and teacher.value < then.value else then
        facts = {"now": now.value, "then": then.value, "of_teacher": float(least is teacher)}
        sights.append(Sight(now.over(least), facts))
    return sights


def unwanted_ends(past: Past) -> list[Sight]:
    """
    By how many nats the student finds the tokens with which it ends likelier than the teacher does, in the last
    windows where any answer ended. While that falls, the student is learning when to end, and nothing is said.
    """
    gaps = [-window["fire/terminal_gap"] for window in past.windows if "fire/terminal_gap" in window][-RECENT:]
    return [] if len(gaps) < RECENT or falls(gaps) else [Sight(Mean.of(gaps))]


WATCHDOGS = {
    dog.name: dog
    for dog in (
        Watchdog(
            name="truncated",
            metric="completions/clipped_ratio",
            limit=0.3,
            above=True,
            largest=1.0,
            reason="Of an answer that was cut nobody learns how it ends, and it costs the full length. Users report "
            "runs that went over into endless answers from such shares on.",
            look=cut_answers,
            says="{value:.0%} of the answers were cut at max_completion_length (limit {limit:.0%}).",
            remedy="Look at some with log_completions. If they are sound, raise max_completion_length. If they "
            "repeat themselves or go on after the answer, see that the student knows its end token "
            "(generation_config, chat template), or begin with a student that ends its answers.",
        ),
        Watchdog(
            name="length_collapse",
            metric="completions/mean_terminated_length",
            limit=1 / 3,
            above=False,
            largest=1.0,
            reason="Where a student is to become brief, published runs leave 41 % of its length or more (arXiv "
            "2603.05433); a third is less than that.",
            look=shorter_answers,
            says="answers that end by themselves have {now:.0f} tokens, which is {value:.0%} of the {then:.0f} at "
            "the beginning (limit {limit:.0%}).",
            remedy="Look at some with log_completions. If they are no answers any more, go back to an earlier "
            "checkpoint: the teacher ends too early (its chat template and end token), or learning_rate is too high.",
        ),
        Watchdog(
            name="length_inflation",
            metric="completions/mean_length",
            limit=1.5,
            above=True,
            largest=1000.0,
            reason="A teacher with long answers makes them grow in health. Growth by half, with 5 % more of all "
            "answers cut or looped than at the beginning, is the early sign of a student that no longer ends.",
            look=longer_answers,
            says="answers have {now:.0f} tokens, {value:.1f} times the {then:.0f} at the beginning (limit "
            "{limit:g}), and more of them are cut ({cut:+.0%}) or end in a loop ({looped:+.0%}).",
            remedy="Look at some with log_completions. If they loop, go back to an earlier checkpoint with a lower "
            "learning_rate, and compare the end tokens of student and teacher. If they are sound, raise "
            "max_completion_length.",
        ),
        Watchdog(
            name="loops_kept",
            metric="fire/keep_ratio_looped",
            limit=0.05,
            above=True,
            largest=1.0,
            reason="A filter that pays no heed to loops keeps as many of them as of other answers. Five points more "
            "is a filter that likes them, as a mean log-probability can: what repeats itself is easy to predict.",
            look=kept_loops,
            says="the filter kept {kept:.0%} of {rows:.0f} answers that {what}, and {kept_finished:.0%} of those "
            "that ended by themselves, over {windows} windows (limit {limit:+.0%}).",
            remedy="Set drop_fraction to 0, or take a method without this filter, such as opd. "
            "mask_truncated_completions keeps cut answers out of the filter and of training.",
        ),
        Watchdog(
            name="weights",
            metric="fire/weight_ess",
            limit=0.3,
            above=False,
            largest=1.0,
            reason="The variance of the gradient grows as one over this share: below 0.3 a batch is worth less than "
            "a third of its tokens. FiRe-OPD's own weights, products of two factors between 1 and 2, stay above 0.64.",
            look=effective_tokens,
            says="of the tokens that have a weight, {value:.0%} effectively count (limit {limit:.0%}): a few carry "
            "the update.",
            remedy="Lower what sharpens the weights (confidence, confusion, or the arguments that `fire-opd methods "
            "NAME` lists), look at fire/weight_max, or take more answers for each step.",
        ),
        Watchdog(
            name="kl_rising",
            metric="fire/reverse_kl",
            limit=0.5,
            above=True,
            largest=1000.0,
            reason="It is what training lowers. In health it rises by up to a fifth of where it began in the first "
            "ten steps (the demo), and from one batch of prompts to another; half of the geometric mean of its lowest "
            "level and its beginning, over twenty windows, is more than that.",
            look=risen_kl,
            says="KL(student || teacher) is {now:.3g} nats a token over the last {recent} windows; it has been "
            "{lowest:.3g}, and began at {then:.3g} (limit: a rise by {limit:.0%} of the geometric mean of both).",
            remedy="Go back to the checkpoint with the lowest KL, with a lower learning_rate or max_grad_norm. With "
            "vLLM see fire/sampling_gap; where other prompts came with it, look at them.",
        ),
        Watchdog(
            name="entropy_collapse",
            metric="entropy",
            limit=0.2,
            above=False,
            largest=1.0,
            reason="Reverse KL makes a student surer than it was, and somewhat surer than its teacher. With a fifth "
            "of the entropy of either, it samples nearly the same answer again and again, and finds little to learn "
            "from.",
            look=remaining_entropy,
            says="the student's entropy is {now:.2g} nats a token, which is {value:.0%} of {whose} (limit "
            "{limit:.0%}).",
            remedy="If the reward or fire/reverse_kl still improves and the teacher is as sure, it is no sickness. "
            "Else lower learning_rate, sample more different prompts, or take a method with forward KL "
            "(docs/methods.md).",
        ),
        Watchdog(
            name="end_tokens",
            metric="fire/terminal_gap",
            limit=3.0,
            above=True,
            largest=1000.0,
            reason="At 3 nats the teacher gives the token that ends an answer a twentieth of the student's "
            "probability, in the geometric mean. A wrong end token costs ten nats and more, and stays; a student "
            "that has yet to learn when to end begins there too, but its gap shrinks.",
            look=unwanted_ends,
            says="the teacher finds the tokens with which the student ends its answers less likely by {value:.1f} "
            "nats (limit {limit:g}): they do not agree when, or with which token, an answer ends.",
            remedy="Compare the end tokens and chat templates of both: `fire-opd preflight` shows a prompt as each "
            "sees it, and teacher_chat_template gives the teacher its own.",
        ),
    )
}


class Watchdogs:
    """
    All watchdogs of a run.

    Args:
        limits (`dict[str, float | None]`, *optional*): Other limits by name; `None` switches a watchdog off.
        beginning (`dict`, *optional*): What a checkpoint holds of the run that goes on.
    """

    def __init__(self, limits: Mapping[str, float | None] | None = None, beginning: Mapping[str, Any] | None = None):
        self.limits = {**{name: dog.limit for name, dog in WATCHDOGS.items()}, **(limits or {})}
        self.past = Past(beginning)
        self.windows = 0
        self.warned: dict[str, int] = {}  # of each that sees a sickness, the window in which it last said so
        self.sick: dict[str, bool] = {}  # of each that ever saw one, whether it still does

    def observe(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """
        Returns what the watchdogs say after one more window. One gives alarm where its number is beyond the limit by
        more than noise explains, and is calm where it is not beyond the limit at all; in between it stays as it was.
        """
        self.past.add(metrics)
        self.windows += 1
        alarms = []
        for name, limit in self.limits.items():
            dog, sights = WATCHDOGS[name], WATCHDOGS[name].look(self.past) if limit is not None else []
            if limit is None or not sights:
                continue
            side = 1.0 if dog.above else -1.0
            sure = [side * (sight.number.value - limit) - ERRORS * sight.number.error for sight in sights]
            sight = sights[sure.index(max(sure))]
            if side * (sight.number.value - limit) <= 0:
                self.warned.pop(name, None)
                self.sick |= {name: False} if name in self.sick else {}
            elif max(sure) > 0 and self.windows - self.warned.get(name, -AGAIN) >= AGAIN:
                self.warned[name], self.sick[name] = self.windows, True
                alarms.append(alarm(step, dog, limit, sight))
        return alarms


def alarm(step: int, dog: Watchdog, limit: float, sight: Sight) -> Alarm:
    """Returns what a watchdog says of what it sees."""
    words = {
        "what": "end in a loop" if sight.facts.get("looped") else "were cut",
        "whose": "the teacher's there" if sight.facts.get("of_teacher") else "what it was at the beginning",
        "windows": sight.number.windows,
        "recent": RECENT,
    }
    says = dog.says.format(value=sight.number.value, limit=limit, **{**sight.facts, **words})
    return Alarm(step, dog.name, sight.metric or dog.metric, sight.number.value, limit, says, dog.remedy)


def examine(history: Iterable[Mapping[str, Any]], limits: Mapping[str, float | None] | None = None) -> list[Alarm]:
    """
    Returns what the watchdogs say of a run by its logs, the lines of metrics.jsonl, for a run that had none. Each log
    counts as one window, so that with a log every ten steps they need ten times as many steps.
    """
    dogs = Watchdogs(limits)
    return [alarm for log in history if WINDOW in log for alarm in dogs.observe(int(log["step"]), log)]
