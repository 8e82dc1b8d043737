"""Nobody can look at a stream beforehand: its rows are checked one by one, when they are read."""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset

from ..config import FiReOPDConfig
from .dataset import PICTURES, Reader, measure, no_ids, refuse_blank, refuse_row


SAID_AT = {10**power for power in range(12)}  # rows left out: the first, the tenth, the hundredth, ...


def checked_stream(
    stream: IterableDataset,
    name: str,
    *,
    student: Reader,
    teachers: dict[str, Reader],
    overlong: str,
    columns: tuple[str, str],
    left_out: Counter,
) -> IterableDataset:
    """
    `inspect_run` calls this for each stream. It returns the same stream without the rows that are too long, if those
    are to be dropped. A wrong row is refused as `check_dataset` refuses it, but only when it is read. Every rank reads
    the whole stream, so that all ranks stop at the same row, and leave out the same rows.

    Args:
        left_out (`Counter`): Where the rows that were left out are counted, under the name of the stream. A row counts
            in each epoch that reads it.

    The other arguments are those of `check_dataset`.
    """
    read = left_out[name] = 0

    def fits(row: dict[str, Any], index: int) -> bool:
        nonlocal read
        read += 1
        pictured = set(PICTURES) & row.keys()  # only the rollout knows their length
        mine = Reader(no_ids, None) if pictured else student
        try:
            seen = measure({column: [value] for column, value in row.items()}, mine, teachers, columns)
        except ValueError as error:
            raise ValueError(f"{name} row {index}: {error}") from error
        found = {key: values[0] for key, values in seen.items()}
        if overlong == "error" or not is_overlong(found, mine, teachers):
            refuse_row(row, index, name, found, mine, teachers, columns)
            if pictured:
                refuse_blank(row, index, name, {index: row}, pictured)
            return True
        left_out[name] += 1
        if left_out[name] in SAID_AT:
            warnings.warn(
                f"{name} row {index} is left out, its prompt is longer than {student.limit} tokens, or than "
                f"a teacher's context leaves (overlong_prompts='drop'). That makes "
                f"{left_out[name]} of {read} rows so far.",
                stacklevel=2,
            )
        return False

    return stream.filter(fits, with_indices=True)


def refuse_short_stream(left_out: int, args: FiReOPDConfig) -> None:
    """The trainer calls this on every rank where a stream has ended before the first step."""
    prompts = args.generation_batch_size // args.num_generations
    raise ValueError(
        f"train_dataset ended before the first step: it yields fewer than the {prompts} prompts of a window, beside "
        f"{left_out} rows that were left out as too long (overlong_prompts={args.overlong_prompts!r}). Look at its "
        "rows, raise max_prompt_length, or lower per_device_train_batch_size or gradient_accumulation_steps."
    )


def is_overlong(found: dict[str, int], student: Reader, teachers: dict[str, Reader]) -> bool:
    """Returns whether a row is longer than the student or its teacher can read. `found`: what [`measure`] finds."""
    reader = list(teachers.values())[found["teacher"]]
    read = found["prompt"] if found["own"] < 0 else found["own"]
    pairs = ((found["prompt"], student.limit), (read, reader.limit))
    return found["teacher"] >= 0 and any(limit is not None and tokens > limit for tokens, limit in pairs)


class WholeStream(torch.utils.data.IterableDataset):
    """
    The trainer gives a stream to its loader as this: rows in one order, without the files that they come from. Where
    there are as many files as ranks, accelerate would let each rank read files of its own. Ranks would then run out
    of rows at different times, and TRL's order, which holds a window together and repeats it for every
    micro-batch, would be cut in the wrong places. Of this stream every rank reads all, and takes its part of each
    window.
    """

    def __init__(self, stream: IterableDataset):
        self.stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.stream)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another order, if the stream is shuffled."""
        self.stream.set_epoch(epoch)
