"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # of a disk that was full, or a path that is a folder


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value so that a reader sees all of it or none."""
    write_whole(path, json.dumps(value, indent=1))
