"""
What token ids mean to student and teacher. The teacher scores the student's very ids, so each id that can occur must
mean the same to both; sizes need not agree, since vocabularies are padded to different multiples.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.trainer.utils import get_config_model_id


Teacher: TypeAlias = str | PreTrainedModel
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "*tekken*")


def config_of(model: Teacher, **hub_kwargs) -> PretrainedConfig:
    """Returns a model's config without loading its weights."""
    if not isinstance(model, str):
        return model.config
    try:
        return AutoConfig.from_pretrained(model, **hub_kwargs)
    except OSError as error:
        why = " HF_HUB_OFFLINE is set: only local folders and models in the cache can be loaded." if offline() else ""
        raise ValueError(
            f"{model!r} could not be loaded: it is neither a local folder with a config.json nor a model that can be "
            f"reached on the Hub.{why}"
        ) from error


def offline() -> bool:
    """Whether the Hub is switched off for this process."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def tokenizer_of(model: Teacher, **hub_kwargs) -> PreTrainedTokenizerBase | None:
    """Returns a model's tokenizer from where its weights came; `None` for a module that was built in memory."""
    source = model if isinstance(model, str) else get_config_model_id(model.config)
    if not source or not (isinstance(model, str) or Path(source).is_dir()):
        return None
    try:
        if Path(source).is_dir() and not any(any(Path(source).glob(name)) for name in TOKENIZER_FILES):
            raise ValueError("no tokenizer files")  # some classes would return an empty tokenizer
        return AutoTokenizer.from_pretrained(source, **hub_kwargs)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        if not isinstance(model, str):
            return None
        raise ValueError(
            f"teacher {source!r} has no tokenizer that could be loaded. The teacher must read the student's token "
            "ids, so its tokenizer is compared with the student's; put the tokenizer files beside its weights."
        ) from error


@dataclass(frozen=True)
class Vocabulary:
    """What the ids of a model mean: its tokens by id, the ids that were added, its token rows, its end tokens."""

    tokens: dict[int, str]
    added: frozenset[int]
    rows: int
    ends: frozenset[int]

    @classmethod
    def of(
        cls, model: Teacher | None, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, **hub_kwargs: Any
    ) -> "Vocabulary":
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        added = frozenset(tokenizer.get_added_vocab().values())
        ends = {*end_ids(model, config, **hub_kwargs), tokenizer.eos_token_id} - {None}
        return cls(tokens, added, config.get_text_config().vocab_size, frozenset(ends))

    def named(self, ids: set[int] | frozenset[int], most: int = 8) -> str:
        """Returns the first few of some ids with their tokens, for a person."""
        shown = [f"{index} {self.tokens.get(index)!r}" for index in sorted(ids)[:most]]
        return ", ".join(shown) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def end_ids(model: Teacher | None, config: PretrainedConfig, **hub_kwargs: Any) -> set[int]:
    """Returns the ids at which a model stops: those of its generation config, or else those of its config."""
    generation = getattr(model, "generation_config", None)
    if isinstance(model, str):
        try:
            generation = GenerationConfig.from_pretrained(model, **hub_kwargs)
        except OSError:  # it has none
            generation = None
    ends = getattr(generation, "eos_token_id", None)
    ends = getattr(config.get_text_config(), "eos_token_id", None) if ends is None else ends
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def unknown_ids(teacher: Vocabulary | None, rows: int, student: Vocabulary, name: str) -> frozenset[int]:
    """
    Preflight calls this for each teacher. It returns the ids that the student can write and that mean something else,
    or nothing, to the teacher. Only tokens that were added to a tokenizer (`<think>`, tool calls, reserved ones) may
    be among them; another base vocabulary, or another end token, is refused.

    Args:
        teacher ([`Vocabulary`], *optional*): The teacher's; without one, only its rows are known.
        rows (`int`): The teacher's token rows.
        student ([`Vocabulary`]): The student's.
        name (`str`): What to call the teacher in an error.
    """
    other = {index for index, token in student.tokens.items() if teacher and token != teacher.tokens.get(index)}
    lacking = {index for index in student.tokens if index >= rows}
    for index in sorted(other - lacking):
        if index not in student.added:
            assert teacher is not None
            raise ValueError(
                f"{name} has another tokenizer than the student: id {index} is {student.tokens[index]!r} to the "
                f"student and {teacher.tokens.get(index)!r} to the teacher. Sampled-token distillation needs one "
                "tokenizer; for two, see TRL's GOLD trainer."
            )
    if base := lacking - student.added:
        raise ValueError(
            f"{name} has {rows} token rows, too few for the student's id {max(base)} ({student.tokens[max(base)]!r}). "
            "Use a teacher of the same tokenizer."
        )
    unknown = frozenset(other | lacking)
    if ends := unknown & student.ends:
        raise ValueError(
            f"{name} does not know the student's end token {student.named(ends)}, with which every finished answer "
            "ends. Let the student end with a token of both (eos_token_id in its generation_config.json and "
            "tokenizer_config.json), or use a teacher of the same tokenizer."
        )
    return unknown


def end_token_warning(teacher: Vocabulary, student: Vocabulary, name: str) -> str | None:
    """Returns a warning, and what to set, where student and teacher end their answers differently; else `None`."""
    more, fewer = teacher.ends - student.ends, student.ends - teacher.ends
    if not more and not fewer:
        return None
    said = []
    if more:
        said.append(
            f"{name} ends an answer with {teacher.named(more)}, at which the student does not stop, so that it goes "
            "on where the teacher has nothing more to say"
        )
    if fewer:
        said.append(
            f"the student stops at {student.named(fewer)}, which {name} never ends with, so that finishing is "
            "punished at every end"
        )
    own = "" if student.ends & teacher.ends else ", and eos_token in its tokenizer_config.json to one of them"
    return (
        "; ".join(said) + f". Set eos_token_id to {sorted(teacher.ends)} in the student's generation_config.json (or "
        f"model.generation_config.eos_token_id), which is what ends a completion{own}."
    )
