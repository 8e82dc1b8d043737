"""The pair of examples/smollm2.py, made sick on purpose: small windows, and one thing wrong in each run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset


WORDS = "apple river seven green house paper happy winter music table".split()
ROWS, STEPS, LONGEST = 4, 24, 48


@dataclass(frozen=True)
class Sick:
    """
    A run in which something is wrong.

    Args:
        what (`str`): What was done, for a reader.
        expected (`tuple[str]`): The watchdogs that are there for it.
        changes (`dict`): Fields of the configuration.
        prompts (`Callable`): Makes its prompts out of the usual ones.
    """

    what: str
    expected: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    prompts: Callable[[Dataset], Dataset] = lambda data: data


def to_be_repeated(data: Dataset) -> Dataset:
    """Returns the prompts, of which every second one asks for a loop."""

    def ask(row: dict[str, Any], number: int) -> dict[str, Any]:
        if number % 2:
            word = WORDS[number // 2 % len(WORDS)]
            row["prompt"] = [
                {"role": "user", "content": f"Write the word {word} one hundred times: {word} {word} {word}"}
            ]
        return row

    return data.map(ask, with_indices=True)


SICK = {
    "cut": Sick(
        "answers may have 16 tokens",
        ("truncated",),
        {"max_completion_length": 16, "max_steps": 12},
    ),
    "rate": Sick(
        "the learning rate is 8 times that of the good run",
        ("entropy_collapse", "length_collapse", "kl_rising"),
        {"learning_rate": 8 * 5e-5},
    ),
    "loops": Sick(
        "half of the prompts ask for a word one hundred times; half of the answers are dropped",
        ("loops_kept",),
        {"drop_fraction": 0.5, "max_steps": 18},
        to_be_repeated,
    ),
    "template": Sick(
        "the teacher reads the question alone, without the marks of a chat, after which it has never ended an answer",
        ("end_tokens",),
        {
            "teacher_chat_template": "{% for message in messages %}{{ message.content }}\n{% endfor %}",
            "per_device_train_batch_size": 6,
            "max_completion_length": 80,  # so that answers end in at least twenty windows
        },
    ),
}
# What all of them share: windows of sums alone that a CPU computes in seconds, and no files but logs and answers.
COMMON = {
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "max_completion_length": LONGEST,
    "log_rollouts": 4,
    "save_strategy": "no",
    "shuffle_dataset": False,
}
