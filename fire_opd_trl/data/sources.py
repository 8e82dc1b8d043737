"""Where the rows of prompts come from and go to: files and the Hub alike, as a table or as a stream."""

import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spelling import did_you_mean


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

ENDINGS = (".jsonl", ".parquet")  # of what is written; cells of CSV hold no messages
ON_THE_HUB = "hf://"
BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
DROPPED = "dropped"  # the column that says why a row is left out


def refuse_output(output: Path, overwrite: bool, *sources: str) -> None:
    """
    Refuse an output that cannot be written, or must not: over a source, say. The scripts call this before anything is
    loaded.
    """
    if not output.name.endswith(ENDINGS):
        raise ValueError(f"--output {output}: give a file that ends in {' or '.join(ENDINGS)}.")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder. Give the name of a file.")
    try:
        there = next(folder for folder in output.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"--output {output}: nothing can be written in its folder ({error.strerror}).") from error
    for source in sources:
        if output.exists() and output.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"--output {output} would replace a file that is read ({source}). Give another name.")
    if output.exists() and not overwrite:
        raise ValueError(f"--output {output} is there already. --overwrite replaces it; another name keeps both.")


def refuse_missing_file(name: str, option: str) -> None:
    """Refuse the name of a file that is not there. It imports nothing, so that a slip costs no seconds."""
    if name.endswith((*BUILDERS, ".tsv", ".gz", "/")) and not name.startswith(ON_THE_HUB) and not Path(name).exists():
        beside = Path(name).parent
        names = sorted(path.name for path in beside.iterdir()) if beside.is_dir() else []
        raise ValueError(
            f"{option}={name!r}: no such file or folder (the working directory is {os.getcwd()})."
            f"{did_you_mean(Path(name).name, names)}"
        )


def load_rows(
    name: str, option: str, *, config: str | None = None, split: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """
    Returns the rows of a split: of a file, of a folder, of a dataset on the Hub, or of one file there (`hf://...`).

    Args:
        name (`str`): The file, folder or dataset.
        option (`str`): How the user gave it, for errors.
        config (`str`, *optional*): The configuration of a dataset on the Hub.
        split (`str`, *optional*): By default `train`, or the only split there is.
        streaming (`bool`): Whether to read rows one after the other, without a copy in the cache.
    """
    from datasets import load_dataset

    from ..preflight.loading import load_named, reading, refuse_no_row

    if name.startswith(ON_THE_HUB):
        builder = BUILDERS.get(Path(name).suffix)
        if builder is None:
            raise ValueError(f"{option}={name!r}: a file on the Hub must end in one of {', '.join(BUILDERS)}.")
        try:
            splits = load_dataset(builder, data_files=name, streaming=streaming)
        except Exception as error:  # the Hub and the network have errors of their own
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{option}={name!r} could not be read from the Hub: {why}") from error
    else:
        with naming_the_line(name):
            splits = load_named(name, config, streaming, option)
    if split is None:
        split = "train" if "train" in splits else next(iter(splits))
        if len(splits) > 1 and split != "train":
            raise ValueError(f"{option}={name!r} has several splits: {', '.join(splits)}. Choose one with --split.")
    if split not in splits:
        raise ValueError(f"--split {split} is no split of {name}, which has: {', '.join(splits)}.")
    with naming_the_line(name), reading(name, option):
        refuse_no_row(splits[split])
    return splits[split]


@contextmanager
def naming_the_line(name: str) -> Iterator[None]:
    """Rows are read inside this: of JSON lines it is said which line is wrong, which `datasets` does not say."""
    from ..evaluation.evaluate.tasks import json_lines

    try:
        yield
    except ValueError:
        if name.endswith((".jsonl", ".jsonl.gz")) and Path(name).is_file():
            for _ in json_lines(Path(name)):
                pass
        raise


def table_of(rows: "Dataset | IterableDataset", most: int | None = None) -> "Dataset":
    """Returns rows as a table; of a stream those that it yields, of both the first `most`."""
    from datasets import Dataset

    if isinstance(rows, Dataset):
        return rows if most is None or most >= len(rows) else rows.select(range(most))
    first = list(itertools.islice(each_of(rows), most))
    return Dataset.from_list(first, on_mixed_types="use_json")  # as a file is read


def each_of(stream: "IterableDataset") -> Iterator[dict[str, Any]]:
    """Yields the rows of a stream. That a file cannot be read shows only here."""
    from datasets.exceptions import DatasetsError

    try:
        yield from stream
    except (OSError, ValueError, DatasetsError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the stream could not be read to its end: {why}") from error


def converted(
    rows: "Dataset | IterableDataset", convert: Callable[..., dict[str, Any]], features: "Features", **arguments: Any
) -> "Dataset":
    """
    Returns the row that `convert(row, **arguments)` makes of each row. A table goes through `datasets.map`, whose
    cache knows the same work again; a stream is read once, and only what is made of it is kept.
    """
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    if isinstance(rows, Dataset):
        # `convert` calls functions of this file, which `datasets` knows by name alone: another edition is other work.
        edition = Path(__file__).read_bytes()
        fingerprint = Hasher.hash([rows._fingerprint, edition, convert, sorted(arguments.items()), features])
        return rows.map(
            convert,
            fn_kwargs=arguments,
            remove_columns=rows.column_names,
            features=features,
            new_fingerprint=fingerprint,
        )
    made = [convert(row, **arguments) for row in each_of(rows)]
    # The columns are named, since there may be no row.
    return Dataset.from_dict({name: [row[name] for row in made] for name in features}, features=features)


def by_name(
    option: str, words: list[str], names: Iterable[str] | None = None, form: str = "give it as NAME=VALUE"
) -> dict[str, str]:
    """Returns what an option gives to each of some names, of the words `NAME=VALUE`; `form` refuses another form."""
    given: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise ValueError(f"{option} {word}: {form}.")
        if name in given:
            raise ValueError(f"{option} {word}: {name} is there twice.")
        if names is not None and name not in names:
            raise ValueError(f"{option} {word}: there is no source {name!r}. Sources: {', '.join(names)}.")
        given[name] = value
    return given


def refuse_unknown_columns(rows: "Dataset | IterableDataset", columns: Iterable[str], what: str) -> None:
    """Refuse columns that are not there. Of `reward_model.ground_truth` the first part is the column."""
    there = rows.column_names
    for column in columns:
        if there is not None and column.split(".")[0] not in there:
            hint = did_you_mean(column, there)
            raise ValueError(f"{what}: {column!r} is no column. It has: {', '.join(there)}.{hint}")


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a column, or inside of one: `reward_model.ground_truth`. `None` where there is none."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None  # a row of `datasets.map` is no dict
    return value


def as_messages(value: Any, instruction: str = "") -> list[dict[str, str]]:
    """
    Returns a prompt as messages: a text becomes the user's message; of messages those of the user stay, since the
    system's tell how to answer another way of training.

    Args:
        instruction (`str`): What is put behind the last message of the user.
    """
    if isinstance(value, list | tuple):
        texts = [one.get("content") for one in value if isinstance(one, dict) and one.get("role") == "user"]
    else:
        texts = [value]
    messages = [{"role": "user", "content": text.strip()} for text in texts if isinstance(text, str)]
    if messages and messages[-1]["content"] and instruction:
        messages[-1]["content"] += f"\n{instruction}"
    return messages


def without_dropped(table: "Dataset") -> tuple["Dataset", dict[str, int]]:
    """
    Returns the rows that are not marked in the column `dropped`, each prompt once, and why how many were left out.
    """
    why, seen = list(table[DROPPED]), set()
    for row, prompt in enumerate(table["prompt"]):
        key = repr(prompt)
        if not why[row] and key in seen:
            why[row] = "the prompt of an earlier row"
        seen.add(key)
    kept = [row for row, reason in enumerate(why) if not reason]
    counts = {reason: why.count(reason) for reason in dict.fromkeys(why) if reason}
    return table.select(kept).remove_columns(DROPPED), counts


def drawn(table: "Dataset", most: int | None, seed: int) -> "Dataset":
    """Returns `most` rows, drawn with a seed and in their old order; all of them where there are no more."""
    if most is None or most >= len(table):
        return table
    return table.select(sorted(random.Random(seed).sample(range(len(table)), most)))


def write_rows(table: "Dataset", output: Path, read: int, dropped: Mapping[str, int]) -> str:
    """
    Write rows as JSON lines or as Parquet, so that a reader sees all of them or none. No rows are refused.

    Args:
        read (`int`): How many rows were read.
        dropped (`Mapping`): Why how many of them were left out.

    Returns:
        `str`: What to print of it.
    """
    why = {reason: count for reason, count in dropped.items() if count}
    if not len(table):
        reasons = "; ".join(f"{reason} ({count})" for reason, count in why.items()) or "none"
        raise ValueError(f"--output {output} is not written: no row is left. Read: {read}. Left out: {reasons}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        if output.suffix == ".parquet":
            table.to_parquet(partial)
        else:
            table.to_json(partial, force_ascii=False)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    lines = [f"{output}: {len(table)} of {read} rows"]
    return "\n".join(lines + [f"  {count:>7} left out: {reason}" for reason, count in why.items()])
