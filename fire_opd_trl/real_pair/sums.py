"""
Sums in words for a real language model: `What is 47 + 8 - 5?`, answered with working and a boxed number.

A small model that has never seen such an answer writes anything but one. So it is shown an example in a turn before
the question. It may still write what it likes; the number in the last box counts.
"""

import random
import re
import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FIRST, OTHERS, TERMS = (10, 99), (1, 9), 3  # ranges of the first number and of the others, and how many numbers
EXAMPLE = (12, 9, -3)
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
MAX_COMPLETION_TOKENS = 64
SHRINK = 0.75  # the batch is made smaller when no more than this share of its rows is still being written
BOXED = re.compile(r"\\boxed\{\s*(-?\d+)\s*\}")


class Answer(NamedTuple):
    """One completion: its tokens with the end token, its text, and whether it ended by itself."""

    ids: list[int]
    text: str
    finished: bool


def problem(numbers: tuple[int, ...]) -> str:
    """Returns the question of a sum, such as `What is 47 + 8 - 5?` for `(47, 8, -5)`."""
    first, *rest = numbers
    return f"What is {first} " + " ".join(f"{'+' if n > 0 else '-'} {abs(n)}" for n in rest) + "?"


def worked(numbers: tuple[int, ...]) -> str:
    """Returns the solution that the teacher learns: `47 + 8 = 55`, `55 - 5 = 50`, and the number in a box."""
    total, lines = numbers[0], []
    for number in numbers[1:]:
        sign = "+" if number > 0 else "-"
        lines.append(f"{total} {sign} {abs(number)} = {total + number}")
        total += number
    return "\n".join([*lines, f"The answer is \\boxed{{{total}}}."])


def is_held_out(numbers: tuple[int, ...]) -> bool:
    """Says whether a sum is in the test split: a hash of the question decides, so the splits can never overlap."""
    return zlib.crc32(problem(numbers).encode()) % 10 == 0


def problems(split: Literal["sft", "train", "test"], count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """
    Returns distinct sums of one split, the same ones for the same arguments. `"sft"` and `"train"` share the nine
    tenths of all sums that are not held out, and are drawn by different seeds.
    """
    generator = random.Random(f"{split}-{seed}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        others = [generator.randint(*OTHERS) * generator.choice((1, -1)) for _ in range(TERMS - 1)]
        numbers = (generator.randint(*FIRST), *others)
        if is_held_out(numbers) == (split == "test"):
            drawn[numbers] = None
    return list(drawn)


def instructed(numbers: tuple[int, ...]) -> list[dict[str, str]]:
    """Returns a sum as the teacher learns it: with an instruction, as mathematics benchmarks ask, and no example."""
    return [{"role": "user", "content": problem(numbers) + INSTRUCTION}]


def turns() -> list[dict[str, str]]:
    """Returns what comes before each question: one question with its answer."""
    return [{"role": "user", "content": problem(EXAMPLE)}, {"role": "assistant", "content": worked(EXAMPLE)}]


def chat(numbers: tuple[int, ...]) -> list[dict[str, str]]:
    """Returns the prompt of a sum as a conversation."""
    return [*turns(), {"role": "user", "content": problem(numbers)}]


def is_correct(answer: str, text: str) -> bool:
    """Says whether the number in the last box of `text` is `answer`."""
    found = BOXED.findall(text)
    return bool(found) and found[-1] == answer


def exact_match(completions: list, answer: list[str], **columns: Any) -> list[float]:
    """Reward function for TRL: 1 where the number in the last box is right, 0 for anything else."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(is_correct(*pair)) for pair in zip(answer, texts, strict=True)]


def sample(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    temperature: float = 1.0,
    generator: "torch.Generator | None" = None,
    limit: int | None = None,
) -> list[Answer]:
    """
    Returns one answer for each prompt, from the full distribution. Rows that have ended leave the batch: when a
    few ramble on, the others no longer pay for them, which `generate` makes them do.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        prompts (`list[list[int]]`): The prompts' tokens.
        temperature (`float`): 0 takes the likeliest token.
        generator (`torch.Generator`, *optional*): Where chance comes from.
        limit (`int`, *optional*): The largest number of tokens of an answer, by default that of the training.
    """
    import torch
    from transformers import DynamicCache

    # A prompt that is there several times is read once.
    read = list(dict.fromkeys(map(tuple, prompts)))
    copies = torch.tensor([read.index(tuple(ids)) for ids in prompts])
    longest, ends = max(map(len, read)), tokenizer.eos_token_id
    tokens = torch.tensor([[tokenizer.pad_token_id] * (longest - len(ids)) + list(ids) for ids in read])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in read])
    place = mask.cumsum(1).sub(1).clamp_min(0)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the answers that the rows of the batch write
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        for _ in range(limit or MAX_COMPLETION_TOKENS):
            logits = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=place,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if len(logits) < len(rows):
                logits, place, mask = logits[copies], place[copies], mask[copies]
                cache.batch_select_indices(copies)
            if temperature:
                # By the cumulative distribution, which needs one random number a row: twenty times faster here than
                # torch.multinomial, which draws one for each token of the vocabulary.
                below = torch.softmax(logits.float() / temperature, -1).cumsum(-1)
                chance = torch.rand(len(rows), 1, generator=generator) * below[:, -1:]
                drawn = torch.searchsorted(below, chance, right=True).clamp_max(below.shape[1] - 1)
            else:
                drawn = logits.argmax(-1, keepdim=True)
            for row, token in zip(rows, drawn[:, 0].tolist(), strict=True):
                if not written[row] or written[row][-1] != ends:
                    written[row].append(token)
            going = [index for index, row in enumerate(rows) if written[row][-1] != ends]
            if not going:
                break
            tokens, place = drawn, place[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            if len(going) <= SHRINK * len(rows):
                rows = [rows[index] for index in going]
                kept = torch.tensor(going)
                tokens, place, mask = tokens[kept], place[kept], mask[kept]
                cache.batch_select_indices(kept)
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Answer(ids, text, ids[-1] == ends) for ids, text in zip(written, texts, strict=True)]
