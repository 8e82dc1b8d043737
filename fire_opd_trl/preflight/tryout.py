"""A few answers of the student under every teacher: are they nearly the same language?"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..rollouts.layout import Batch
from .findings import Checked, title_of


BEGINNING = 3  # tokens of an answer at which prompts that were rendered otherwise show first
PART = 2.0  # nats by which a token is likelier to the student than to the teacher
SHOWN = 5
ROWS = 8


def try_answers(
    scored_answers: Callable[[list[dict[str, Any]]], Batch], names: list[str], column: str, checked: Checked
) -> str:
    """
    `fire-opd preflight --with-models` calls this. It lets the student answer a few rows, scores the answers under
    their teachers, and adds to the findings: the teachers' mean log-probability of a token beside the student's own
    and that of guessing, -ln V.

    Args:
        scored_answers (`Callable`): Samples and scores an answer to each row.
        names (`list[str]`): The teachers, by number.
        column (`str`): The column of the dataset that names the teacher.
        checked ([`Checked`]): The findings, with the dataset and the tokenizer.

    Returns:
        `str`: Where student and teacher first part, in the answers' own words.
    """
    batch = scored_answers(first_rows(checked.train_dataset, names, column))
    mask_BT, student_BT, teacher_BT = batch["train_mask"], batch["old_per_token_logps"], batch["teacher_logps"]
    gap_BT = torch.where(mask_BT, student_BT - teacher_BT, 0.0)
    place_BT = mask_BT.cumsum(dim=1)
    guessing = -math.log(checked.student_rows)
    lines: list[str] = []
    for number, name in enumerate(names):
        mine_BT = mask_BT & (batch["teacher_number"] == number).unsqueeze(1)
        title = title_of(name)
        subject = f"{title}, answers"
        if not mine_BT.any():
            checked.record(subject, "no row of it among those tried", "warning")
            continue
        teacher, student = teacher_BT[mine_BT].mean().item(), student_BT[mine_BT].mean().item()
        first = gap_BT[mine_BT & (place_BT <= BEGINNING)].mean().item()
        later_BT = mine_BT & (place_BT > BEGINNING)
        later = gap_BT[later_BT].mean().item() if later_BT.any() else first
        text = (
            f"mean log-probability of a token {teacher:.2f}, to the student itself {student:.2f}, guessing would be "
            f"{guessing:.2f}; student above teacher by {first:.2f} on the first {BEGINNING} tokens of an answer, "
            f"{later:.2f} after"
        )
        if not math.isfinite(teacher):
            text = "NaN or infinite log-probabilities: look at its weights, its precision, and tokens it does not know"
            checked.record(subject, text, "fault")
        elif teacher <= guessing:
            text += ". The teacher finds the answers no likelier than guessing: wrong weights, or other tokens"
            checked.record(subject, text, "fault")
        elif first > later + 1:
            text += ". They part at once: probably the teacher expects another prompt (teacher_chat_template='own')"
            checked.record(subject, text, "warning")
        else:
            checked.record(subject, text)
        lines += describe_partings(batch, mine_BT & (gap_BT > PART), gap_BT, title, checked.tokenizer)
    return "\n".join(lines)


def first_rows(dataset: Any, names: list[str], column: str) -> list[dict[str, Any]]:
    """Returns the first rows of each teacher."""
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(names, 0)
    for row in dataset:
        name = names[0] if len(names) == 1 else row[column]
        if counts[name] < ROWS:
            counts[name] += 1
            rows.append(row)
        if min(counts.values()) == ROWS:
            break
    return rows


def describe_partings(
    batch: dict[str, Any], part_BT: torch.Tensor, gap_BT: torch.Tensor, title: str, tokenizer: Any
) -> list[str]:
    """Describes, for some answers, the first token that the teacher finds much less likely than the student."""
    rows = part_BT.any(dim=1).nonzero().flatten().tolist()
    if not rows:
        return []
    lines = [f"\nwhere {title} first finds a token less likely than the student by more than {PART} nats:"]
    for row in rows[:SHOWN]:
        place = int(part_BT[row].int().argmax())
        ids = batch["completion_ids"][row]
        before = tokenizer.decode(ids[max(0, place - 20) : place])
        lines.append(f"  {before!r} then {tokenizer.decode(ids[place])!r}, {gap_BT[row, place].item():.1f} nats")
    if len(rows) > SHOWN:
        lines.append(f"  and in {len(rows) - SHOWN} more answers")
    return lines
