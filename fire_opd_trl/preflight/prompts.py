"""Which prompts student and teachers read, and one prompt of each teacher for a person to look at."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..config import FiReOPDConfig
from ..rollouts.prompts import prompt_ids
from .dataset import Facts, Reader, no_ids
from .findings import Checked, title_of


SHOWN = 400  # characters of a prompt


def student_reader(checked: Checked, args: FiReOPDConfig, others: dict[str, Any], limit: int | None) -> Reader:
    """Returns how the student reads prompts of at most `limit` tokens."""
    if checked.tokenizer is None or others.get("rollout_func") is not None:
        return Reader(no_ids, limit)
    if checked.processing_class is not checked.tokenizer and checked.tokenizer.chat_template is None:  # a processor's
        return Reader(no_ids, limit)
    tokenizer, template_kwargs, tools = checked.tokenizer, args.chat_template_kwargs or {}, others.get("tools")

    def ids(rows: list[dict[str, Any]]) -> list[list[int] | None]:
        prompts, whose = [row["prompt"] for row in rows], "the student's tokenizer"
        return [*prompt_ids(prompts, tokenizer, None, template_kwargs, tools, whose)]

    return Reader(ids, limit, depends=(tokenizer, template_kwargs, tools))


def refuse_impossible_prompts(args: FiReOPDConfig, dataset: Any, others: dict[str, Any]) -> None:
    """Refuse settings of the teacher's prompt that would have no effect, or a wrong one."""
    columns = getattr(dataset, "column_names", None) or []
    set_here = [n for n in ("teacher_chat_template", "teacher_chat_template_kwargs") if getattr(args, n) is not None]
    column = args.teacher_prompt_column in columns
    default = type(args).__dataclass_fields__["teacher_prompt_column"].default
    if columns and not column and args.teacher_prompt_column != default:
        raise ValueError(
            f"teacher_prompt_column={args.teacher_prompt_column!r} is no column of the dataset, which has: "
            f"{', '.join(columns)}."
        )
    if not set_here and not column:
        return
    what = ", ".join(set_here) or f"the column {args.teacher_prompt_column!r}"
    if others.get("environment_factory") is not None:
        raise ValueError(f"{what}: an environment writes the prompts as it goes, so the teacher can have no other.")
    if {"image", "images"} & set(columns):
        raise ValueError(f"{what}: a prompt with images cannot be rendered anew for the teacher. Remove it.")
    read = [name for name in ("prompt", args.teacher_prompt_column) if name in columns]
    if set_here and isinstance(dataset, Dataset) and "prompt" in read:
        if all(isinstance(prompt, str | None) for name in read for prompt in dataset[name]):
            raise ValueError(
                f"{what} has no effect: the prompts are texts, which no chat template renders. Give `prompt` or "
                f"{args.teacher_prompt_column!r} as messages, or remove it."
            )


def report_prompts(checked: Checked, facts: Facts, args: FiReOPDConfig) -> None:
    """Record which prompt each teacher reads, and what is set of the student's for nothing."""
    if facts.first and all(isinstance(row["prompt"], str) for row in facts.first.values()):
        text = "the prompts are texts, which the student reads without its chat template"
        if args.chat_template_kwargs:
            text = f"chat_template_kwargs={args.chat_template_kwargs} has no effect: {text}"
        if args.chat_template_kwargs or checked.tokenizer is not None and checked.tokenizer.chat_template:
            checked.record("student, prompt", f"{text}; --prompt_as_chat true makes them messages", "warning")
    for name, renderer in checked.renderers.items():
        subject = f"{title_of(name)}, prompt"
        own, template = facts.own[name], renderer.tokenizer.chat_template
        if own:
            told = renderer.rendered and renderer.template_kwargs
            how = f", rendered with {renderer.template_kwargs}" if told else ""
            checked.record(subject, f"one of its own in {own} of {facts.routed[name]} rows{how}")
        elif name not in facts.first or isinstance(facts.first[name]["prompt"], str):
            checked.record(subject, "the student's")
        elif template and template != checked.tokenizer.chat_template:
            text = (
                "the student's, whose chat template is another than its own; teacher_chat_template='own' changes that"
            )
            checked.record(subject, text, "warning")
        else:
            checked.record(subject, "the student's, rendered by the student's chat template")


def example_prompts(checked: Checked, facts: Facts, student: Reader) -> str:
    """Returns the text that shows one prompt of each teacher, as the student and as the teacher see it."""
    lines: list[str] = []
    for name, renderer in checked.renderers.items():
        row = facts.first.get(name)
        if row is None:
            continue
        (mine,), (own,) = student.ids([row]), renderer.ids([row])
        text = "the same tokens" if own is None else describe_tokens(own, renderer.tokenizer)
        heads = "a prompt as the student sees it:", f"and as {title_of(name)} sees it:"
        width = max(len(head) for head in heads)
        lines += ["", f"{heads[0]:<{width}} {describe_tokens(mine, checked.tokenizer)}", f"{heads[1]:<{width}} {text}"]
    return "\n".join(lines)


def describe_tokens(ids: list[int] | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the number of tokens and their text, shortened, for a person to read."""
    if ids is None:
        return "known only to the rollout"
    text = tokenizer.decode(ids)
    cut = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"
    return f"{len(ids)} tokens, {cut!r}"
