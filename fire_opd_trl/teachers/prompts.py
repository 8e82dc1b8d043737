"""What a teacher reads before the student's answer: the student's prompt, or a prompt of its own for the same row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import FiReOPDConfig
from ..rollouts.prompts import prompt_ids


OWN = "own"  # teacher_chat_template: the one of the teacher's tokenizer


@dataclass(frozen=True)
class PromptRenderer:
    """
    Makes one teacher's prompt of a row of the dataset.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The teacher's, or the student's for a teacher that has none.
        template (`str`, *optional*): Chat template; `None`: the student's.
        template_kwargs (`dict`): Its variables.
        column (`str`): Dataset column with a prompt for the teacher alone.
        rendered (`bool`): Whether messages are rendered anew for the teacher.
        whose (`str`): What to call the tokenizer in an error.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    template_kwargs: dict[str, Any]
    column: str
    rendered: bool
    whose: str = "the teacher's tokenizer"

    def ids(self, rows: list[dict[str, Any]], tools: list | None = None) -> list[list[int] | None]:
        """Returns the tokens of the teacher's prompts; `None` where it reads the student's prompt."""
        own = [self._own(row) for row in rows]
        written = [prompt for prompt in own if prompt is not None]
        ids = iter(prompt_ids(written, self.tokenizer, self.template, self.template_kwargs, tools, self.whose))
        return [None if prompt is None else next(ids) for prompt in own]

    def _own(self, row: dict[str, Any]) -> Any:
        """Returns the prompt that is written for the teacher, if one is."""
        if row.get(self.column) is not None:
            return row[self.column]
        return row["prompt"] if self.rendered and not isinstance(row["prompt"], str) else None


def teacher_prompts(
    renderers: list[PromptRenderer], inputs: list[dict[str, Any]], teacher_B: list[int], tools: list | None = None
) -> list[list[int] | None]:
    """
    The trainer calls this before a window is sampled. It returns the tokens of each row's prompt as its own teacher
    reads it; `None` where that is the student's prompt.
    """
    ids: dict[int, list[int] | None] = {}
    for number, renderer in enumerate(renderers):
        mine = [row for row, teacher in enumerate(teacher_B) if teacher == number]
        ids.update(zip(mine, renderer.ids([inputs[row] for row in mine], tools), strict=True))
    return [ids[row] for row in range(len(inputs))]


def prompt_renderer(
    name: str,
    names: list[str],
    args: FiReOPDConfig,
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase | None,
) -> PromptRenderer:
    """
    Preflight calls this for each teacher. It returns how the prompts of the teacher `name` are made.

    Args:
        names (`list[str]`): All teachers; a setting whose keys are all among them is one for each teacher.
        student, teacher: The tokenizers. The teacher's prompt is read by the teacher alone, so its own tokenizer
            writes it; only the answer's ids are shared.
    """
    template = args.of_teacher("teacher_chat_template", name, names)
    template_kwargs = args.of_teacher("teacher_chat_template_kwargs", name, names)
    rendered = template is not None or template_kwargs is not None
    return PromptRenderer(
        tokenizer=teacher or student,
        template=student.chat_template if template is None else template_text(template, name, teacher),
        template_kwargs=dict((args.chat_template_kwargs if template_kwargs is None else template_kwargs) or {}),
        column=args.teacher_prompt_column,
        rendered=rendered,
        whose="the student's tokenizer" if teacher is None else f"the tokenizer of teacher {name!r}",
    )


def template_text(template: str, name: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Returns the text of a chat template: the teacher's own, that of a file, or the text itself."""
    if template == OWN:
        own = tokenizer.chat_template if tokenizer is not None else None
        if not own:
            raise ValueError(
                f"teacher_chat_template='own': teacher {name!r} has no chat template of its own. Give a template "
                "(a .jinja file or its text), or leave it unset: the teacher then reads the student's prompt."
            )
        return own
    if "{" in template:
        return template
    if not Path(template).is_file():
        raise ValueError(
            f"teacher_chat_template={template!r} is neither a file nor a template. Give 'own', the path of a .jinja "
            "file, or the text of a template."
        )
    return Path(template).read_text(encoding="utf-8")
