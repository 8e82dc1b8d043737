"""The folder of a run that nobody trained: its records, metrics and warnings, with every kind of row and of text."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fire_opd_trl.rollouts.records import NUMBERS, write_records


WORDS = [
    " the", " sum", " of", " 12", " and", " 7", " is", " so", " we", " have", " therefore", " wait", ",", ".", " =",
    " +", "\n", "\n\n", " but", " x", "1", "2", "3", " because", " check", ":", " (", ")", " ×", " é", " 数",
]  # fmt: skip
HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "<!--",
    "<img src=x onerror=alert(1)>",
    "\"quoted\" & 'single' {{ 7 * 7 }} ${x}",
    "\u202eright to left\u202c",
    "שלום עולם",
    "مرحبا",
    "<0xE2>",
    "<0x80>",
    "\ufffd",
    "👩‍👩‍👧‍👦",
    "\U0001f600",
    "\n",
    "\t",
    "\r\n",
    "\x00",
    "\x1b[31m",
    "\u2028",
    "",
    "<|im_end|>",
]
ENDS, LONG = "<|im_end|>", "x" * 100_000  # a token that ends an answer; a token of 100 kB
TEACHERS = ("math", "code")
# What can be said of a row; rows take these in turn, so that ten rows have one of each.
KINDS = (
    "kept", "kept", "filter", "truncated", "looped", "kept", "nonfinite_teacher", "empty", "hostile", "tools",
)  # fmt: skip
NULL_COLUMNS = {"opd": ("student_entropy", "teacher_entropy"), "fire": ()}


def invented_run(
    folder: str | Path,
    steps: int = 5,
    rows: int = 10,
    tokens: int = 60,
    seed: int = 0,
    *,
    method: str = "fire",
    teachers: tuple[str, ...] = TEACHERS,
    rewards: bool = True,
    long_token: bool = True,
) -> Path:
    """
    Writes `run.json`, `metrics.jsonl`, `watchdogs.jsonl` and `rollouts/*.parquet` into a folder, and returns it.

    Args:
        folder (`Path`): The folder of the run.
        steps (`int`): Logged steps; logged are the steps 1, 10, 20, ...
        rows (`int`): Trajectories a step.
        tokens (`int`): Longest completion.
        seed (`int`): Equal seeds give equal numbers.
        method (`str`): With `"opd"` both entropies are null, as in a run whose method does not read them.
        teachers (`tuple[str]`): Their names; a run with one teacher names it "teacher".
        rewards (`bool`): Whether there are rewards; else the column is null.
        long_token (`bool`): Whether one hostile row of the first step has a token of 100 kB.
    """
    random, folder = np.random.default_rng(seed), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    logged = [1, *range(10, 10 * steps, 10)]
    reads = ["teacher_logp_BT", "student_logp_BT"]
    reads += ["teacher_entropy_BT", "student_entropy_BT"] if method == "fire" else []
    about = {"method": method, "temperature": 1.0, "reads": reads}
    for number, step in enumerate(logged):
        written = [
            _row(random, row, tokens, number / max(1, steps - 1), method, teachers, rewards, long_token and not number)
            for row in range(rows)
        ]
        filtered = [row["score"] for row in written if row["dropped_because"] == "filter"]
        for row in written:
            row["threshold"] = max(filtered, default=None)
        write_records(folder, step, written, about)
    _write_json(folder / "run.json", _run(logged[-1], method, teachers))
    _write_lines(folder / "metrics.jsonl", [_metrics(random, step, logged[-1], tokens) for step in logged])
    _write_lines(folder / "watchdogs.jsonl", _warnings(logged))
    return folder


def _row(random, row: int, longest: int, progress: float, method, teachers, rewards, long_token) -> dict[str, Any]:
    """One trajectory; its numbers are as a real pair has them: most tokens are certain, few carry the advantage."""
    kind = KINDS[row % len(KINDS)]
    length = 1 if kind == "empty" else longest if kind in ("truncated", "looped") else max(2, longest // 2 + row % 7)
    texts = [str(text) for text in random.choice(WORDS, length)]
    if kind == "looped":
        texts = ([" and", " so", " on", ","] * length)[:length]
    if kind == "hostile":
        texts = (HOSTILE * length)[: max(length, len(HOSTILE))]
        texts[0] = LONG if long_token else texts[0]
    length, ends = len(texts), kind not in ("truncated", "looped")  # a loop goes on until it is cut
    if ends:
        texts[-1] = ENDS
    trains = np.ones(length, dtype=bool)
    if kind == "empty":
        trains[:] = False
    if kind == "tools":
        trains[length // 3 : length // 2] = False  # what a tool has answered
    student_entropy = random.exponential(0.5 - 0.2 * progress, length)
    teacher_entropy = random.exponential(0.3, length)
    student_logp = -random.exponential(0.4 - 0.2 * progress, length)
    teacher_logp = np.minimum(student_logp + random.normal(-0.1, 0.4 - 0.2 * progress, length), 0.0)
    if kind == "nonfinite_teacher":
        teacher_logp[length // 2], teacher_logp[length // 2 + 1 :] = math.nan, -math.inf
    kept = kind in ("kept", "truncated", "looped", "hostile", "tools")
    weight = (1 + 1 - teacher_entropy / teacher_entropy.max()) * (1 + student_entropy / student_entropy.max())
    weight = np.where(trains & kept, weight, 0.0)
    weight = weight * trains.sum() / max(weight.sum(), 1e-6)
    values = [student_logp, teacher_logp, student_entropy, teacher_entropy, weight]
    advantage = np.where(trains & kept, weight * (np.nan_to_num(teacher_logp, neginf=0.0) - student_logp), 0.0)
    score = float(teacher_logp[trains].mean()) if kind not in ("empty", "nonfinite_teacher") else None
    numbers = dict(zip(NUMBERS, [*values, advantage], strict=True))
    prompt = "".join(HOSTILE) if kind == "hostile" else f"What is {row} + {row + 7}?\n"
    return {
        "row": row,
        "group": row // 2,
        "prompt": f"<|im_start|>user\n{prompt}<|im_end|>\n",
        "prompt_ids": random.integers(0, 150_000, 12),
        "completion": "".join(texts).replace("<0xE2>", "\ufffd").replace("<0x80>", ""),
        "teacher": teachers[row % len(teachers)],
        "kept": kept,
        "dropped_because": None if kept else kind,
        "score": None if score is None else score - (1.0 if kind == "filter" else 0.0),
        "finished": ends and kind != "empty",
        "truncated": not ends,
        "looped": kind == "looped",
        "reward": float(random.random() < 0.5 + 0.3 * progress) if rewards else None,
        "token_ids": random.integers(0, 150_000, length),
        "tokens": texts,
        "trains": trains,
        **{name: None if name in NULL_COLUMNS[method] else values for name, values in numbers.items()},
    }


def _metrics(random, step: int, last: int, tokens: int) -> dict[str, Any]:
    """A line of metrics.jsonl: a run that learns, with some noise."""
    left, noise = 1 - step / (last + 1), lambda size=0.05: float(random.normal(0, size))
    shares = {"share/rollout": 0.5, "share/score": 0.15, "share/update": 0.3, "share/other": 0.05}
    return {
        "step": step,
        "loss": 0.05 * left + noise(0.003),
        "grad_norm": 0.4 + noise(),
        "learning_rate": 1e-5 * left,
        "entropy": 0.3 + 0.2 * left + noise(0.01),
        "reward": 0.5 + 0.3 * (1 - left) + noise(0.03),
        "completions/mean_length": 0.6 * tokens + noise(2.0),
        "completions/clipped_ratio": max(0.0, 0.2 + noise()),
        "fire/reverse_kl": 0.3 * left + 0.02 + noise(0.01),
        "fire/teacher_logp": -0.4 - 0.2 * left + noise(0.01),
        "fire/keep_ratio": 0.8,
        "fire/keep_ratio_finished": 0.86 + noise(0.03),
        "fire/keep_ratio_truncated": 0.67 + noise(0.1),
        "fire/keep_ratio_looped": 0.6 + noise(0.1),
        "fire/looped_ratio": max(0.0, 0.1 + noise(0.03)),
        "fire/terminal_gap": noise(0.1),
        "fire/weight_ess": 0.85 + noise(0.01),
        "fire/weight_max": 2.5 + noise(),
        "fire/advantage_abs": 0.3 * left + 0.05,
        "fire/advantage_top_decile": 0.55 + noise(0.02),
        "fire/student_entropy": 0.3 + 0.2 * left + noise(0.01),
        "fire/teacher_entropy": 0.3 + noise(0.01),
        "tokens_per_second": 5000 + noise(200.0),
        **shares,
    }


def _warnings(logged: list[int]) -> list[dict[str, Any]]:
    """Two lines of watchdogs.jsonl."""
    return [
        {
            "step": logged[len(logged) // 2],
            "watchdog": "truncated",
            "metric": "completions/clipped_ratio",
            "value": 0.41,
            "limit": 0.3,
            "says": "41 % of the answers were cut at the length limit.",
            "remedy": "Raise max_completion_length, or look at what the long answers say.",
        },
        {
            "step": logged[-1],
            "watchdog": "loops",
            "metric": "fire/keep_ratio_looped",
            "value": 1.0,
            "limit": 0.8,
            "says": "The filter keeps answers that repeat themselves, and <b>drops</b> others.",
            "remedy": "Look at the kept answers; lower drop_fraction.",
        },
    ]


def _run(last: int, method: str, teachers: tuple[str, ...]) -> dict[str, Any]:
    """What run.json says."""
    return {
        "status": "finished",
        "started": "2026-11-27T20:00:00+00:00",
        "ended": "2026-11-27T20:30:00+00:00",
        "steps": last,
        "max_steps": last,
        "resumed_at_step": None,
        "student": {"name": "org/student", "is": "LlamaForCausalLM, 135 M", "chats": True, "sees": False},
        "teachers": {
            name: {"name": f"org/{name}", "adapter": None, "is": "LlamaForCausalLM, 1.7 B"} for name in teachers
        },
        "data": {"rows": 1000, "hub": ["org/prompts"]},
        "method": {
            "name": method,
            "does": "FiRe-OPD: drop the trajectories that the teacher finds least likely, then weigh tokens.",
            "paper": "2606.02684",
            "stages": {"filter": "drop_lowest(drop_fraction=0.2)", "score": "mean_teacher_logp"},
        },
        "metrics": {},
        "command": "train.py --method fire",
        "git": {"commit": "0" * 40, "dirty": False},
        "versions": {"python": "3.11.2", "fire_opd_trl": "0.1.0", "torch": "2.13.0"},
        "world": {"processes": 1, "distributed": "NO", "device": "cpu"},
        "settings": {"method": method, "drop_fraction": 0.2, "log_rollouts": 16, "temperature": 1.0},
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
