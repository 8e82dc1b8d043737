"""The dataset of a command line: where it lies, which column is the prompt, which rows are used or held out."""

import glob
import operator
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from numbers import Number
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from accelerate import PartialState
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from datasets.exceptions import DatasetsError
from trl import DatasetMixtureConfig, get_dataset

from ..refusals import WrongSettings
from ..teachers.vocabulary import offline
from .findings import Checked


KINDS = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".arrow": "arrow", ".txt": "text",
}  # fmt: skip
PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")
NO_ROWS = "it has no rows. Give one with a row for each prompt."
SAID_OF_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")  # by `datasets`, and of Parquet
UTF8 = "Save it as UTF-8, for example with: iconv -f LATIN1 -t UTF-8 OLD > NEW"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
CONDITION = re.compile(r"\s*(?P<column>[^\s=!<>]+)\s*(?P<compare>==|!=|>=|<=|>|<)\s*(?P<value>.+?)\s*")
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
SPLIT_SEED = 0  # of the rows held out: the same for every seed of a training, and when it resumes


def load_prompts(script_args: Any, mixture: DatasetMixtureConfig, evaluated: bool, checked: Checked) -> tuple:
    """
    The script calls this for the rows of training and evaluation; what they are not is refused.

    Args:
        script_args ([`FiReOPDScriptArguments`]): The dataset, its splits, and what becomes of its columns and rows.
        mixture ([`~trl.DatasetMixtureConfig`]): `datasets` of the YAML file, and `test_split_size`.
        evaluated (`bool`): Whether the training evaluates.
        checked ([`Checked`]): The findings, to which is added how many rows are left.

    Returns:
        `tuple`: The rows to train on, and those to evaluate on or `None`.
    """
    name, size = script_args.dataset_name, mixture.test_split_size
    if not name and not mixture.datasets:
        raise ValueError(
            "There is no dataset. Set --dataset_name to a dataset id, a local folder or a file (JSONL, Parquet, CSV), "
            "or list `datasets:` in the YAML file of --config."
        )
    if name and mixture.datasets:
        raise ValueError(f"Two datasets: dataset_name={name!r} and the list `datasets`. Remove one of them.")
    if size is not None and not evaluated:
        raise ValueError(
            f"test_split_size={size} holds rows out for evaluation, and there is none (eval_strategy='no'). Set "
            "eval_strategy=steps and eval_steps, or remove it."
        )
    if name:
        splits = load_named(name, script_args.dataset_config, script_args.dataset_streaming)
    else:
        splits = get_dataset(replace(mixture, test_split_size=None))
    wanted = {"dataset_train_split": script_args.dataset_train_split}
    if evaluated and size is None:
        wanted["dataset_test_split"] = script_args.dataset_test_split
    for field, split in wanted.items():
        if split not in splits:
            other = ", or hold rows of the training out (test_split_size=0.1)" * (field == "dataset_test_split")
            raise ValueError(
                f"{field}={split!r} is no split of the dataset. It has: {', '.join(splits)}. Use one of them{other}."
            )
    parts = [prepared(splits[split], script_args, checked) for split in wanted.values()]
    with reading(name or "datasets"):  # whether any row of a stream can be read, and fulfils the conditions
        for split, rows in zip(wanted.values(), parts, strict=True):
            refuse_no_row(splits[split])
            if not isinstance(rows, Dataset) and next(iter(rows), None) is None:
                raise WrongSettings(f"dataset_filter={script_args.dataset_filter} leaves no row.")
    if size is not None:
        parts = hold_out(parts[0], size)
    return (parts[0], parts[1] if evaluated else None)


def load_named(
    name: str, config: str | None, streaming: bool, called: str = "dataset_name"
) -> DatasetDict | IterableDatasetDict:
    """
    Returns the splits of a file, of a folder, or of a dataset on the Hub. A file that is missing is not an id. Errors
    name the argument as it is `called`.
    """
    path = Path(name)
    config = None if config in ("null", "none", "None") else config  # the command line has no other words for none
    if name and path.exists():  # an empty name would be this folder
        with reading(name, called):
            builder = builder_of(Path(os.path.abspath(path)))  # a link may have an ending that its file has not
            splits = load_dataset(
                **builder, **{} if "data_files" in builder else {"name": config}, streaming=streaming
            )
            for rows in splits.values():
                refuse_unreadable_rows(rows)
        return splits
    if not HUB_ID.fullmatch(name) or path.suffix.lower() in (*KINDS, *PACKED):
        raise ValueError(
            f"{called}={name!r}: no such file or folder (the working directory is {os.getcwd()}). Give a file "
            "(JSONL, Parquet, CSV), a folder, or a dataset id."
        )
    try:
        return load_dataset(name, config, streaming=streaming)
    except (OSError, DatasetsError) as error:
        here = " HF_HUB_OFFLINE is set: only files, folders and datasets in the cache can be loaded." * offline()
        raise ValueError(
            f"{called}={name!r} could not be loaded: it is neither a file or folder here nor a dataset that can "
            f"be reached on the Hub.{here}"
        ) from error


@contextmanager
def reading(name: str, called: str = "dataset_name") -> Iterator[None]:
    """Rows are read inside this: what is wrong with them is said in a sentence, without what `datasets` logs of it."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except WrongSettings:  # of a condition, and not of the rows
        raise
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ or error if isinstance(error, DatasetsError) else error
        why = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if any(said in why for said in SAID_OF_NO_ROWS):
            why = NO_ROWS
        if isinstance(cause, UnicodeDecodeError):
            why += f". {UTF8}"
        raise ValueError(f"{called}={name!r} could not be read: {why}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def builder_of(path: Path) -> dict[str, Any]:
    """Returns the arguments of `load_dataset` for a file or a folder. An ending that it does not know is refused."""
    if path.is_dir():
        refuse_folder(path)
        return {"path": str(path)}
    if not path.stat().st_size:
        raise ValueError(NO_ROWS)
    kind = kind_of(path)
    if path.suffix.lower() == ".zip":
        kind = str(path.parent)  # what is inside shows only when it is open
    if kind is None:
        raise ValueError(f"its ending {path.suffix!r} is not known. Rename the file to one of {', '.join(KINDS)}.")
    return {
        **({"path": "csv", "sep": "\t"} if kind == "tsv" else {"path": kind}),
        "data_files": glob.escape(str(path)),
    }


def kind_of(file: Path) -> str | None:
    """Returns of which kind a file is by its ending, which may be followed by that of a packed file."""
    endings = [ending.lower() for ending in file.suffixes if ending.lower() not in PACKED]
    return KINDS.get(endings[-1]) if endings else None


def refuse_folder(folder: Path) -> None:
    """
    Refuse a folder of which `datasets` would read nothing, or only a part: of the files that it finds for its splits,
    those of one kind. Files that it does not look for, and what stands beside pictures, may be of any kind.
    """
    if glob.has_magic(str(folder)):
        raise ValueError("a folder whose path holds one of [ * ? is read as a pattern. Rename it, or give a file.")
    card = folder / "README.md"
    if card.is_file() and re.search(r"data_(files|dir):", card.read_text(encoding="utf-8", errors="replace")):
        return  # it says which files are meant
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except EmptyDatasetError:
        return  # `datasets` says so
    kinds = {kind_of(Path(file)): Path(file).name for files in found.values() for file in files}
    kinds.pop("text", None)
    if len(kinds) > 1 and None not in kinds:
        raise ValueError(
            f"it holds files of several kinds ({', '.join(sorted(kinds.values()))}), of which only one would be read. "
            "Give one file, or a folder with one kind of files, or say in its README.md which `data_files` are meant."
        )


def refuse_unreadable_rows(rows: Dataset | IterableDataset) -> None:
    """Refuse text that is not UTF-8, which would fail only where it is used. A stream is read later."""
    for column in rows.column_names if isinstance(rows, Dataset) else ():
        try:
            rows.data.column(column).validate(full=True)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"a text in the column {column!r} is not UTF-8. {UTF8}") from error


def refuse_no_row(rows: Dataset | IterableDataset) -> None:
    """Refuse a stream without a first row. It is called inside [`reading`]."""
    if not isinstance(rows, Dataset) and next(iter(rows), None) is None:
        raise ValueError(NO_ROWS)


def prepared(dataset: Any, script_args: Any, checked: Checked) -> Any:
    """Returns the rows that fulfil the conditions, with their prompts in the column `prompt`."""
    conditions = script_args.dataset_filter or []
    rows = len(dataset) if isinstance(dataset, Dataset) else None
    for condition in [conditions] if isinstance(conditions, str) else conditions:
        dataset = filtered(dataset, condition)
    if conditions and rows is not None:
        checked.record("rows", f"{len(dataset)} of {rows} rows fulfil dataset_filter={conditions}")
    if script_args.prompt_column != "prompt":
        dataset = with_prompt(dataset, script_args.prompt_column)
    return dataset.map(as_chat, batched=True) if script_args.prompt_as_chat else dataset


def filtered(dataset: Any, condition: str) -> Any:
    """
    Returns the rows that fulfil one condition, `COLUMN COMPARISON VALUE`, for example `difficulty >= 6`. It is read,
    not evaluated. A value is read as what a cell is ([`meant`]). An empty cell fulfils no `<` or `>`.
    """
    parts = CONDITION.fullmatch(condition)
    if parts is None:
        raise WrongSettings(
            f"dataset_filter={condition!r} is no condition. Give COLUMN, one of {' '.join(COMPARISONS)}, and a value, "
            "for example 'difficulty >= 6' or 'topic == Algebra'."
        )
    column = parts["column"]
    refuse_unknown_column(dataset, column, f"dataset_filter={condition!r}: {column!r}")
    arguments = {"condition": condition, "compare": parts["compare"], "said": parts["value"]}
    left = dataset.filter(fulfils, batched=True, input_columns=[column], fn_kwargs=arguments)
    if isinstance(left, Dataset) and not len(left):
        raise WrongSettings(f"dataset_filter={condition!r} leaves none of the {len(dataset)} rows.")
    return left


def fulfils(values: list[Any], condition: str, compare: str, said: str) -> list[bool]:
    """Returns which of some values compare with the one that is `said` as they should."""
    try:
        return [fulfilled(own, compare, said) for own in values]
    except (TypeError, ValueError) as error:
        raise WrongSettings(
            f"dataset_filter={condition!r}: the column and {said!r} cannot be compared ({error})."
        ) from error


def fulfilled(own: Any, compare: str, said: str) -> bool:
    """Returns whether one value compares as it should."""
    ordered = compare not in ("==", "!=")
    if ordered and isinstance(own, str) and isinstance(number(said), int | float):
        raise TypeError(f"{own[:40]!r} is a text, and {said} a number")  # "10" would come before "6"
    value = meant(said, own)
    if isinstance(own, list | dict | Number) and value is not None and not isinstance(value, Number):
        raise TypeError(f"{str(own)[:40]} is no text")
    return not (ordered and own is None) and COMPARISONS[compare](own, value)


def meant(said: str, own: Any) -> Any:
    """
    Returns the value of a condition as a cell would hold it: a number, `true` or `false`, a date, or else the text
    that is said, without quotes. `null` is an empty cell.
    """
    if said == "null":
        return None
    if isinstance(own, Number):
        return {"true": True, "false": False}.get(said.lower(), number(said))
    if isinstance(own, date):
        return type(own).fromisoformat(said)
    return said[1:-1] if len(said) > 1 and said[0] == said[-1] and said[0] in "'\"" else said


def number(said: str) -> int | float | str:
    """Returns a number, if a text is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(said)
    return said


def with_prompt(dataset: Any, column: str) -> Any:
    """Returns the dataset with this column called `prompt`, in place of one that was called so before."""
    refuse_unknown_column(dataset, column, f"prompt_column={column!r}")
    if "prompt" in (dataset.column_names or []):
        dataset = dataset.remove_columns("prompt")
    return dataset.rename_column(column, "prompt")


def as_chat(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Returns prompts as messages: a text becomes the only message, of the user."""
    prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in batch["prompt"]]
    return {"prompt": prompts}


def refuse_unknown_column(dataset: Any, column: str, what: str) -> None:
    """Refuse a column that is not there, and say which are."""
    columns = columns_of(dataset)
    if columns is not None and column not in columns:
        raise ValueError(f"{what} is no column of the dataset, which has: {', '.join(columns)}.")


def columns_of(dataset: Any) -> list[str] | None:
    """Returns the columns of a dataset; of a stream that does not know them, those of its first row."""
    columns = getattr(dataset, "column_names", None)
    if columns is None and isinstance(dataset, IterableDataset):
        return list(next(iter(dataset), {})) or None
    return columns


def hold_out(dataset: Dataset | IterableDataset, size: float) -> list[Dataset]:
    """Returns the rows to train on and those held out: a share below 1, or a number of them; always the same ones."""
    if not isinstance(dataset, Dataset):
        raise ValueError(f"test_split_size={size}: a stream cannot be split. Give its test split, or do not stream.")
    rows = size if 0 < size < 1 else int(size)
    if rows != size or not 0 < rows < len(dataset):
        raise ValueError(
            f"test_split_size={size} is refused. Give a share in (0, 1), for example 0.1, or a whole number of rows "
            f"below {len(dataset)}, which the dataset has."
        )
    parts = dataset.train_test_split(test_size=rows, seed=SPLIT_SEED)
    return [parts["train"], parts["test"]]


@contextmanager
def first_process_first(state: PartialState) -> Iterator[None]:
    """
    What is written to a cache goes in here: the first process of each machine does it, and then the others, which find
    it in the cache. They are not left waiting where the first one fails.
    """
    try:
        if not state.is_local_main_process:
            state.wait_for_everyone()
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()
