"""What is looked for in one prompt, whatever the other rows hold."""

import json
import re
from typing import Any

from ..evaluation.evaluate.prompts import INSTRUCTION


LOST = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f]")
LONG_ANSWER = 6  # signs: a shorter answer stands in many problems by chance
TEXT, CHAT, OTHER = "text", "chat", "other"


def form_of(prompt: Any) -> str:
    """Returns whether a prompt is a text, a chat (a list of messages) or something else."""
    return TEXT if isinstance(prompt, str) else CHAT if isinstance(prompt, list) and prompt else OTHER


def contents(prompt: Any, roles: tuple[str, ...] | None = None) -> list[str]:
    """Returns the texts in a prompt, of messages those of some roles; of a list of parts those that are text."""
    if isinstance(prompt, str):
        return [prompt]
    texts = []
    for message in prompt if isinstance(prompt, list) else []:
        if not isinstance(message, dict) or roles is not None and message.get("role") not in roles:
            continue
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        texts += [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def text_of(prompt: Any) -> str:
    """
    Returns the problem in a prompt, to compare it with others: what the user says, without the usual instruction to
    put the answer into a box.
    """
    texts = contents(prompt, ("user",)) or contents(prompt)
    return "\n".join(texts).strip().removesuffix(INSTRUCTION).strip()


def oddities(prompt: Any, answer: Any, markers: re.Pattern | None) -> dict[str, str]:
    """
    Returns what is odd about a sound prompt, each kind with what was seen: it can be meant, and more often is not.

    Args:
        answer: The row's answer, if it has one.
        markers (`re.Pattern`, *optional*): The special tokens of the tokenizers.
    """
    texts, found = contents(prompt), {}
    if any(not isinstance(message.get("content"), str | list | None) for message in messages_of(prompt)):
        found["cells"] = "the content of a message is no text"
    for text in texts:
        if text != text.strip():
            shown = text[:20] if text[:1].isspace() else text[-20:]
            found.setdefault("spaces", f"it begins or ends with spaces or line ends ({shown!r})")
        if lost := LOST.search(text):
            found.setdefault("signs", f"it holds {lost[0]!r}, as where a file was read in another encoding")
        if markers is not None and (seen := markers.search(text)):
            found.setdefault("special tokens", f"it holds {seen[0]!r}, a special token of the tokenizer")
        if text.lstrip()[:2] == "[{" and is_json(text):
            found.setdefault("messages as text", "it is a list of messages that was saved as text; save it as JSONL")
    told = str(answer).strip() if isinstance(answer, str | int | float) and answer is not None else ""
    if len(told) >= LONG_ANSWER and any(told in text for text in texts):
        found["answers"] = f"it holds its own answer ({told[:40]!r})"
    return found


def messages_of(prompt: Any) -> list[dict[str, Any]]:
    """Returns the messages of a chat, and none of a text."""
    return [message for message in prompt if isinstance(message, dict)] if isinstance(prompt, list) else []


def is_json(text: str) -> bool:
    """Returns whether a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
