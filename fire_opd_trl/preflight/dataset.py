"""The dataset is checked before a model is loaded. Every fault is named with its row."""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from ..config import FiReOPDConfig
from ..rollouts.prompts import refuse_malformed, refuse_unrouted, teacher_of
from .findings import Checked


ROWS_AT_ONCE = 1000  # tokenized together, on all cores


@dataclass
class Reader:
    """
    How a model reads the prompts of a dataset, and which of them it can take.

    Args:
        ids (`Callable`): Rows of the dataset -> the tokens of their prompts, `None` where they are not known.
        limit (`int`, *optional*): Longest prompt in tokens.
        unknown (`frozenset[int]`): Token ids that mean nothing to the model.
        rows (`int`, *optional*): Token rows that teacher and student share.
    """

    ids: Callable[[list[dict[str, Any]]], list[list[int] | None]]
    limit: int | None
    unknown: frozenset[int] = frozenset()
    rows: int | None = None


def no_ids(rows: list[dict[str, Any]]) -> list[list[int] | None]:
    """The `ids` of a [`Reader`] for prompts whose tokens only the rollout knows."""
    return [None] * len(rows)


@dataclass
class Facts:
    """What `check_dataset` saw of a dataset."""

    rows: int = 0
    dropped: int = 0
    longest: int = 0
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
    names, facts, fitting = list(teachers), Facts(rows=len(dataset)), []
    if "prompt" not in dataset.column_names:
        refuse_malformed({}, 0, name)
    read = dataset.select_columns(["prompt", *(c for c in columns if c in dataset.column_names)])  # no images decoded
    starts = range(0, len(read), ROWS_AT_ONCE)
    hidden = quiet or len(read) < 5 * ROWS_AT_ONCE
    for start in tqdm(starts, desc=f"checking {name}", unit_scale=ROWS_AT_ONCE, disable=hidden):
        rows = read.select(range(start, min(start + ROWS_AT_ONCE, len(read)))).to_list()
        for index, row in enumerate(rows, start):
            refuse_malformed(row, index, name)
            refuse_unrouted(row, index, name, columns[0], names)
            if row.get(columns[1]) is not None:  # a prompt for the teacher alone may be left out
                refuse_malformed(row, index, name, columns[1])
        routed = [teacher_of(row, columns[0], names) for row in rows]
        theirs: dict[int, list[int] | None] = {}
        for who, reader in teachers.items():
            mine = [offset for offset, owner in enumerate(routed) if owner == who]
            theirs.update(zip(mine, reader.ids([rows[offset] for offset in mine]), strict=True))
        for offset, ids in enumerate(student.ids(rows)):
            who, row, index, own = routed[offset], rows[offset], start + offset, theirs[offset]
            fits = check_fit(ids, student, f"{name} row {index}: the prompt", overlong)
            whose = f"{name} row {index}: the prompt of teacher {who!r}"
            reader = teachers[who] if own is None else replace(teachers[who], unknown=frozenset())
            fits &= check_fit(ids if own is None else own, reader, whose, overlong)
            if not fits:
                continue
            fitting.append(index)
            facts.routed[who] += 1
            if who not in facts.first or (own is not None and not facts.own[who]):
                facts.first[who] = row  # one with a prompt for the teacher alone shows most
            facts.own[who] += own is not None
            facts.longest = max(facts.longest, len(ids or []))
            facts.longest_read = max(facts.longest_read, len(ids or []), len(own or []))
    facts.dropped = len(dataset) - len(fitting)
    if facts.dropped:
        warnings.warn(
            f"{name}: {facts.dropped} of {len(dataset)} rows left out, their prompts are longer "
            f"than {student.limit} tokens, or than a teacher's context leaves (overlong_prompts='drop').",
            stacklevel=5,
        )
        dataset = dataset.select(fitting)
    return dataset, facts


def check_fit(ids: list[int] | None, reader: Reader, what: str, overlong: str) -> bool:
    """Returns whether a prompt fits. A prompt that the model could never read is refused."""
    if ids is None:
        return True
    if not ids:
        raise ValueError(f"{what} has no token. Remove the row.")
    if unknown := reader.unknown & set(ids):
        raise ValueError(
            f"{what} holds the token id {min(unknown)}, which the teacher's tokenizer does not have. Give the teacher "
            "a prompt of its own (teacher_chat_template='own', or the column of teacher_prompt_column), or change "
            "chat_template_kwargs."
        )
    if reader.rows is not None and max(ids) >= reader.rows:
        raise ValueError(
            f"{what} holds the token id {max(ids)}, and teacher and student share {reader.rows} token rows. Use a "
            "template without it."
        )
    if reader.limit is None or len(ids) <= reader.limit:
        return True
    if overlong == "drop":
        return False
    raise ValueError(
        f"{what} has {len(ids)} tokens, and {reader.limit} fit (max_prompt_length, or the models' context beside "
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
