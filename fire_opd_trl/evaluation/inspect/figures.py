"""
The figures of a report, over all recorded trajectories: how scores and weights are distributed, and which tokens have
the high weights (the paper's Figure 5). Numbers in, plain JSON values out; the page and the terminal draw them.
"""

from typing import Any

import numpy as np

from .run import Records
from .token_types import TYPES, types_of_ids
from .visible import token_label


Figure = dict[str, Any]

BINS = 40
CELLS = 24  # of the density, along each axis
PLACES = 60  # longest answer whose places are shown one by one, and about the number of bins of longer ones
HEAVIEST = 20  # tokens in the figure of the heaviest ones
OFTEN = 10  # times that a token must occur for its mean weight to say something
SMALL = 1e-5  # weights that differ by less are equal
SMALLEST_MAX = 1e-6  # as in stages/reweight.py, whose import is that of torch


class Tokens:
    """The tokens that the run trains on: of kept trajectories, inside the mask, where all numbers are finite."""

    def __init__(self, records: Records):
        self.records = records
        row_of_token = records.row_of_token
        kept_of_row = np.array([row["kept"] for row in records.rows], dtype=bool)
        finite = [np.isfinite(values) for values in records.numbers.values() if values is not None]
        self.chosen = np.logical_and.reduce([records.trains, kept_of_row[row_of_token], *finite])
        self.row = row_of_token[self.chosen]
        place = np.arange(len(row_of_token)) - records.starts[row_of_token]
        self.place = place[self.chosen]
        self.length = np.diff(records.starts)[self.row]
        self.id = records.tokens[self.chosen]
        self.step = records.of_rows("step")[self.row]
        self.type = types_of_ids(records.vocabulary, records.tokens, records.starts[:-1])[self.chosen]

    def of(self, name: str) -> np.ndarray | None:
        """Returns a number of each of these tokens; `None` if the run has no such number."""
        values = self.records.numbers[name]
        return None if values is None else values[self.chosen]


def figures_of(records: Records, score: str = "") -> list[Figure]:
    """
    Returns the figures of a run; those that it cannot have say so in a note.

    Args:
        records ([`Records`]): All recorded trajectories; without any there are no figures.
        score (`str`): The method's score, as run.json names it.
    """
    if not records.rows:
        return []
    tokens = Tokens(records)
    return [
        score_figure(records, score),
        weight_figure(tokens),
        *weight_by_place(tokens),
        weight_by_type(tokens),
        heaviest_tokens(tokens),
        advantage_by_type(tokens),
        density(tokens),
    ]


def without(id: str, title: str, note: str) -> Figure:
    """Returns a figure that there is nothing to draw of."""
    return {"id": id, "title": title, "note": note, "kind": "none"}


# Scores


def score_figure(records: Records, score: str) -> Figure:
    """Returns how the scores of kept and dropped trajectories are distributed, and where the cut lies."""
    title = "Scores of the trajectories, and the cut"
    name = {"mean_teacher_logp": "teacher's mean log-probability, nats a token", "": "score"}.get(score, score)
    scores, cuts, steps = (records.of_rows(column) for column in ("score", "threshold", "step"))
    kept = np.array([row["kept"] for row in records.rows], dtype=bool)
    known = np.isfinite(scores)
    if not known.any():
        return without("scores", title, "This method ranks no trajectories: there are no scores.")
    has_cut = known & np.isfinite(cuts)
    one_step = len(np.unique(steps[known])) == 1
    shown, cut = known, None
    if not has_cut.any():
        label, note = name, "Nothing was dropped by score: there is no cut."
    elif one_step:
        label, cut = name, float(cuts[has_cut][0])
        note = "Left of the cut the filter drops. Two hills with the cut between them would be the best to see."
    else:
        scores, shown = scores - cuts, has_cut
        label, cut = f"{name}, less the cut of its step", 0.0
        note = (
            "Every step has a cut of its own; here all lie at 0. Left of it the filter drops. If most dropped ones "
            "lie close to 0, it draws a line through answers that are alike, and chance decides."
        )
        if (uncut := int((known & ~has_cut).sum())) > 0:
            note += f" Left out: {uncut} of steps without a cut."
    if (kept & has_cut & (records.of_rows("score") < cuts - SMALL)).any():
        note += " There are kept ones left of it: the filter ranks each teacher's answers apart, or draws at random."
    unscored = len(scores) - int(known.sum())
    if unscored:
        note += f" Left out: {unscored} without a score, since they are empty or the teacher's values are not finite."
    edges = edges_of(scores[shown], at=cut)
    return {
        "id": "scores",
        "title": title,
        "note": note,
        "kind": "histogram",
        "x": label,
        "y": "trajectories",
        "edges": plain(edges),
        "series": [
            {"name": name, "values": counts_up_to(edges, scores[shown & rows])}
            for name, rows in (("kept", kept), ("dropped", ~kept))
        ],
        "marks": [] if cut is None else [{"x": cut, "label": "cut"}],
    }


# Weights


def weights_of(tokens: Tokens) -> tuple[np.ndarray, str]:
    """Returns the weights, and why there is nothing to see of them, if that is so."""
    weight = tokens.of("weight")
    if weight is None or not len(weight):
        return np.zeros(0), "There are no weights: no token of the recorded trajectories is trained on."
    equal = np.abs(weight - 1).max() < SMALL
    return weight, "Every token has the weight 1: this method does not reweight." if equal else ""


def weight_figure(tokens: Tokens) -> Figure:
    """Returns how the weights are distributed."""
    title = "Weights of the tokens"
    weight, nothing = weights_of(tokens)
    if nothing:
        return without("weights", title, nothing)
    edges = edges_of(np.append(weight, 0.0))
    top = np.sort(weight)[::-1][: max(1, len(weight) // 10)].sum() / weight.sum()
    return {
        "id": "weights",
        "title": title,
        "note": (
            f"The tenth of the tokens with the largest weights has {top:.0%} of all weight. Most tokens near 1 is "
            "sound; a long tail, with most tokens near 0, trains on few tokens."
        ),
        "kind": "histogram",
        "x": "weight",
        "y": "tokens",
        "edges": plain(edges),
        "series": [{"name": "trained tokens", "values": np.histogram(weight, edges)[0].tolist()}],
        "marks": [{"x": 1.0, "label": "no reweighting"}],
    }


def weight_by_place(tokens: Tokens) -> list[Figure]:
    """Returns the weights over the place in the answer: in tenths of its length, and in tokens from its beginning."""
    titles = ("Weight over the course of an answer", "Weight by place, in tokens")
    ids = ("weight_by_position", "weight_by_place")
    weight, nothing = weights_of(tokens)
    if nothing:
        return [without(id, title, nothing) for id, title in zip(ids, titles, strict=True)]
    tenth = np.minimum((10 * (tokens.place + 0.5) / tokens.length).astype(int), 9)
    width = -(-int(tokens.place.max() + 1) // PLACES)  # tokens in a bin
    notes = (
        "A flat line is sound. If it falls or rises steeply, the weights follow the place, not what the token says.",
        "Far to the right there are few answers left, and the line becomes noise: see the counts."
        + f" Each point stands for {width} places." * (width > 1),
    )
    return [
        {
            "id": id,
            "title": title,
            "note": note,
            "kind": "line",
            "x": label,
            "y": "weight",
            **quartiles_by(group, weight, place_of),
        }
        for id, title, note, label, group, place_of in (
            (ids[0], titles[0], notes[0], "place in the answer, %", tenth, lambda tenth: 10 * tenth + 5),
            (
                ids[1], titles[1], notes[1], "place, tokens from the beginning", tokens.place // width,
                lambda bin: 1 + bin * width + (width - 1) / 2,
            ),
        )
    ]  # fmt: skip


def quartiles_by(group: np.ndarray, values: np.ndarray, place_of: Any) -> dict[str, Any]:
    """Returns mean, median and quartiles of values in groups, as the lines of a figure."""
    order = np.argsort(group, kind="stable")
    groups, begins = np.unique(group[order], return_index=True)
    parts = np.split(values[order], begins[1:])
    counts = [len(part) for part in parts]
    lines = {
        "mean": [part.mean() for part in parts],
        "median": [np.quantile(part, 0.5) for part in parts],
        "lower quartile": [np.quantile(part, 0.25) for part in parts],
        "upper quartile": [np.quantile(part, 0.75) for part in parts],
    }
    return {
        "x_values": plain(place_of(groups)),
        "series": [{"name": name, "values": plain(line), "counts": counts} for name, line in lines.items()],
    }


def weight_by_type(tokens: Tokens) -> Figure:
    """Returns the mean weight of each type of token: the paper's Figure 5."""
    title = "Weight by type of token"
    weight, nothing = weights_of(tokens)
    if nothing:
        return without("weight_by_type", title, nothing)
    there = np.unique(tokens.type)
    parts = [weight[tokens.type == type] for type in there]
    return {
        "id": "weight_by_type",
        "title": title,
        "note": (
            "The paper's Figure 5. If it holds for this pair, connectives and decision words stand above 1, and what "
            "follows from the text before it, such as continuations of words, below. Bars of few tokens are chance."
        ),
        "kind": "bars",
        "x": "type of token",
        "y": "mean weight",
        "labels": [TYPES[type] for type in there],
        "series": [
            {"name": "mean weight", "values": plain([part.mean() for part in parts]), "counts": list(map(len, parts))}
        ],
    }


def heaviest_tokens(tokens: Tokens) -> Figure:
    """Returns the tokens with the largest mean weights, among those that are frequent enough to say so."""
    title = "Tokens with the largest weights"
    weight, nothing = weights_of(tokens)
    if nothing:
        return without("heaviest_tokens", title, nothing)
    counts = np.bincount(tokens.id, minlength=len(tokens.records.vocabulary))
    often = max(OFTEN, len(tokens.id) // 2000)
    sums = np.bincount(tokens.id, weight, minlength=len(counts))
    frequent = np.flatnonzero(counts >= often)
    if not len(frequent):
        return without("heaviest_tokens", title, f"No token occurs {often} times: there are too few records.")
    chosen = frequent[np.argsort(-sums[frequent] / counts[frequent], kind="stable")][:HEAVIEST]
    return {
        "id": "heaviest_tokens",
        "title": title,
        "note": f"Of the tokens that occur at least {often} times. Words that decide how an answer goes on are sound.",
        "kind": "bars",
        "x": "token",
        "y": "mean weight",
        "labels": [token_label(tokens.records.vocabulary[id]) for id in chosen],
        "series": [
            {"name": "mean weight", "values": plain(sums[chosen] / counts[chosen]), "counts": counts[chosen].tolist()}
        ],
    }


def advantage_by_type(tokens: Tokens) -> Figure:
    """Returns what each type of token has of all |advantage|, beside its share of the tokens."""
    title, advantage = "Where the training signal lies", tokens.of("advantage")
    size = None if advantage is None else np.abs(np.where(np.isfinite(advantage), advantage, 0.0))
    if size is None or not size.sum():
        return without("advantage_by_type", title, "There are no advantages: nothing pushes a token.")
    there = np.unique(tokens.type)
    counts = [int((tokens.type == type).sum()) for type in there]
    shares = [100 * size[tokens.type == type].sum() / size.sum() for type in there]
    return {
        "id": "advantage_by_type",
        "title": title,
        "note": (
            "A type whose part of all |advantage| is larger than its part of the tokens teaches more than others. If "
            "the end token or spaces have most of it, the student learns length and layout."
        ),
        "kind": "bars",
        "x": "type of token",
        "y": "share, %",
        "labels": [TYPES[type] for type in there],
        "series": [
            {"name": "of the tokens", "values": plain(100 * np.array(counts) / len(size)), "counts": counts},
            {"name": "of all |advantage|", "values": plain(shares), "counts": counts},
        ],
    }


def density(tokens: Tokens) -> Figure:
    """Returns how many tokens there are for each confidence of the teacher and confusion of the student."""
    title, teacher, student = "Confidence and confusion", tokens.of("teacher_entropy"), tokens.of("student_entropy")
    if teacher is None or student is None or not len(teacher):
        missing = "no token is trained on" if len(tokens.id) == 0 else "this method does not read both entropies"
        return without("density", title, f"Nothing to show: {missing}.")
    confidence = 1 - share_of_largest(teacher, tokens.step)
    confusion = share_of_largest(student, tokens.step)
    edges = np.linspace(0, 1, CELLS + 1)
    counts, _, _ = np.histogram2d(confusion, confidence, (edges, edges))
    return {
        "id": "density",
        "title": title,
        "note": (
            "FiRe weighs most what lies at the upper right: the teacher is sure, the student is not. If nearly all "
            "lies at the lower right, both are sure, and weights differ little. Each is relative to the largest "
            "entropy among the recorded survivors of its step, which is less than that of the whole window."
        ),
        "kind": "density",
        "x": "teacher's confidence",
        "y": "student's confusion",
        "x_edges": plain(edges),
        "y_edges": plain(edges),
        "counts": counts.astype(int).tolist(),
    }


def share_of_largest(entropy: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns `H / max H`, with the maximum over the tokens of the same step, as stages/reweight.py has it."""
    _, group = np.unique(step, return_inverse=True)
    largest = np.zeros(group.max() + 1)
    np.maximum.at(largest, group, entropy)
    return np.clip(entropy / np.maximum(largest, SMALLEST_MAX)[group], 0, 1)


# Numbers


def edges_of(values: np.ndarray, at: float | None = None) -> np.ndarray:
    """Returns the edges of a histogram's bins, from the least to the largest value; one of them is `at`, if given."""
    least, largest = values.min(), values.max()
    if at is None:
        return np.linspace(least, largest if largest > least else least + 1, BINS + 1)
    least, largest = min(least, at), max(largest, at)
    width = (largest - least) / (BINS - 2) or 1.0
    first, last = -np.ceil((at - least) / width) - 1, np.ceil((largest - at) / width)
    return at + width * np.arange(first, last + 1)


def counts_up_to(edges: np.ndarray, values: np.ndarray) -> list[int]:
    """Returns how many values each bin has, its upper edge included: the largest score that is dropped is the cut."""
    bins = np.searchsorted(edges, values, side="left") - 1
    return np.bincount(bins.clip(0, len(edges) - 2), minlength=len(edges) - 1).tolist()


def plain(values: Any, digits: int = 6) -> list[float | None]:
    """Returns numbers as JSON has them, with so many significant digits; what is not finite is null."""
    array = np.asarray(values, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(array))))
        rounded = np.where(np.isfinite(scale) & (scale > 0), np.round(array * scale) / scale, array)
    finite = np.isfinite(rounded)
    return (
        rounded.tolist()
        if finite.all()
        else [v if ok else None for v, ok in zip(rounded.tolist(), finite, strict=True)]
    )
