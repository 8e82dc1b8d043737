"""How the student and the teachers read prompts: their tokenizers and templates, without any weight."""

import re
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config import FiReOPDConfig
from ..preflight.dataset import Reader, no_ids
from ..preflight.findings import Checked
from ..preflight.prompts import student_reader
from ..rollouts.prompts import UNNAMED
from ..teachers.prompts import prompt_renderer
from ..teachers.vocabulary import offline


SHORTEST_MARKER = 3  # signs: a shorter special token stands in many texts


@dataclass
class Readers:
    """
    Who reads the prompts.

    Args:
        student ([`~preflight.dataset.Reader`]): How the student reads a prompt.
        teachers (`dict`): How each teacher does; one without a name where none was given.
        tokenizers (`dict`): The tokenizers by who reads with them; empty without a student.
        routed (`bool`): Whether each row must name one of the teachers.
    """

    student: Reader
    teachers: dict[str, Reader]
    tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    routed: bool = False

    @property
    def markers(self) -> re.Pattern | None:
        """The special tokens of the tokenizers, as a pattern."""
        tokens = {
            token
            for tokenizer in self.tokenizers.values()
            for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())
            if len(token) >= SHORTEST_MARKER and not token.isalnum() and token.strip()
        }
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def readers_of(student: str | None, teachers: dict[str, str], limit: int | None, settings: dict[str, Any]) -> Readers:
    """
    `fire-opd data check` calls this. It returns the readers of a student and its teachers, given as folders or ids.

    Args:
        teachers (`dict`): By name; an empty text is a teacher that reads with the student's tokenizer.
        limit (`int`, *optional*): Longest prompt in tokens.
        settings (`dict`): Fields of [`FiReOPDConfig`]: templates, their variables, columns.
    """
    names = list(teachers) or [UNNAMED]
    routed = bool(teachers) and names != [UNNAMED]
    if student is None:
        return Readers(Reader(no_ids, None), {name: Reader(no_ids, None) for name in names}, routed=routed)
    args = FiReOPDConfig("unused", use_cpu=True, bf16=False, report_to=[], **settings)
    mine = tokenizer_at(student, "--student")
    readers, tokenizers = {}, {"student": mine}
    for name in names:
        own = tokenizer_at(teachers[name], "--teacher") if teachers.get(name) else None
        renderer = prompt_renderer(name, names, args, mine, own)
        readers[name] = Reader(renderer.ids, None, depends=tuple(vars(renderer).values()))
        tokenizers[name] = renderer.tokenizer
    return Readers(student_reader(Checked(processing_class=mine, tokenizer=mine), args, {}, limit), readers,
                   tokenizers, routed)  # fmt: skip


def tokenizer_at(name: str, option: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a folder or on the Hub."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = " HF_HUB_OFFLINE is set: only folders and what is in the cache can be loaded." if offline() else ""
        raise ValueError(
            f"{option} {name}: no tokenizer could be loaded. Give a folder with a tokenizer, or a model id "
            f"that can be reached on the Hub.{why}"
        ) from error
