"""The dataset, checked before a model is loaded: every fault is named with its row."""

import warnings
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")


def refuse_malformed(row: dict[str, Any], index: int, name: str) -> None:
    """A prompt is a non-empty string, or a non-empty list of messages with a known role each."""
    where = f"{name} row {index}"
    if row.get("prompt") is None:
        raise ValueError(f"{where}: `prompt` is missing. Give a string or a list of messages.")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError(f"{where}: `prompt` is empty. Give a string or a list of messages, or remove the row.")
        return
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"{where}: `prompt` is {prompt!r}. Give a string or a non-empty list of messages.")
    for message in prompt:
        if not isinstance(message, dict) or (message.get("content") is None and not message.get("tool_calls")):
            raise ValueError(f"{where}: the message {message!r} has no `content`. Give each a `role` and a `content`.")
        if message.get("role") not in ROLES:
            raise ValueError(f"{where}: the role {message.get('role')!r} is unknown. Use one of: {', '.join(ROLES)}.")
    if prompt[-1]["role"] == "assistant":
        raise ValueError(f"{where}: the last message is the assistant's. The student writes it; end with the user's.")


def refuse_unrouted(row: dict[str, Any], index: int, name: str, column: str, teachers: list[str]) -> None:
    """With several teachers each row names one of them; there is no default, a wrong teacher would go unnoticed."""
    if row.get(column) not in teachers:
        raise ValueError(
            f"{name} row {index}: `{column}` is {row.get(column)!r}. With several teachers each row names one of: "
            f"{', '.join(teachers)}."
        )


def prompt_length(prompt: Any, tokenizer: "PreTrainedTokenizerBase", template_kwargs: dict[str, Any]) -> int:
    """Tokens of the prompt as the student will see it."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **template_kwargs)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def checked_dataset(
    dataset: "Dataset",
    name: str,
    *,
    tokenizer: "PreTrainedTokenizerBase | None",
    template_kwargs: dict[str, Any],
    limit: int | None,
    overlong: str,
    column: str,
    teachers: list[str],
) -> "Dataset":
    """
    The dataset with every row checked, without the rows that are too long if those are to be dropped.

    Args:
        name (`str`): What to call the dataset in an error.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Counts prompt tokens; `None` skips lengths (images, custom
            rollouts), whose prompts only the rollout knows.
        limit (`int`, *optional*): Longest prompt in tokens.
        overlong (`str`): `"error"` or `"drop"`.
        column, teachers: The routing column and the names it may hold.
    """
    fitting = []
    if "prompt" not in dataset.column_names:
        refuse_malformed({}, 0, name)
    columns = ["prompt", *([column] if column in dataset.column_names else [])]
    read = dataset.select_columns(columns)  # images are not decoded for this
    for index, row in enumerate(tqdm(read, desc=f"checking {name}", disable=len(dataset) < 5000)):
        refuse_malformed(row, index, name)
        if len(teachers) > 1:
            refuse_unrouted(row, index, name, column, teachers)
        if tokenizer is not None:
            length = prompt_length(row["prompt"], tokenizer, template_kwargs)
            if length == 0:
                raise ValueError(f"{name} row {index}: `prompt` has no token. Remove the row.")
            if limit is not None and length > limit:
                if overlong == "drop":
                    continue
                raise ValueError(
                    f"{name} row {index}: the prompt has {length} tokens, and {limit} fit (max_prompt_length, or the "
                    "models' context beside max_completion_length). Prompts are never cut: shorten it, lower "
                    "max_completion_length, or set overlong_prompts='drop'."
                )
        fitting.append(index)
    if len(fitting) < len(dataset):
        warnings.warn(
            f"{name}: {len(dataset) - len(fitting)} of {len(dataset)} rows left out, their prompts are longer than "
            f"{limit} tokens (overlong_prompts='drop').",
            stacklevel=2,
        )
        dataset = dataset.select(fitting)
    return dataset


def refuse_less_than_a_window(dataset: "Dataset", prompts: int) -> None:
    """A dataset smaller than one window would give no step at all, in silence."""
    if len(dataset) < prompts:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, and one window takes {prompts} prompts. Lower "
            "gradient_accumulation_steps or per_device_train_batch_size, or give more rows."
        )
