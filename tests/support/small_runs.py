"""Runs of a few tokens, whose numbers a person can check."""

import json
from pathlib import Path
from typing import Any

from fire_opd_trl.rollouts.records import NUMBERS, write_records


def trajectory(tokens: list[str], kept: bool = True, **others: Any) -> dict[str, Any]:
    """One recorded trajectory: all its numbers are 1.0, and it has ended by itself, unless `others` says otherwise."""
    return {
        "row": 0,
        "group": 0,
        "prompt": "Why?",
        "completion": "".join(tokens),
        "teacher": "teacher",
        "kept": kept,
        "dropped_because": None if kept else "filter",
        "score": -0.5 if kept else -2.0,
        "threshold": -1.0,
        "finished": True,
        "truncated": False,
        "looped": False,
        "reward": None,
        "tokens": tokens,
        "trains": [True] * len(tokens),
        **{name: [1.0] * len(tokens) for name in NUMBERS},
        **others,
    }


def small_run(
    folder: Path,
    steps: dict[int, list[dict[str, Any]]],
    logs: list[dict[str, Any]] | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Writes a run: its trajectories by step, its logs, and what run.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    for step, rows in steps.items():
        numbered = [{**row, "row": number} for number, row in enumerate(rows)]
        write_records(folder, step, numbered, {"method": "fire", "temperature": 1.0, "reads": []})
    logs = [{"step": 1, "loss": 0.5}] if logs is None else logs
    (folder / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    (folder / "run.json").write_text(json.dumps({} if about is None else about))
    return folder
