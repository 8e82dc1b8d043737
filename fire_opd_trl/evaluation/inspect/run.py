"""Reads the folder of a run, which may still be under way, into a `Run`; what is no run is refused in a sentence."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...rollouts.records import FORMAT, NUMBERS, ROW_SCHEMA, recorded_steps
from ...spelling import did_you_mean


ROW = tuple(name for name in ROW_SCHEMA.names if name not in ("prompt_ids", "completion"))
WARNING = {"watchdog": "watchdog", "metric": "", "value": None, "limit": None, "remedy": ""}  # what a line may lack
FEWEST_LOGS = 10  # of which watchdogs say anything, as FEWEST in stages/watchdogs.py
HOW_TO_RECORD = (
    "log_rollouts=16 in the settings of a training records 16 at each log, with every number of every token."
)


@dataclass
class Records:
    """
    The recorded trajectories of a run, in the order of steps: what is said of each, and arrays of all their tokens,
    one trajectory after the other.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)  # the columns of ROW
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))  # one more than there are rows
    vocabulary: list[str] = field(default_factory=list)  # distinct texts of tokens
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # as numbers into `vocabulary`
    trains: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    numbers: dict[str, np.ndarray | None] = field(default_factory=lambda: dict.fromkeys(NUMBERS))  # None: not read
    has: dict[str, np.ndarray] = field(default_factory=dict)  # of each trajectory, whether it has these numbers

    @property
    def row_of_token(self) -> np.ndarray:
        """Returns the number of each token's trajectory."""
        return np.repeat(np.arange(len(self.rows)), np.diff(self.starts))

    def of_rows(self, column: str, dtype: Any = float) -> np.ndarray:
        """Returns a column, with NaN where there is no number."""
        return np.array([np.nan if row[column] is None else row[column] for row in self.rows], dtype=dtype)


@dataclass
class Run:
    """What a run has left in its folder so far."""

    folder: Path
    about: dict[str, Any]  # run.json
    logs: list[dict[str, Any]]  # metrics.jsonl
    warnings: list[dict[str, Any]]  # watchdogs.jsonl
    records: Records
    lacks: list[str]  # what is missing or cannot be read, and what to do, a sentence each
    unwatched: str = ""  # why the watchdogs could say nothing, if that is so


def read_run(folder: Path) -> Run:
    """
    Returns what lies in the folder of a run; the report calls it. Lines and files that are cut are left out, since the
    run may still be under way.
    """
    refuse_what_is_no_run(folder)
    lacks: list[str] = []
    about = {}
    if (folder / "run.json").is_file():
        try:
            about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except ValueError:
            lacks.append("run.json cannot be read: what ran is not known.")
    else:
        lacks.append("There is no run.json: what ran is not known.")
    logs = [line for line in json_lines(folder / "metrics.jsonl", lacks) if "step" in line]
    if not logs:
        lacks.append("There is no metrics.jsonl with a log yet (logging_steps says how often one is written).")
    said = [line for line in json_lines(folder / "watchdogs.jsonl", lacks) if "step" in line and "says" in line]
    if not said and "watchdogs" not in about:
        said = alarms_of(logs)
    warnings = [{**WARNING, **line} for line in said]
    records = read_records(recorded_steps(folder).values(), lacks)
    if not records.rows:
        lacks.append(f"No trajectories were recorded. {HOW_TO_RECORD}")
    return Run(folder, about, logs, warnings, records, lacks, "" if warnings else unwatched(about, logs))


def unwatched(about: dict[str, Any], logs: list[dict[str, Any]]) -> str:
    """Returns why the watchdogs could say nothing of a run, so that their silence is not taken for health."""
    if "asked" in about:
        return "Nothing was trained, so that they had nothing to watch."
    if (about.get("settings") or {}).get("on_sick") == "ignore":
        return "They were switched off (on_sick='ignore')."
    steps = logs[-1]["step"] if "watchdogs" in about and logs else len(logs)  # who had none is judged by its logs
    return f"It is too early: they need {FEWEST_LOGS} windows." if steps < FEWEST_LOGS else ""


def alarms_of(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the watchdogs would have said of a run that had none, by its logs."""
    if len(logs) < FEWEST_LOGS:
        return []
    from ...stages.watchdogs import examine  # torch, seconds; runs that had watchdogs need none of it

    return [asdict(alarm) for alarm in examine(logs)]


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything that a run leaves."""
    return any((folder / name).is_file() for name in ("run.json", "metrics.jsonl")) or bool(recorded_steps(folder))


def refuse_what_is_no_run(folder: Path) -> None:
    """Raises a `ValueError` that says what a path is, and which folder was probably meant."""
    if folder.is_dir() and is_run(folder):
        return
    what = "it holds no run.json, no metrics.jsonl and no rollouts/*.parquet"
    if not folder.exists():
        what = "there is no such folder"
    elif not folder.is_dir():
        what = "it is a file, and the folder of a run is needed"
    raise ValueError(f"{folder} is no run: {what}.{what_was_meant(folder)}")


def what_was_meant(folder: Path) -> str:
    """Returns ` Did you mean 'outputs/run'?`, for a path that is no run, or how to get a run."""
    above = [parent for parent in list(folder.absolute().parents)[:2] if is_run(parent)]
    inside = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    if above:
        return f" Did you mean '{shortest(above[0])}'?"
    if inside:
        return f" Did you mean {' or '.join(repr(str(path)) for path in inside[:3])}?"
    beside = {str(path): path for path in folder.parent.iterdir()} if folder.parent.is_dir() else {}
    close = did_you_mean(str(folder), [name for name, path in beside.items() if path.is_dir() and is_run(path)])
    return close or " Give the output_dir of a training, such as outputs/demo after `fire-opd demo`."


def shortest(path: Path) -> Path:
    """Returns a path as seen from the working directory, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def json_lines(path: Path, lacks: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file that are whole. Only the last one may be cut; others are counted in `lacks`."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    broken = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            broken.append(number)
            continue
        if isinstance(line, dict):
            yield line
    if broken and broken != [len(lines)]:
        lines_of = f"{len(broken)} line{'s' * (len(broken) != 1)}"
        lacks.append(f"{path.name}: {lines_of} cannot be read, the first is line {broken[0]}.")


# Records


def read_records(files: Iterable[Path], lacks: list[str]) -> Records:
    """Returns the trajectories of files, in the order of steps and rows; a file that is cut is named in `lacks`."""
    parts, columns = [], (*ROW, "tokens", "trains", *NUMBERS)
    for path in files:
        try:
            file = pq.ParquetFile(path)
            names, about = (
                file.schema_arrow.names,
                json.loads((file.schema_arrow.metadata or {}).get(b"fire_opd", b"{}")),
            )
            missing = [name for name in columns if name not in names]
            table = None if missing else file.read(columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            lacks.append(f"rollouts/{path.name} cannot be read: {str(error).splitlines()[0]}")
            continue
        if missing or about.get("format", FORMAT) > FORMAT:
            what = f"has no column {missing[0]}" if missing else f"has format {about['format']}, and {FORMAT} is known"
            raise ValueError(f"{path} {what}: it was written by another version of fire_opd_trl. Use that version.")
        if table is not None and len(table):
            parts.append(table.sort_by("row"))
    return joined(parts) if parts else Records()


def joined(tables: list[pa.Table]) -> Records:
    """Returns tables as one record."""
    ids_of: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    lengths, tokens, trains = [], [], []
    for table in tables:
        rows += table.select(ROW).to_pylist()
        texts = table["tokens"].combine_chunks()
        distinct = texts.flatten().dictionary_encode()
        ids = [ids_of.setdefault(text, len(ids_of)) for text in distinct.dictionary.to_pylist()]
        lengths.append(array_of(texts.value_lengths()).astype(np.int64))
        tokens.append(np.array(ids, dtype=np.int64)[array_of(distinct.indices)])
        trains.append(array_of(table["trains"].combine_chunks().flatten()).astype(bool))
    numbers, has = {}, {}
    for name in NUMBERS:
        columns = [table[name].combine_chunks() for table in tables]
        has[name] = np.concatenate([array_of(column.is_valid()) for column in columns])
        values = np.full(sum(map(len, tokens)), np.nan, dtype=np.float32)
        values[np.repeat(has[name], np.concatenate(lengths))] = np.concatenate(
            [array_of(c.flatten()) for c in columns]
        )
        numbers[name] = values if has[name].any() else None
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Records(rows, starts, list(ids_of), np.concatenate(tokens), np.concatenate(trains), numbers, has)


def array_of(column: pa.Array) -> np.ndarray:
    """Returns a column as numpy has it."""
    return column.to_numpy(zero_copy_only=False)
