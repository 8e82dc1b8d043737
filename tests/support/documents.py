"""The pages of the repository, and the code in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import fire_opd_trl


ROOT = Path(fire_opd_trl.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
NOT_RUN = "<!-- not run by the tests"


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `run` says whether its page lets the tests execute it."""

    code: str
    run: bool = True


def blocks(text: str, language: str) -> list[Block]:
    found = re.findall(rf"^(<!-- [^\n]*\n)?```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(code, not mark.startswith(NOT_RUN)) for mark, code in found]


def commands(text: str) -> list[list[str]]:
    """The words of each `fire-opd` command of the shell blocks of a page."""
    lines = "".join(block.code for block in blocks(text, "bash")).replace("\\\n", " ").splitlines()
    split = (
        shlex.split(re.split(r" [|>&] ?", line)[0], comments=True) for line in lines if line.startswith("fire-opd ")
    )
    return [words[1:] for words in split]
