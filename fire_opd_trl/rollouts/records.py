"""Trajectories with a number for each token, as parquet files: one row a trajectory, one file a recorded step."""

import json
import os
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


def records_file(run: str | Path, step: int) -> Path:
    """Returns where the trajectories of a step lie in the folder of a run."""
    return Path(run) / "rollouts" / f"rollouts_{step:05d}.parquet"


def write_records(run: str | Path, step: int, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> Path:
    """
    Writes the trajectories of a step, so that a reader sees all of the file or none, whenever the process ends. The
    trainer calls this on one rank; so does whoever samples without training.

    Args:
        run (`str` or `Path`): The folder of the run.
        step (`int`): The step at which they are logged.
        rows (`list[dict]`): The trajectories by column, see `SCHEMA`; a column that is absent is null.
        about (`dict`): The method's name, the temperature, and the signals that the method reads: `method`,
            `temperature`, `reads`. They become metadata of the file.

    Returns:
        `Path`: The file.
    """
    columns = {field.name: [row.get(field.name) for row in rows] for field in SCHEMA}
    columns["step"] = [step] * len(rows)
    metadata = {"fire_opd": json.dumps({"format": FORMAT, **about})}
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    path = records_file(run, step)
    write_bytes_whole(path, buffer.getvalue())
    return path


def write_bytes_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """`write_records` calls this: the file appears under its name when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
