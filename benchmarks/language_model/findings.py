"""
Which tokens of a recorded run have the high weights, and what the filter keeps: counts, shares and 95 % intervals.

A *heavy* token is one of the tenth of a window's trained tokens with the largest weights. Tokens of one answer
resemble each other, so that intervals are clustered by answer: those of a mean over answers of unequal length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fire_opd_trl.evaluation.inspect.figures import Tokens
from fire_opd_trl.evaluation.inspect.run import Records
from fire_opd_trl.evaluation.inspect.token_types import CONNECTIVE, TYPES
from fire_opd_trl.evaluation.statistics import t_quantile


FREQUENT = 20  # occurrences of a token that is listed
LISTED = 50
TENTH = 0.1
Z = 1.959964  # two-sided 95 % of a normal variable


def clustered_mean(values: np.ndarray, cluster: np.ndarray) -> list[float | None]:
    """
    Returns `mean, low, high` of tokens' values with a 95 % interval that is clustered by answer: the standard error of
    a ratio of sums over G answers, `sqrt(G / (G - 1) sum_g (sum_{i in g} (v_i - mean))^2) / n`, times t(G - 1).
    """
    mean = float(values.mean())
    _, group = np.unique(cluster, return_inverse=True)
    sums = np.bincount(group, values - mean)
    if len(sums) < 2:
        return [mean, None, None]
    half = (
        t_quantile(len(sums) - 1) * float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum())) / len(values)
    )
    return [mean, mean - half, mean + half]


def wilson(hits: int, of: int) -> list[float]:
    """Returns `share, low, high`: a share of independent rows with Wilson's 95 % interval."""
    share, factor = hits / of, Z * Z / of
    middle, half = share + factor / 2, Z * np.sqrt(share * (1 - share) / of + factor / of / 4)
    return [share, float((middle - half) / (1 + factor)), float((middle + half) / (1 + factor))]


def in_top_tenth(values: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns which tokens are among the tenth of their window with the largest values; ties go to the earlier one."""
    top = np.zeros(len(values), dtype=bool)
    for window in np.unique(step):
        places = np.flatnonzero(step == window)
        order = places[np.argsort(-values[places], kind="stable")]
        top[order[: max(1, round(TENTH * len(places)))]] = True
    return top


class Weighed:
    """The trained tokens of a run that was recorded whole, with the two factors of their weights."""

    def __init__(self, records: Records):
        self.tokens = tokens = Tokens(records)
        self.row, self.step, self.type, self.id = tokens.row, tokens.step, tokens.type, tokens.id
        self.weight, self.advantage = self.known("weight"), np.abs(self.known("advantage"))
        self.teacher, self.student = self.known("teacher_entropy"), self.known("student_entropy")
        self.gap = self.known("teacher_logp") - self.known("student_logp")
        self.tenth = np.minimum((10 * (tokens.place + 0.5) / tokens.length).astype(int), 9)
        self.confidence = 1 - self.of_largest(self.teacher)
        self.confusion = self.of_largest(self.student)
        self.heavy = in_top_tenth(self.weight, self.step)
        self.starts = starts_of_sentences(records)[tokens.chosen]

    def known(self, name: str) -> np.ndarray:
        """Returns a number of each token, which a run of `fire` has."""
        values = self.tokens.of(name)
        assert values is not None, f"the run has no {name}"
        return values

    def of_largest(self, entropy: np.ndarray) -> np.ndarray:
        """Returns an entropy as a share of the largest one in its window."""
        _, window = np.unique(self.step, return_inverse=True)
        largest = np.zeros(window.max() + 1)
        np.maximum.at(largest, window, entropy)
        return entropy / np.maximum(largest, 1e-6)[window]

    def mean_one(self, raw: np.ndarray) -> np.ndarray:
        """Returns weights divided by their mean inside each answer."""
        _, answer = np.unique(self.row, return_inverse=True)
        return raw / (np.bincount(answer, raw) / np.bincount(answer))[answer]


def starts_of_sentences(records: Records) -> np.ndarray:
    """Returns which tokens are the first of an answer, a line or a sentence, where it is chosen what comes next."""
    texts = records.vocabulary
    closes = np.array([text.rstrip(" ").endswith((".", "!", "?", "\n")) for text in texts], dtype=bool)[records.tokens]
    closes |= np.array([text.endswith("\n") for text in texts], dtype=bool)[records.tokens]
    after = np.concatenate([[True], closes[:-1]])
    after[records.starts[:-1]] = True
    in_words = np.array([any(character.isalnum() for character in text) for text in texts], dtype=bool)
    return after & in_words[records.tokens]


def findings(records: Records, task_of: Callable[[str], str]) -> dict[str, Any]:
    """Returns all that docs/language_model says of a run; `task_of` names the task of a prompt."""
    weighed = Weighed(records)
    return {
        "counts": counts(records, weighed),
        "types": by_type(weighed),
        "sentence_starts": by_start(weighed),
        "places": by_place(weighed),
        "tokens": heaviest(records, weighed),
        "factors": factors(weighed),
        "filter": kept_shares(records, task_of),
    }


def counts(records: Records, weighed: Weighed) -> dict[str, int]:
    """Returns how much was recorded."""
    return {
        "windows": len({row["step"] for row in records.rows}),
        "answers": len(records.rows),
        "kept answers": sum(row["kept"] for row in records.rows),
        "tokens": len(records.tokens),
        "trained tokens": len(weighed.weight),
    }


def of_group(weighed: Weighed, group: np.ndarray) -> dict[str, Any]:
    """
    Returns what is said of a group of tokens: how often they are heavy, and how often they would be if the ranking
    were by something else, or if only the place in the answer mattered (the shares of heavy tokens of their tenths).
    """
    by_tenth = np.array([weighed.heavy[weighed.tenth == tenth].mean() for tenth in range(10)])
    others = {
        "student_entropy": weighed.student,
        "teacher_entropy": weighed.teacher,
        "advantage": weighed.advantage,
        "confidence": weighed.confidence,
    }
    return {
        "tokens": int(group.sum()),
        "answers": len(np.unique(weighed.row[group])),
        "of all": float(group.mean()),
        "weight": clustered_mean(weighed.weight[group], weighed.row[group]),
        "heavy": clustered_mean(weighed.heavy[group].astype(float), weighed.row[group]),
        "of heavy": float(weighed.heavy[group].sum() / weighed.heavy.sum()),
        "top tenth by": {
            name: float(in_top_tenth(values, weighed.step)[group].mean()) for name, values in others.items()
        },
        "heavy by place alone": float(by_tenth[weighed.tenth[group]].mean()),
        "student entropy": float(weighed.student[group].mean()),
        "teacher entropy": float(weighed.teacher[group].mean()),
        "gap": float(weighed.gap[group].mean()),
        "of all weight": float(weighed.weight[group].sum() / weighed.weight.sum()),
        "of all advantage": float(weighed.advantage[group].sum() / weighed.advantage.sum()),
        "of all gaps": float(np.abs(weighed.gap[group]).sum() / np.abs(weighed.gap).sum()),
    }


def by_type(weighed: Weighed) -> dict[str, Any]:
    """Returns it for each type of token, the largest mean weight first: the paper's Figure 5, with counts."""
    groups = {TYPES[type]: of_group(weighed, weighed.type == type) for type in np.unique(weighed.type)}
    return dict(sorted(groups.items(), key=lambda item: -item[1]["weight"][0]))


def by_start(weighed: Weighed) -> dict[str, Any]:
    """Returns it for connectives and other tokens, at the start of a sentence and inside of it."""
    connective = weighed.type == CONNECTIVE
    groups = {
        "first of a sentence or line": weighed.starts,
        "of these: connectives": weighed.starts & connective,
        "of these: others": weighed.starts & ~connective,
        "inside of a sentence": ~weighed.starts,
        "of those: connectives": ~weighed.starts & connective,
        "of those: others": ~weighed.starts & ~connective,
    }
    return {name: of_group(weighed, group) for name, group in groups.items() if group.any()}


def by_place(weighed: Weighed) -> list[dict[str, Any]]:
    """Returns, for each tenth of the answers, the mean weight and the share of heavy tokens."""
    return [
        {
            "tenth": tenth + 1,
            "tokens": int((there := weighed.tenth == tenth).sum()),
            "weight": clustered_mean(weighed.weight[there], weighed.row[there]),
            "heavy": float(weighed.heavy[there].mean()),
            "student entropy": float(weighed.student[there].mean()),
        }
        for tenth in range(10)
        if (weighed.tenth == tenth).any()
    ]


def heaviest(records: Records, weighed: Weighed) -> list[dict[str, Any]]:
    """Returns the frequent tokens with the largest mean weights."""
    number = np.bincount(weighed.id, minlength=len(records.vocabulary))
    mean = np.bincount(weighed.id, weighed.weight, minlength=len(number)) / np.maximum(number, 1)
    chosen = sorted(np.flatnonzero(number >= FREQUENT), key=lambda id: -mean[id])[:LISTED]
    listed = []
    for id in chosen:
        group = weighed.id == id
        types, often = np.unique(weighed.type[group], return_counts=True)
        listed.append(
            {
                "token": records.vocabulary[id],
                "type": TYPES[types[often.argmax()]],
                "tokens": int(number[id]),
                "answers": len(np.unique(weighed.row[group])),
                "weight": clustered_mean(weighed.weight[group], weighed.row[group]),
                "heavy": float(weighed.heavy[group].mean()),
                "student entropy": float(weighed.student[group].mean()),
                "teacher entropy": float(weighed.teacher[group].mean()),
            }
        )
    return listed


def factors(weighed: Weighed) -> dict[str, Any]:
    """
    Returns what each factor of the weight `(1 + c)(1 + u)` adds, c the teacher's confidence and u the student's
    confusion. Inside an answer the mean is divided out, so that the parts of the variance are those of log weights
    less their mean in the answer; they add up to 1, and one of them can be negative.
    """
    c, u = weighed.confidence, weighed.confusion
    _, answer = np.unique(weighed.row, return_inverse=True)

    def inside(values: np.ndarray) -> np.ndarray:
        return values - (np.bincount(answer, values) / np.bincount(answer))[answer]

    log_c, log_u = inside(np.log1p(c)), inside(np.log1p(u))
    variance = np.square(log_c + log_u).mean()
    without = weighed.mean_one(1 + u)
    top = in_top_tenth(without, weighed.step)
    entropy = in_top_tenth(weighed.student, weighed.step)
    recomputed = weighed.mean_one((1 + c) * (1 + u))
    return {
        "confidence": [float(value) for value in np.quantile(c, [0.05, 0.25, 0.5, 0.75, 0.95])],
        "confusion": [float(value) for value in np.quantile(u, [0.05, 0.25, 0.5, 0.75, 0.95])],
        "weight": [float(value) for value in np.quantile(weighed.weight, [0.05, 0.25, 0.5, 0.75, 0.95, 1.0])],
        "confidence above 0.9": float((c > 0.9).mean()),
        "correlation of both": float(np.corrcoef(c, u)[0, 1]),
        "variance from confidence": float((log_c * (log_c + log_u)).mean() / variance),
        "variance from confusion": float((log_u * (log_c + log_u)).mean() / variance),
        "correlation with 1 + u": float(np.corrcoef(weighed.weight, without)[0, 1]),
        "mean change by confidence": float(np.abs(weighed.weight - without).mean()),
        "heavy also without confidence": float(top[weighed.heavy].mean()),
        "heavy also by student entropy": float(entropy[weighed.heavy].mean()),
        "largest difference to the recorded weight": float(np.abs(recomputed - weighed.weight).max()),
        "effective share of tokens": effective_share(weighed.weight),
        "effective share by confusion alone": effective_share(weighed.mean_one(u + 1e-9)),
        "confidence where the student is most confused": float(c[entropy].mean()),
        "confidence elsewhere": float(c[~entropy].mean()),
    }


def effective_share(weight: np.ndarray) -> float:
    """Returns `(sum w)^2 / (n sum w^2)`, the share of the tokens that effectively count."""
    return float(weight.sum() ** 2 / (len(weight) * np.square(weight).sum()))


def kept_shares(records: Records, task_of: Callable[[str], str]) -> dict[str, Any]:
    """Returns the share that the filter kept among answers of several kinds, with counts."""
    usable = [row for row in records.rows if row["dropped_because"] in (None, "filter")]
    kinds: dict[str, Callable[[dict], bool]] = {
        "all": lambda row: True,
        "finished": lambda row: row["finished"],
        "truncated": lambda row: row["truncated"],
        "looped": lambda row: row["looped"],
        "right": lambda row: row["reward"] == 1,
        "wrong": lambda row: row["reward"] == 0,
    }
    for task in sorted({task_of(row["prompt"]) for row in usable}):
        kinds[task] = partial(lambda row, task: task_of(row["prompt"]) == task, task=task)
    shares = {}
    for kind, holds in kinds.items():
        rows = [row for row in usable if holds(row)]
        if rows:
            kept = sum(row["kept"] for row in rows)
            shares[kind] = {"answers": len(rows), "kept": kept, "share": wilson(kept, len(rows))}
    return shares
