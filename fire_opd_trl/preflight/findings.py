"""What the checks found, and what the trainer needs of it."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..views import View


WIDTH = 118


@dataclass(frozen=True)
class Finding:
    """What one check said: `outcome` is `"ok"`, `"warning"` or `"fault"`."""

    subject: str
    outcome: str
    text: str


@dataclass
class Checked:
    """What was found, and what the trainer needs of it."""

    findings: list[Finding] = field(default_factory=list)
    processing_class: Any = None
    tokenizer: Any = None
    train_dataset: Any = None
    eval_dataset: Any = None
    student_rows: int = 0
    views: dict[str, View] = field(default_factory=dict)
    unknown: dict[str, frozenset[int]] = field(default_factory=dict)
    example: str = ""

    def says(self, subject: str, text: str, outcome: str = "ok") -> None:
        self.findings.append(Finding(subject, outcome, text))

    @contextmanager
    def check(self, subject: str) -> Iterator[None]:
        """A refusal in here is a fault of the subject; what does not depend on it is checked all the same."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.says(subject, str(error), "fault")

    @property
    def faults(self) -> list[str]:
        return [finding.text for finding in self.findings if finding.outcome == "fault"]

    def table(self) -> str:
        """All findings for a person."""
        left = max(len(finding.subject) for finding in self.findings)
        lines = []
        for finding in self.findings:
            head = f"{finding.subject:<{left}}  {finding.outcome:<7}  "
            wrapped = textwrap.wrap(finding.text, WIDTH - len(head), break_long_words=False, break_on_hyphens=False)
            lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
        return "\n".join(lines)
