"""A few answers of the student under every teacher: are they nearly the same language?"""

from collections.abc import Callable
from typing import Any

import torch

from ..rollouts.layout import Batch
from .findings import Checked, title_of
from .fit import BEGINNING, PART, doubts_of_fit, faults_of_fit, fit_of


SHOWN = 5
ROWS = 8


def try_answers(
    scored_answers: Callable[[list[dict[str, Any]]], Batch], names: list[str], column: str, checked: Checked
) -> str:
    """
    `fire-opd preflight --with-models` calls this. It lets the student answer a few rows, scores the answers under
    their teachers, and adds to the findings: the teachers' mean log-probability of a token beside the student's own
    and that of guessing, -ln V, and what speaks against a teacher.

    Args:
        scored_answers (`Callable`): Samples and scores an answer to each row.
        names (`list[str]`): The teachers, by number.
        column (`str`): The column of the dataset that names the teacher.
        checked ([`Checked`]): The findings, with the dataset and the tokenizer.

    Returns:
        `str`: Where student and teacher first part, in the answers' own words.
    """
    batch = scored_answers(first_rows(checked.train_dataset, names, column))
    lines: list[str] = []
    for number, name in enumerate(names):
        subject = f"{title_of(name)}, answers"
        fit = fit_of(batch, number, checked.student_rows)
        if fit is None:
            checked.record(subject, "no row of it among those tried", "warning")
            continue
        faults, doubts = faults_of_fit(fit), doubts_of_fit(fit)
        means = (
            f"mean log-probability of a token {fit.teacher:.2f}, to the student itself {fit.student:.2f}, guessing "
            f"would be {fit.guessing:.2f}; student above teacher by {fit.first:.2f} on the first {BEGINNING} tokens "
            f"of an answer, {fit.later:.2f} after"
        )
        checked.record(
            subject,
            ". ".join([means] * bool(fit.tokens) + (faults or doubts)),
            "fault" if faults else "warning" if doubts else "ok",
        )
        lines += describe_partings(batch, number, title_of(name), checked.tokenizer)
    return "\n".join(lines)


def first_rows(dataset: Any, names: list[str], column: str, each: int = ROWS) -> list[dict[str, Any]]:
    """Returns the first rows of each teacher."""
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(names, 0)
    for row in dataset:
        name = names[0] if len(names) == 1 else row[column]
        if counts[name] < each:
            counts[name] += 1
            rows.append(row)
        if min(counts.values()) == each:
            break
    return rows


def describe_partings(batch: Batch, number: int, title: str, tokenizer: Any) -> list[str]:
    """Describes, for some answers, the first token that a teacher finds much less likely than the student."""
    mask_BT = batch["train_mask"] & (batch["teacher_number"] == number).unsqueeze(1)
    gap_BT = torch.where(mask_BT, batch["old_per_token_logps"] - batch["teacher_logps"], 0.0)
    part_BT = gap_BT > PART
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
