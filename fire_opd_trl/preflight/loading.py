"""The dataset of a command line: where it lies, which column is the prompt, which rows are used or held out."""

import glob
import operator
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from accelerate import PartialState
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from trl import DatasetMixtureConfig, get_dataset

from ..teachers.vocabulary import offline
from .findings import Checked


ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst", ".zip")
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
    local = bool(name) and path.exists()  # an empty name would be this folder
    if path.is_file() and not has_rows(path):
        raise ValueError(f"{called}={name!r} is an empty file. Give one with a row for each prompt.")
    if not local and (not HUB_ID.fullmatch(name) or path.suffix.lower() in ENDINGS):
        raise ValueError(
            f"{called}={name!r}: no such file or folder (the working directory is {os.getcwd()}). Give a file "
            "(JSONL, Parquet, CSV), a folder, or a dataset id."
        )
    try:
        if path.is_file():
            file = path.resolve()  # a parent that is "." has no name for `datasets`
            return load_dataset(str(file.parent), data_files=glob.escape(str(file)), streaming=streaming)
        # The command line has no other words for none.
        return load_dataset(name, None if config in ("null", "none", "None") else config, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        if isinstance(error, ValueError) and not local:
            raise
        if local:
            why = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(f"{called}={name!r} could not be read: {why}") from error
        here = " HF_HUB_OFFLINE is set: only files, folders and datasets in the cache can be loaded." * offline()
        raise ValueError(
            f"{called}={name!r} could not be loaded: it is neither a file or folder here nor a dataset that can "
            f"be reached on the Hub.{here}"
        ) from error


def has_rows(file: Path) -> bool:
    """Returns whether a file holds more than blank lines. Parquet without a row is known by its footer."""
    if file.suffix == ".parquet":
        with suppress(ValueError):  # no Parquet at all: `datasets` says what it is
            return pyarrow.parquet.read_metadata(file).num_rows > 0
    with file.open("rb") as lines:
        return any(map(bytes.strip, lines))


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
    not evaluated. A value is a number, or else a text. An empty cell fulfils no `<` or `>`.
    """
    parts = CONDITION.fullmatch(condition)
    if parts is None:
        raise ValueError(
            f"dataset_filter={condition!r} is no condition. Give COLUMN, one of {' '.join(COMPARISONS)}, and a value, "
            "for example 'difficulty >= 6' or 'topic == Algebra'."
        )
    column, value = parts["column"], yaml.safe_load(parts["value"])
    refuse_unknown_column(dataset, column, f"dataset_filter={condition!r}: {column!r}")
    arguments = {"compare": parts["compare"], "value": value}
    try:
        left = dataset.filter(fulfils, batched=True, input_columns=[column], fn_kwargs=arguments)
    except TypeError as error:
        raise ValueError(
            f"dataset_filter={condition!r}: the column and {value!r} cannot be compared ({error})."
        ) from error
    if isinstance(left, Dataset) and not len(left):
        raise ValueError(f"dataset_filter={condition!r} leaves none of the {len(dataset)} rows.")
    return left


def fulfils(values: list[Any], compare: str, value: Any) -> list[bool]:
    """Returns which of some values compare with the given one as they should."""
    ordered = compare not in ("==", "!=")
    return [not (ordered and own is None) and COMPARISONS[compare](own, value) for own in values]


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
    """Refuse a column that is not there, and say which are. The columns of a stream may not be known."""
    if dataset.column_names is not None and column not in dataset.column_names:
        raise ValueError(f"{what} is no column of the dataset, which has: {', '.join(dataset.column_names)}.")


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
