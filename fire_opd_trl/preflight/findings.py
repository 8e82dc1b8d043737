"""What the checks found, and what the trainer needs of their results."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..refusals import WrongSettings, faults_of
from ..teachers.prompts import PromptRenderer


WIDTH = 118  # of the table; less on a narrower terminal


@dataclass(frozen=True)
class Finding:
    """What one check said: `outcome` is `"ok"`, `"warning"` or `"fault"`."""

    subject: str
    outcome: str
    text: str


@dataclass
class Checked:
    """The result of all checks: their findings, and the tokenizers and datasets with which the trainer goes on."""

    findings: list[Finding] = field(default_factory=list)
    processing_class: Any = None
    tokenizer: Any = None
    train_dataset: Any = None
    eval_dataset: Any = None
    student_rows: int = 0
    renderers: dict[str, PromptRenderer] = field(default_factory=dict)
    unknown: dict[str, frozenset[int]] = field(default_factory=dict)
    example: str = ""
    prompts: tuple[float, int] | None = None  # tokens of the mean and of the longest one, where all were read
    left_out: Counter = field(default_factory=Counter)  # rows of each stream, counted as it is read

    def record(self, subject: str, text: str, outcome: str = "ok") -> None:
        """Add a finding."""
        self.findings.append(Finding(subject, outcome, text))

    @contextmanager
    def check(self, subject: str, whatever: bool = False) -> Iterator[None]:
        """
        A check runs inside this. Its refusal is recorded as a fault of the subject, and the next check runs all the
        same.

        Args:
            whatever (`bool`): Whether any exception is a fault, where libraries read the user's files and weights.
        """
        try:
            yield
        except Exception as error:
            if not whatever and not isinstance(error, ValueError | OSError):
                raise
            kind = "" if type(error) in (ValueError, WrongSettings) else f"{type(error).__name__}: "
            for fault in faults_of(error):
                self.record(subject, (kind + fault).strip(), "fault")

    @property
    def faults(self) -> list[str]:
        """The texts of all faults."""
        return [finding.text for finding in self.findings if finding.outcome == "fault"]

    def refuse(self) -> None:
        """Raise all faults in one error, if there are any. Teachers may share one."""
        if self.faults:
            raise WrongSettings(*dict.fromkeys(self.faults))

    def table(self) -> str:
        """Returns all findings as a table for a person to read, as wide as the terminal allows."""
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        left = max(len(finding.subject) for finding in self.findings)
        lines = []
        for finding in self.findings:
            head = f"{finding.subject:<{left}}  {finding.outcome:<7}  "
            room = max(30, width - len(head))
            wrapped = textwrap.wrap(finding.text, room, break_long_words=False, break_on_hyphens=False) or [""]
            lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
        return "\n".join(lines)


def title_of(name: str) -> str:
    """Returns what a teacher is called in a table."""
    return name if name == "teacher" else f"teacher {name}"
