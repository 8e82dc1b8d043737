"""Addition with working: a task so small that two CPU cores sample and score it in seconds.

The prompt `437+85=` is answered column by column, units first: two digits and the carry in, then the carry out and the
digit of the sum. The sum follows a semicolon:

    7+5+0=12,3+8+1=12,4+0+1=05;522

The text is a function of the prompt, so a sampled completion is either right or wrong and needs no judge. All three
columns are written even where a number has run out of digits, so a completion is 30 to 32 tokens with its end token.
"""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


if TYPE_CHECKING:
    from datasets import Dataset

SMALLEST, LARGEST, COLUMNS = 10, 999, 3
LARGEST_DRAW = {"train": 800_000, "test": 80_000}  # of about 882 000 and 98 000 pairs
MAX_COMPLETION_TOKENS = 32
CHARACTERS = "0123456789+=,;"
PAD, EOS = "<pad>", "<eos>"


def prompt(a: int, b: int) -> str:
    """Returns the question, such as `437+85=`."""
    return f"{a}+{b}="


def working(a: int, b: int) -> str:
    """
    Returns the full completion of `prompt(a, b)`, without the end token.

    Args:
        a (`int`):
            The first number, at most three digits.
        b (`int`):
            The second number, at most three digits.

    Returns:
        `str`: The three columns, units first, and the sum: `7+5+0=12,3+8+1=12,4+0+1=05;522` for 437 and 85.
    """
    columns, carry = [], 0
    for column in range(COLUMNS):
        x, y = a // 10**column % 10, b // 10**column % 10
        total = x + y + carry
        columns.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return f"{','.join(columns)};{a + b}"


def is_held_out(a: int, b: int) -> bool:
    """Says whether a pair is in the test split: a hash of the pair alone decides, so the splits can never overlap."""
    return zlib.crc32(prompt(a, b).encode()) % 10 == 0


def problems(split: Literal["train", "test"], count: int, seed: int = 0) -> list[tuple[int, int]]:
    """
    Returns distinct pairs of numbers of one split, the same pairs for the same arguments.

    Args:
        split (`str`):
            `"train"`, nine tenths of all pairs, or `"test"`, the tenth that is held out.
        count (`int`):
            How many pairs, at most 800 000 for training and 80 000 for the test.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.

    Returns:
        `list[tuple[int, int]]`: The pairs, each number between 10 and 999.
    """
    if split not in LARGEST_DRAW:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    if count > LARGEST_DRAW[split]:
        raise ValueError(f"at most {LARGEST_DRAW[split]} distinct {split} problems can be drawn, not {count}")
    generator = random.Random(f"{split}-{seed}")
    pairs: dict[tuple[int, int], None] = {}  # a dict keeps the order of the draw, which a set would not
    while len(pairs) < count:
        a, b = generator.randint(SMALLEST, LARGEST), generator.randint(SMALLEST, LARGEST)
        if is_held_out(a, b) == (split == "test"):
            pairs[a, b] = None
    return list(pairs)


def dataset(split: Literal["train", "test"], count: int, seed: int = 0) -> Dataset:
    """
    Returns the problems of [`problems`] as the prompt-only dataset that TRL's online trainers read.

    Args:
        split (`str`):
            `"train"` or `"test"`.
        count (`int`):
            How many rows.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.

    Returns:
        `Dataset`: The columns are `prompt`, plain text, and `answer`, the sum as text, which [`exact_match`] reads.
    """
    from datasets import Dataset  # slow to import, and sampling and scoring do without it

    pairs = problems(split, count, seed)
    return Dataset.from_dict({"prompt": [prompt(a, b) for a, b in pairs], "answer": [str(a + b) for a, b in pairs]})


def is_correct(answer: str, completion: str) -> bool:
    """Says whether what follows the last semicolon of `completion` is `answer`. The columns before it do not count."""
    _, semicolon, final = completion.rpartition(";")
    return bool(semicolon) and final == answer


def exact_match(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """
    Reward function for TRL: 1 for a right final answer, 0 for anything else.

    Args:
        completions (`list[str]`):
            Sampled completions as plain text, special tokens stripped.
        answer (`list[str]`):
            The right sums, the `answer` column of [`dataset`].
        **kwargs:
            What else TRL passes (prompts, token ids, other columns). Ignored.

    Returns:
        `list[float]`: One reward a completion.
    """
    return [float(is_correct(*pair)) for pair in zip(answer, completions, strict=True)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Returns the tokenizer of both models: sixteen tokens, one a character, and the padding and end tokens.

    A byte-pair model without merges splits into single characters and drops those it does not know. There is no
    beginning token, and nothing is added to a prompt.
    """
    tokens = [PAD, EOS, *CHARACTERS]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    core.decoder = decoders.Fuse()  # without it, decoding puts a space between tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


@torch.no_grad()
def sampled_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    temperature: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
) -> list[str]:
    """
    Returns one completion a prompt, sampled from the full distribution of `model`.

    The model's mode and the global random state are left as they were.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model to sample.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, padding on the left.
        prompts (`list[str]`):
            The prompts.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; `0` takes the likeliest token.
        batch_size (`int`, *optional*, defaults to `256`):
            Prompts sampled at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.

    Returns:
        `list[str]`: The completions as plain text, in the order of the prompts.
    """
    # Without top_k=0 and top_p=1 a generation config could cut the distribution.
    sampling = (
        dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else {"do_sample": False}
    )
    was_training, completions = model.training, []
    model.eval()
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                batch = tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True)
                output = model.generate(
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                    max_new_tokens=MAX_COMPLETION_TOKENS,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    **sampling,
                )
                new_tokens = output[:, batch["input_ids"].shape[1] :]
                completions += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    finally:
        model.train(was_training)
    return completions


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[int, int]],
    temperature: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """
    Returns the share of problems that `model` answers exactly, one sample a problem.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model to measure.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, padding on the left.
        pairs (`list[tuple[int, int]]`):
            Problems from [`problems`].
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; `0` takes the likeliest token.
        batch_size (`int`, *optional*, defaults to `256`):
            Problems sampled at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.

    Returns:
        `float`: Right answers over problems.
    """
    prompts = [prompt(a, b) for a, b in pairs]
    completions = sampled_completions(model, tokenizer, prompts, temperature, batch_size, seed)
    return sum(exact_match(completions, [str(a + b) for a, b in pairs])) / len(pairs)
