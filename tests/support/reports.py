"""Invented reports of `fire-opd inspect`, in which all that the page can show is there."""

import math
import random

import numpy as np


SENTENCES = [
    "First, let me find the total of the two numbers. ",
    "So we have {a} + {b} = {c}. ",
    "Wait, that is not right, because I forgot to carry. ",
    "Therefore the sum must be {c}, and the rest follows.\n",
    "However, the question asks for half of it, ",
    "so I divide {c} by 2 and get {d}.\n\n",
    "Let x = {a}. Then 2x + {b} = {c}. ",
    "Hence x is {d}. ",
    "Now check: {a} times 2 is {c}. ",
    "We can write this as \\frac{{{a}}}{{{b}}}. ",
]
DECISIONS = {"First", "So", "Wait", "Therefore", "However", "so", "Let", "Then", "Hence", "Now", "because", "We"}


def pieces(text: str) -> list[str]:
    """Words with the space before them, single digits and signs: as tokenizers split."""
    tokens: list[str] = []
    for word in text.split(" "):
        start = " " if tokens and not tokens[-1].endswith("\n") else ""
        for character in word:
            glued = tokens and start == "" and character.isalpha() and tokens[-1][-1:].isalpha()
            if glued:
                tokens[-1] += character
            else:
                tokens.append(start + character)
            start = ""
    return [token for token in tokens if token]


def answer(rng: random.Random, length: int) -> list[str]:
    tokens: list[str] = []
    while len(tokens) < length:
        a, b = rng.randrange(10, 99), rng.randrange(10, 99)
        tokens += pieces(rng.choice(SENTENCES).format(a=a, b=b, c=a + b, d=(a + b) // 2))
    return tokens[:length]


def float32(values) -> list[float]:
    """As the numbers come out of a file of records."""
    return [float(value) for value in np.asarray(values, np.float32)]


def trajectory(rng: random.Random, step: int, row: int, length: int, quality: float, teacher: str = "teacher") -> dict:
    tokens = answer(rng, length)
    decides = np.array([token.strip() in DECISIONS for token in tokens])
    random_T = np.random.default_rng(rng.randrange(2**32))
    student_entropy = np.where(decides, random_T.gamma(6, 0.35, length), random_T.gamma(0.7, 0.35, length))
    teacher_entropy = np.where(decides, random_T.gamma(3, 0.3, length), random_T.gamma(0.5, 0.25, length))
    student_logp = -student_entropy * random_T.gamma(1.5, 0.6, length) - 1e-7
    slips = random_T.random(length) < 0.03 / quality
    teacher_logp = -teacher_entropy * random_T.gamma(1.5, 0.6, length) - np.where(
        slips, random_T.gamma(6, 0.9, length), 0
    )
    weight = (2 - teacher_entropy / teacher_entropy.max()) * (1 + student_entropy / student_entropy.max())
    return {
        "step": step,
        "row": row,
        "group": row // 2,
        "teacher": teacher,
        "prompt": f"<|user|>\nWhat is half of the sum of {row + 11} and {step + 13}?\n<|assistant|>\n",
        "kept": True,
        "dropped_because": None,
        "score": float(np.float32(teacher_logp.mean())),
        "threshold": None,
        "finished": rng.random() < 0.85,
        "truncated": False,
        "looped": rng.random() < 0.06,
        "reward": float(rng.random() < quality / 2),
        "tokens": [*tokens[:-1], "<|im_end|>"],
        "trains": [True] * length,
        "student_logp": float32(student_logp),
        "teacher_logp": float32(teacher_logp),
        "student_entropy": float32(student_entropy),
        "teacher_entropy": float32(teacher_entropy),
        "weight": float32(weight / weight.mean()),
        "advantage": float32(weight / weight.mean() * (teacher_logp - student_logp)),
    }


def filtered(rows: list[dict], share: float = 0.25) -> list[dict]:
    """The rows of one step, the lowest scores dropped."""
    dropped = sorted(rows, key=lambda one: one["score"])[: int(share * len(rows))]
    for one in rows:
        one["truncated"] = not one["finished"]
        one["threshold"] = dropped[-1]["score"] if dropped else None
        if one in dropped:
            zeros = [0.0] * len(one["tokens"])
            one.update(kept=False, dropped_because="filter", weight=zeros, advantage=zeros)
    return rows


def curve(key, title, unit, help, steps, values) -> dict:
    return {"key": key, "title": title, "unit": unit, "help": help, "steps": steps, "values": values}


def curves(rng: random.Random, slope: float) -> list[dict]:
    steps = list(range(10, 210, 10))
    rising = [0.5 + slope * (1 - math.exp(-step / 60)) + rng.gauss(0, 0.01) for step in steps]
    falling = [0.35 * math.exp(-slope * step / 40) + 0.03 + rng.gauss(0, 0.004) for step in steps]
    length = [210 - 0.3 * step + rng.gauss(0, 4) for step in steps]
    ess = [0.62 - step / 550 + rng.gauss(0, 0.01) for step in steps]
    return [
        curve("reward", "Reward", "", "The mean reward of all sampled answers.", steps, rising),
        curve(
            "fire/reverse_kl",
            "Distance to the teacher",
            "nats",
            "Reverse KL on the student's own tokens. It should fall.",
            steps,
            falling,
        ),
        curve(
            "completions/mean_length",
            "Length of answers",
            "tokens",
            "It should not collapse or grow without end.",
            steps,
            length,
        ),
        curve(
            "fire/weight_ess", "Effective sample size", "", "How evenly the weights are spread: 1 is even.", steps, ess
        ),
        curve(
            "fire/keep_ratio_looped",
            "Kept share of loops",
            "%",
            "Of answers that repeat themselves.",
            steps,
            [None if i % 4 == 1 else 40.0 for i in range(20)],
        ),
        *[curve(f"other/{i}", f"Another metric {i}", "", "Invented.", steps, falling) for i in range(9)],
    ]


def histogram(id, title, note, x, series, marks=()) -> dict:
    edges = np.histogram_bin_edges(np.concatenate([values for _, values in series]), 24)
    shown = [{"name": name, "values": np.histogram(values, edges)[0].tolist()} for name, values in series]
    axes = {"x": x, "y": "trajectories" if id == "scores" else "tokens"}
    return {
        "id": id,
        "kind": "histogram",
        "title": title,
        "note": note,
        **axes,
        "edges": edges.tolist(),
        "series": shown,
        "marks": list(marks),
    }


def kind_of(word: str) -> str:
    if not word:
        return "line breaks"
    if word in DECISIONS:
        return "words that decide"
    return "digits" if word.isdigit() else "other words" if word.isalpha() else "signs"


def figures(rows: list[dict]) -> list[dict]:
    kept, dropped = [r for r in rows if r["kept"]], [r for r in rows if not r["kept"]]
    of = {name: np.concatenate([r[name] for r in kept]) for name in ("weight", "student_entropy", "teacher_entropy")}
    position = [np.mean([r["weight"][i] for r in kept if len(r["tokens"]) > i]) for i in range(0, 120, 5)]
    kinds = {"words that decide": [], "digits": [], "signs": [], "line breaks": [], "other words": []}
    for row in kept:
        for token, weight in zip(row["tokens"], row["weight"], strict=True):
            kinds[kind_of(token.strip())].append(weight)
    counts, y_edges, x_edges = np.histogram2d(
        of["student_entropy"] / 5, 1 - of["teacher_entropy"] / 3, 20, [[0, 1], [0, 1]]
    )
    cut = max(r["score"] for r in dropped)
    return [
        histogram(
            "scores",
            "Scores of trajectories",
            "What is left of the cut was dropped.",
            "score, nats for each token",
            [("kept", [r["score"] for r in kept]), ("dropped", [r["score"] for r in dropped])],
            [{"x": cut, "label": "cut"}],
        ),
        histogram(
            "weights",
            "Weights of tokens",
            "Most tokens count less than 1, and a few count much more.",
            "weight",
            [("kept", of["weight"])],
        ),
        {
            "id": "weight_by_position",
            "kind": "line",
            "title": "Weight by position",
            "note": "A flat line says that the place in the answer does not matter.",
            "x": "position",
            "y": "mean weight",
            "x_values": list(range(0, 120, 5)),
            "series": [
                {"name": "mean weight", "values": [float(p) for p in position], "counts": [len(kept)] * len(position)}
            ],
        },
        {"id": "advantage", "kind": "none", "title": "Where the signal lies", "note": "There are no advantages."},
        {
            "id": "weight_by_type",
            "kind": "bars",
            "title": "Weight by kind of token",
            "note": "Words that decide how the answer goes on should stand above the others.",
            "x": "kind of token",
            "y": "mean weight",
            "labels": list(kinds),
            "series": [
                {
                    "name": "mean weight",
                    "values": [float(np.mean(v)) if v else None for v in kinds.values()],
                    "counts": [len(v) for v in kinds.values()],
                }
            ],
        },
        {
            "id": "density",
            "kind": "density",
            "title": "Confidence and confusion",
            "note": "Tokens at the top right count most: the student is unsure, and the teacher is sure.",
            "x": "teacher confidence",
            "y": "student confusion",
            "x_edges": x_edges.tolist(),
            "y_edges": y_edges.tolist(),
            "counts": counts.astype(int).tolist(),
        },
    ]


WARNINGS = [
    {
        "step": 160,
        "watchdog": "ess",
        "metric": "fire/weight_ess",
        "value": 0.28,
        "limit": 0.3,
        "says": "The effective sample size of the weights is 0.28.",
        "remedy": "Lower confidence and confusion.",
    },
    {
        "step": 180,
        "watchdog": "ess",
        "metric": "fire/weight_ess",
        "value": 0.26,
        "limit": 0.3,
        "says": "The effective sample size of the weights is 0.26.",
        "remedy": "Lower confidence and confusion, so that the weights lie closer together.",
    },
    {
        "step": 90,
        "watchdog": "truncated",
        "metric": "completions/clipped_ratio",
        "value": 0.34,
        "limit": 0.3,
        "says": "34 % of the answers were cut off.",
        "remedy": "Raise max_completion_length.",
    },
]


def run(
    seed: int = 0, name: str = "outputs/first", steps=(10, 50, 100, 150, 200), rows: int = 8, length=(40, 160), **more
) -> dict:
    rng = random.Random(seed)
    trajectories = []
    for step in steps:
        quality = 0.8 + step / 250 + seed / 5
        made = [
            trajectory(rng, step, row, rng.randint(*length), quality, ("math", "code")[row % 2]) for row in range(rows)
        ]
        trajectories += filtered(made)
    return {
        "name": name,
        "about": "What a teacher found of every token.",
        "trained": True,
        "facts": [
            ["student", "SmolLM2-135M"],
            ["teacher", "SmolLM2-135M, after fine-tuning"],
            ["method", "fire"],
            ["steps", "200"],
            ["status", "finished"],
        ],
        "watchdogs": WARNINGS if seed == 0 else [],
        "curves": curves(rng, 0.3 + seed / 10),
        "figures": figures(trajectories),
        "trajectories": trajectories,
        "left_out": 7,
        **more,
    }


def report(*runs: dict) -> dict:
    return {
        "title": "SmolLM2 learns sums",
        "version": "0.1.0",
        "made": "2026-11-27T21:00:00+00:00",
        "runs": list(runs),
    }
