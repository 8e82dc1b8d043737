"""What a prompt may be, and which tokens a model reads for it."""

from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNNAMED = "teacher"  # a single teacher that was given without a name
ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")


def refuse_malformed(
    row: dict[str, Any], index: int, name: str, column: str = "prompt", pictured: bool = False
) -> None:
    """
    Refuse a prompt that is neither a string with more than spaces nor a list of messages with known roles that say
    something. A user may say nothing beside pictures (`pictured`), which have a column of their own.
    """
    where = f"{name} row {index}"
    if row.get(column) is None:
        raise ValueError(f"{where}: `{column}` is missing. Give a string or a list of messages.")
    prompt = row[column]
    if isinstance(prompt, str):
        if is_blank(prompt):
            what = "holds nothing but spaces" if prompt else "is empty"
            raise ValueError(f"{where}: `{column}` {what}. Give a string or a list of messages, or remove the row.")
        return
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"{where}: `{column}` is {prompt!r}. Give a string or a non-empty list of messages.")
    for message in prompt:
        if not isinstance(message, dict) or (message.get("content") is None and not message.get("tool_calls")):
            raise ValueError(f"{where}: the message {message!r} has no `content`. Give each a `role` and a `content`.")
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}: the role {message.get('role')!r} is unknown. Use one of: {', '.join(ROLES)}.")
    of_user = [message.get("content") for message in prompt if message["role"] == "user"]
    if not pictured and all(map(is_blank, of_user or [message.get("content") for message in prompt])):
        says = "the user says nothing" if of_user else "no message says anything"
        raise ValueError(f"{where}: `{column}` is empty: {says}. Remove the row.")
    if prompt[-1]["role"] == "assistant":
        raise ValueError(f"{where}: the last message is the assistant's. The student writes it; end with the user's.")


def is_blank(content: Any) -> bool:
    """Returns whether the content of a message is blank text, or a list of nothing but that."""
    if isinstance(content, list):
        return all(isinstance(part, dict) and is_blank(part.get("text")) for part in content)
    return isinstance(content, str) and not content.strip()


def refuse_unrouted(row: dict[str, Any], index: int, name: str, column: str, teachers: list[str]) -> None:
    """
    Refuse a row that does not name one of several teachers. There is no default, because a wrong teacher would go
    unnoticed. A single teacher needs no column; but where it has a name and the column exists, the two must agree.
    """
    alone = len(teachers) == 1 and (teachers == [UNNAMED] or column not in row)
    if not alone and row.get(column) not in teachers:
        raise ValueError(
            f"{name} row {index}: `{column}` is {row.get(column)!r}. Each row names one of: {', '.join(teachers)}."
        )


def teacher_of(row: dict[str, Any], column: str, names: list[str]) -> str:
    """Returns the name of a row's teacher. With a single teacher the column need not exist."""
    return names[0] if len(names) == 1 else row[column]


def prompt_ids(
    prompts: list[Any],
    tokenizer: "PreTrainedTokenizerBase",
    template: str | None = None,
    template_kwargs: dict[str, Any] | None = None,
    tools: list | None = None,
    whose: str = "the tokenizer",
) -> list[list[int]]:
    """
    Returns the tokens of prompts as a model reads them: a text as it is, messages through a chat template.

    Args:
        template (`str`, *optional*): A chat template in place of the tokenizer's.
        whose (`str`): What to call the tokenizer in an error.
    """
    ids: list[list[int]] = [[]] * len(prompts)
    texts = [row for row, prompt in enumerate(prompts) if isinstance(prompt, str)]
    chats = [row for row, prompt in enumerate(prompts) if not isinstance(prompt, str)]
    if chats and template is None and tokenizer.chat_template is None:
        raise ValueError(
            f"the prompts are messages, and {whose} has no chat template that could render them. Give the "
            "prompts as texts, or put the template of a model of its kind beside the tokenizer's files, as "
            "chat_template.jinja; in Python, pass a processing_class whose tokenizer.chat_template is set."
        )
    try:
        rendered = [
            tokenizer.apply_chat_template(
                prompts[row],
                tools=tools or None,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
                **(template_kwargs or {}),
            )
            for row in chats
        ]
    except TemplateError as error:
        raise ValueError(f"the chat template cannot render a prompt: {error}.") from error
    # A template writes the special tokens itself; to a text the tokenizer adds those that it adds to every text.
    for rows, written, special in ((texts, [prompts[row] for row in texts], True), (chats, rendered, False)):
        if rows:
            encoded = tokenizer(written, add_special_tokens=special)["input_ids"]
            for row, values in zip(rows, encoded, strict=True):
                ids[row] = values
    return ids
