"""The files of a comparison: one for each run, written whole or not at all. Runs of other settings are refused."""

import json
import re
from pathlib import Path
from typing import Any

from .presets import Arm


Run = dict[str, Any]


class OtherSettings(ValueError):
    """A run exists, but it was made with other settings."""


def run_path(folder: Path, arm: Arm, seed: int) -> Path:
    """Where the run of an arm and a seed is kept."""
    return folder / "runs" / f"{re.sub(r'[^a-z0-9.=_-]+', '-', arm.name.lower())}-seed{seed}.json"


def error_path(folder: Path, arm: Arm, seed: int) -> Path:
    """Where the traceback of a failed run is kept."""
    return run_path(folder, arm, seed).with_suffix(".error.txt")


def finished_run(folder: Path, arm: Arm, seed: int, settings: dict[str, Any] | None = None) -> Run | None:
    """
    The run of an arm and a seed, if there is one.

    Args:
        folder (`Path`): The output folder of the comparison.
        arm ([`Arm`]): The arm.
        seed (`int`): The seed.
        settings (`dict`, *optional*): The settings that all arms share. By default the run may have any.

    Returns:
        `dict` or `None`: The run. One that was made with other settings is refused.
    """
    path = run_path(folder, arm, seed)
    if not path.is_file():
        return None
    run = json.loads(path.read_text(encoding="utf-8"))
    asked = {**arm.trained_with, **(settings if settings is not None else run["settings"])}
    asked = json.loads(json.dumps(asked))  # as it would be read: tuples are lists, keys are text
    found = {**{name: run["arm"][name] for name in arm.trained_with}, **run["settings"]}
    if differing := [name for name in asked if asked[name] != found.get(name)]:
        name = differing[0]
        raise OtherSettings(
            f"{path} was made with {name}={found.get(name)!r}, and {asked[name]!r} is asked for. Give another "
            "--output_dir, or --overwrite to throw the old runs away."
        )
    return run


def one_settings(runs: list[Run]) -> dict[str, Any]:
    """Return the settings that all runs share; refuse runs that do not share them, which no table can compare."""
    first = runs[0]
    for run in runs:
        if run["settings"] != first["settings"]:
            name = next(key for key in first["settings"] if run["settings"].get(key) != first["settings"][key])
            values = [f"{r['settings'].get(name)!r} in {r['arm']['name']} seed {r['seed']}" for r in (first, run)]
            raise OtherSettings(
                f"{name} is {values[0]} and {values[1]}: one table needs one. Give another --output_dir, or "
                "--overwrite to run them again."
            )
    return first["settings"]
