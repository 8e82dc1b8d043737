"""Trajectories with numbers for each token, as parquet files: one row a trajectory, one file a recorded step."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


FORMAT = 1
NUMBERS = ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "weight", "advantage")
ROW_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("row", pa.int32()),
        ("group", pa.int32()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("teacher", pa.string()),
        ("kept", pa.bool_()),
        ("dropped_because", pa.string()),  # null where kept, else "filter", "empty" or "nonfinite_teacher"
        ("score", pa.float32()),
        ("threshold", pa.float32()),
        ("finished", pa.bool_()),
        ("truncated", pa.bool_()),
        ("looped", pa.bool_()),
        ("reward", pa.float32()),
    ]
)
TOKEN_SCHEMA = pa.schema(
    [
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.string())),
        ("trains", pa.list_(pa.bool_())),
        *((name, pa.list_(pa.float32())) for name in NUMBERS),
    ]
)
SCHEMA = pa.schema([*ROW_SCHEMA, *TOKEN_SCHEMA])
# Hardly a number occurs twice, so that a dictionary of them is of no use. With first all first bytes, then all second
# ones, zstd makes files of 60 % of the size in a quarter of the time.
ENCODING = {
    "compression": "zstd",
    "use_dictionary": ["prompt", "completion", "teacher", "token_ids.list.element", "tokens.list.element"],
    "use_byte_stream_split": [f"{name}.list.element" for name in NUMBERS],
}


def records_folder(run: str | Path) -> Path:
    """Returns where the recorded trajectories lie in the folder of a run."""
    return Path(run) / "rollouts"


def records_file(run: str | Path, step: int) -> Path:
    """Returns where the trajectories of a step lie in the folder of a run."""
    return records_folder(run) / f"rollouts_{step:05d}.parquet"


def recorded_steps(run: str | Path) -> dict[int, Path]:
    """Returns the recorded steps of a run, in their order, with their files."""
    files = records_folder(run).glob("rollouts_*.parquet")
    found = {int(name[1]): path for path in files if (name := re.fullmatch(r"rollouts_(\d+)\.parquet", path.name))}
    return dict(sorted(found.items()))


def encoded(step: int, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> pa.Buffer:
    """Returns the content of a file: the trajectories by column, see `SCHEMA`; a column that is absent is null."""
    columns = {field.name: [row.get(field.name) for row in rows] for field in SCHEMA}
    columns["step"] = [step] * len(rows)
    metadata = {"fire_opd": json.dumps({"format": FORMAT, **about})}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata(metadata)), buffer, **ENCODING)
    return buffer.getvalue()


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Writes a file so that a reader sees all of it or none, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # of a disk that was full


def write_records(run: str | Path, step: int, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> Path:
    """
    Writes all of the given trajectories of a step; whoever samples without training calls this.

    Args:
        run (`str` or `Path`): The folder of the run; they go into its folder `rollouts`.
        step (`int`): The step at which they are logged.
        rows (`list[dict]`): The trajectories by column, see `SCHEMA`; a column that is absent is null.
        about (`dict`): The method's name, the temperature, and the signals that the method reads: `method`,
            `temperature`, `reads`. They become metadata of the file.

    Returns:
        `Path`: The file.
    """
    path = records_file(run, step)
    write_whole(path, encoded(step, rows, about))
    return path


def write_bounded(
    run: str | Path, step: int, rows: Sequence[dict[str, Any]], about: dict[str, Any], limit: int
) -> int:
    """
    Writes trajectories of a step, and keeps all files of a run together at `limit` bytes. The trainer calls this on
    one rank.

    The first file and the last stay, so that one file may take half of the limit: if it would be larger, it gets fewer
    of the rows, evenly chosen. Of the other files those go that are nearest to their neighbours, one after the other.

    Returns:
        `int`: How many of the rows were written. If it is 0, there is no file.
    """
    content = encoded(step, rows, about)
    while rows and content.size > limit / 2:
        count = min(len(rows) - 1, int(len(rows) * limit / 2 / content.size))
        rows = [rows[place * len(rows) // count] for place in range(count)]
        content = encoded(step, rows, about)
    if rows:
        write_whole(records_file(run, step), content)
        thin_out(recorded_steps(run), limit)
    return len(rows)


def thin_out(files: dict[int, Path], limit: int) -> None:
    """Deletes files until the others have `limit` bytes together, and lie evenly over the steps."""
    sizes = {step: path.stat().st_size for step, path in files.items()}
    while sum(sizes.values()) > limit and len(sizes) > 2:
        steps = list(sizes)
        gap = {step: after - before for before, step, after in zip(steps, steps[1:], steps[2:], strict=False)}
        nearest = min(gap, key=gap.__getitem__)
        files[nearest].unlink()
        del sizes[nearest]


def begin_records(run: str | Path, step: int, moved_to: str) -> None:
    """
    The trainer calls this on one rank when a run starts or goes on, at a step. Files of later steps are deleted, since
    those steps are made again. Those of an earlier run in the same folder stay under another name.
    """
    if not step and recorded_steps(run):
        records_folder(run).rename(Path(run) / moved_to)
    for later, path in recorded_steps(run).items():
        if later > step:
            path.unlink()
