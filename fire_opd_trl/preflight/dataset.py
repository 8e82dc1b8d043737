"""The dataset is checked before a model is loaded. Every fault is named with its row."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PicklingError
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerFast

from ..config import FiReOPDConfig
from ..rollouts.prompts import refuse_malformed, refuse_unrouted, teacher_of
from .findings import Checked
from .loading import first_process_first


BATCH = 1000  # rows that are tokenized together
POOL_ROWS = 10_000  # fewer are read in this process, in seconds: a pool and a file would cost more
ROWS_OF_A_PROCESS = 5000
EDITION = 2  # of `measure`: another one finds nothing in the cache
PICTURES = ("image", "images")  # columns of TRL
MEASURED = ("teacher", "prompt", "own", "largest", "stray")


@dataclass
class Reader:
    """
    How a model reads the prompts of a dataset, and which of them it can take.

    Args:
        ids (`Callable`): Rows of the dataset -> the tokens of their prompts, `None` where they are not known.
        limit (`int`, *optional*): Longest prompt in tokens.
        unknown (`frozenset[int]`): Token ids that mean nothing to the model.
        rows (`int`, *optional*): Token rows that teacher and student share.
        depends (`tuple`): What `ids` depends on beside the rows: tokenizer, template, its variables, tools.
    """

    ids: Callable[[list[dict[str, Any]]], list[list[int] | None]]
    limit: int | None
    unknown: frozenset[int] = frozenset()
    rows: int | None = None
    depends: tuple = ()


def no_ids(rows: list[dict[str, Any]]) -> list[list[int] | None]:
    """The `ids` of a [`Reader`] for prompts whose tokens only the rollout knows."""
    return [None] * len(rows)


@dataclass
class Facts:
    """What `check_dataset` saw of a dataset."""

    rows: int = 0
    dropped: int = 0
    longest: int = 0
    mean: float = 0.0
    longest_read: int = 0
    routed: Counter = field(default_factory=Counter)
    own: Counter = field(default_factory=Counter)  # rows in which a teacher reads a prompt of its own
    first: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_dataset(
    dataset: "Dataset",
    name: str,
    *,
    student: Reader,
    teachers: dict[str, Reader],
    overlong: str,
    columns: tuple[str, str],
    quiet: bool = False,
) -> tuple["Dataset", Facts]:
    """
    `inspect_run` calls this for each dataset: check every row, and leave out the rows that are too long, if those are
    to be dropped.

    Args:
        name (`str`): What to call the dataset in an error.
        student ([`Reader`]): How it reads prompts. With [`no_ids`] (images, custom rollouts) lengths are not checked,
            because only the rollout knows them.
        teachers (`dict`): How the teachers read prompts; `None` for the tokens of a row means that they read the
            student's.
        overlong (`str`): `"error"` or `"drop"`.
        columns (`tuple`): The column that names the teacher, and the one with a prompt for it alone.
        quiet (`bool`): Whether to leave out the progress bar.

    Returns:
        `Dataset`, [`Facts`]: The dataset, and what was seen of it.
    """
    names, facts = list(teachers), Facts(rows=len(dataset))
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"{name} has no column `prompt`. It has: {', '.join(dataset.column_names) or 'none'}. Name the one that "
            "holds the prompt with --prompt_column, or in Python rename it: dataset.rename_column(NAME, 'prompt')."
        )
    read = dataset.select_columns(["prompt", *(c for c in columns if c in dataset.column_names)])  # no images decoded
    seen = measured(read.with_format(None), name, student, teachers, columns, quiet)
    owner_N, prompt_N, own_N = seen["teacher"], seen["prompt"], seen["own"]
    read_N = torch.where(own_N < 0, prompt_N, own_N)  # what the teacher reads
    limits, shared = limits_of([reader.limit for reader in teachers.values()], [r.rows for r in teachers.values()])
    long_N = (prompt_N > limits_of([student.limit])[0]) | (read_N > limits[owner_N])
    wrong_N = (
        (owner_N < 0) | (prompt_N == 0) | (read_N == 0) | (seen["stray"] >= 0) | (seen["largest"] >= shared[owner_N])
    )
    if overlong == "error":
        wrong_N |= long_N
    if wrong_N.any():
        index = int(wrong_N.long().argmax())
        found = {key: int(values[index]) for key, values in seen.items()}
        refuse_row(read[index], index, name, found, student, teachers, columns)

    if pictures := [column for column in PICTURES if column in dataset.column_names]:
        for index, row in enumerate(read.with_format(None)):
            refuse_blank(row, index, name, dataset, pictures)

    fits_N = ~long_N
    for number, who in enumerate(names):
        mine_N = fits_N & (owner_N == number)
        alone_N = mine_N & (own_N >= 0)
        facts.routed[who], facts.own[who] = int(mine_N.sum()), int(alone_N.sum())
        shown_N = alone_N if alone_N.any() else mine_N  # one with a prompt for the teacher alone shows most
        if shown_N.any():
            facts.first[who] = read[int(shown_N.long().argmax())]
    if fits_N.any():
        facts.longest = max(0, int(prompt_N[fits_N].max()))
        facts.mean = float(prompt_N[fits_N].double().mean())
        facts.longest_read = max(facts.longest, int(read_N[fits_N].max()))
    facts.dropped = int(long_N.sum())
    if facts.dropped:
        warnings.warn(
            f"{name}: {facts.dropped} of {len(dataset)} rows left out, their prompts are longer "
            f"than {student.limit} tokens, or than a teacher's context leaves (overlong_prompts='drop').",
            stacklevel=5,
        )
        dataset = dataset.select(fits_N.nonzero().flatten().tolist())
    return dataset, facts


def limits_of(*bounds: list[int | None]) -> list[torch.Tensor]:
    """Returns bounds as tensors, in which no bound is a very large one."""
    return [torch.tensor([2**62 if bound is None else bound for bound in each]) for each in bounds]


def refuse_unreadable(
    row: dict[str, Any], index: int, name: str, columns: tuple[str, str], names: list[str], pictured: bool
) -> None:
    """Refuse a row whose prompts have no right form, or that names no teacher."""
    refuse_malformed(row, index, name, pictured=pictured)
    refuse_unrouted(row, index, name, columns[0], names)
    if row.get(columns[1]) is not None:  # a prompt for the teacher alone may be left out
        refuse_malformed(row, index, name, columns[1])


def refuse_blank(row: dict[str, Any], index: int, name: str, whole: Any, pictures: Iterable[str]) -> None:
    """
    Refuse a sound row in which the user says nothing and has no picture. `whole[index]` is the row with those columns.
    """
    try:
        refuse_malformed(row, index, name)
    except ValueError:
        if not any(whole[index][column] for column in pictures):  # decodes this row alone
            raise


def refuse_row(
    row: dict[str, Any],
    index: int,
    name: str,
    found: dict[str, int],
    student: Reader,
    teachers: dict[str, Reader],
    columns: tuple[str, str],
) -> None:
    """Refuse a row for the first thing that is wrong of it. `found`: what [`measure`] finds of it."""
    names, where = list(teachers), f"{name} row {index}"
    refuse_unreadable(row, index, name, columns, names, pictured=student.ids is no_ids)
    who, prompt, own = names[found["teacher"]], found["prompt"], found["own"]
    check_fit(prompt, student, f"{where}: the prompt")
    whose = f"{where}: the prompt of teacher {who!r}"
    check_fit(prompt if own < 0 else own, teachers[who], whose, found["largest"], found["stray"])


def measure(
    batch: dict[str, list[Any]], student: Reader, teachers: dict[str, Reader], columns: tuple[str, str]
) -> dict[str, list[int]]:
    """
    `measured` maps this over the rows of a dataset. It returns for each row, each -1 where there is none:

    - `teacher`: the number of its teacher, -1 for a row that must be refused;
    - `prompt`, `own`: the tokens of the prompt, and of the teacher's own;
    - `largest`: the largest token id that the teacher reads;
    - `stray`: a token id of the student's prompt that the teacher does not know.
    """
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    names, found = list(teachers), {key: [-1] * len(rows) for key in MEASURED}
    for number, row in enumerate(rows):
        with suppress(ValueError):
            refuse_unreadable(row, 0, "", columns, names, pictured=student.ids is no_ids)
            found["teacher"][number] = names.index(teacher_of(row, columns[0], names))
    sound = [number for number, teacher in enumerate(found["teacher"]) if teacher >= 0]
    prompts = dict(zip(sound, student.ids([rows[number] for number in sound]), strict=True))
    for teacher, reader in enumerate(teachers.values()):
        mine = [number for number in sound if found["teacher"][number] == teacher]
        for number, own in zip(mine, reader.ids([rows[number] for number in mine]), strict=True):
            prompt = prompts[number]
            read = prompt if own is None else own
            found["prompt"][number] = -1 if prompt is None else len(prompt)
            found["own"][number] = -1 if own is None else len(own)
            found["largest"][number] = max(read or [], default=-1)
            if own is None and reader.unknown:
                found["stray"][number] = min(reader.unknown & set(read or []), default=-1)
    return found


def measured(
    rows: Dataset, name: str, student: Reader, teachers: dict[str, Reader], columns: tuple[str, str], quiet: bool
) -> dict[str, torch.Tensor]:
    """
    Returns what [`measure`] finds of all rows. Many rows are read by several processes, once on each machine: the
    numbers go to the cache of `datasets`, where the other ranks find them, and later runs.
    """
    arguments: dict[str, Any] = {"student": student, "teachers": teachers, "columns": columns}
    fingerprint = fingerprint_of(rows, student, teachers, columns) if len(rows) >= POOL_ROWS else None
    if fingerprint is None:
        starts = range(0, len(rows), BATCH)
        batches = [measure(rows[start : start + BATCH], student, teachers, columns) for start in starts]
        return {key: torch.tensor([v for batch in batches for v in batch[key]], dtype=torch.long) for key in MEASURED}
    processes = min(processor_cores(), len(rows) // ROWS_OF_A_PROCESS)
    with first_process_first(PartialState()), bars_off(quiet):
        table = rows.map(
            measure,
            batched=True,
            batch_size=BATCH,
            fn_kwargs=arguments,
            remove_columns=rows.column_names,
            num_proc=processes if processes > 1 else None,
            new_fingerprint=fingerprint,
            desc=f"checking {name}",
            **cache_arguments(fingerprint),
        )
    return table.with_format("torch")[:]


def cache_arguments(fingerprint: str) -> dict[str, Any]:
    """
    Returns the arguments of `Dataset.map` for a file in the cache of `datasets`, wherever the dataset itself lies: in
    memory or in a folder of the user's. There is none where caching is off, or where nothing can be written.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "fire_opd_preflight"
    with suppress(OSError):
        if datasets.is_caching_enabled():
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return {"cache_file_name": str(folder / f"{fingerprint}.arrow")}
    return {"keep_in_memory": True}


def fingerprint_of(
    rows: Dataset, student: Reader, teachers: dict[str, Reader], columns: tuple[str, str]
) -> str | None:
    """
    Returns the name of the numbers in the cache. It changes with all that they depend on: the rows, the tokenizers,
    the templates and their variables, the columns, and the ids that a teacher does not know. `None` where one of them
    cannot be pickled (a tool that holds a connection): then no other process can read the rows either.
    """
    readers = {"": student, **teachers}
    try:
        depend = [[name, sorted(r.unknown), *map(identity_of, r.depends)] for name, r in readers.items()]
    except (TypeError, AttributeError, PicklingError):
        return None
    return Hasher.hash([EDITION, transformers.__version__, rows._fingerprint, columns, depend])


def identity_of(part: Any) -> str:
    """
    Returns a text that is equal in two processes if prompts are read alike. A fast tokenizer is what it would save,
    without the padding and truncation that a call leaves behind in it.
    """
    if not isinstance(part, PreTrainedTokenizerFast):
        return Hasher.hash(part)
    saved = json.loads(part.backend_tokenizer.to_str())
    saved.update(truncation=None, padding=None)
    return Hasher.hash([json.dumps(saved), part.chat_template, str(part.special_tokens_map), type(part).__name__])


def processor_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def bars_off(quiet: bool) -> Iterator[None]:
    """No progress bar of `datasets` is shown inside this, if it is to be quiet."""
    hide = quiet and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def check_fit(tokens: int, reader: Reader, what: str, largest: int = -1, stray: int = -1) -> None:
    """
    Refuse a prompt that a model cannot read.

    Args:
        tokens (`int`): Its length, -1 if only the rollout knows it.
        largest, stray (`int`): See [`measure`].
    """
    if tokens == 0:
        raise ValueError(f"{what} has no token. Remove the row.")
    if stray >= 0:
        raise ValueError(
            f"{what} holds the token id {stray}, which the teacher's tokenizer does not have. Give the teacher "
            "a prompt of its own (teacher_chat_template='own', or the column of teacher_prompt_column), or change "
            "chat_template_kwargs."
        )
    if reader.rows is not None and largest >= reader.rows:
        raise ValueError(
            f"{what} holds the token id {largest}, and teacher and student share {reader.rows} token rows. Use a "
            "template without it."
        )
    if reader.limit is not None and tokens > reader.limit:
        raise ValueError(
            f"{what} has {tokens} tokens, and {reader.limit} fit (max_prompt_length, or the models' context beside "
            "max_completion_length). Prompts are never cut: shorten it, lower max_completion_length, or set "
            "overlong_prompts='drop'."
        )


def refuse_less_than_a_window(dataset: "Dataset", prompts: int) -> None:
    """Refuse a dataset that is smaller than one window: training would make no step at all, in silence."""
    if len(dataset) < prompts:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, and one window takes {prompts} prompts. Lower "
            "gradient_accumulation_steps or per_device_train_batch_size, or give more rows."
        )


def refuse_lost_columns(args: FiReOPDConfig, dataset: Any, names: list[str]) -> None:
    """Refuse settings under which TRL drops columns that it does not know, before they are read."""
    columns = getattr(dataset, "column_names", None) or []
    read = [args.teacher_column] * (len(names) > 1) + [c for c in [args.teacher_prompt_column] if c in columns]
    if args.remove_unused_columns and read:
        raise ValueError(
            f"remove_unused_columns=True would remove {', '.join(map(repr, read))}, which says whose teacher a row "
            "has, or what it reads. Set it to False."
        )


def report_dataset(checked: Checked, facts: Facts, names: list[str], args: FiReOPDConfig) -> None:
    """Record how many rows there are, how long they are, and to which teacher they go."""
    if "train_dataset" in checked.left_out:
        checked.record("dataset", "a stream: every row is checked when it is read")
        return
    if not isinstance(checked.train_dataset, Dataset) or not facts.rows:
        text = "prompts that an environment makes: routes and forms are checked as rows are sampled, lengths are not"
        checked.record("dataset", text)
        return
    left = f", {facts.dropped} left out as too long" if facts.dropped else ""
    longest = f", the longest prompt has {facts.longest} tokens" if facts.longest else ""
    checked.record("dataset", f"{facts.rows} rows{left}{longest}, completions up to {args.max_completion_length}")
    if len(names) > 1:
        shares = ", ".join(f"{name} {facts.routed[name]}" for name in names)
        alone = [name for name in names if not facts.routed[name]]
        never = f"; no row names {', '.join(alone)}" if alone else ""
        checked.record("routing", f"`{args.teacher_column}`: {shares}{never}", "warning" if alone else "ok")
