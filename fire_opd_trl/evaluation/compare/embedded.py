"""The embedded task, as a setting of a comparison: two models of the package, and additions of two numbers."""

from typing import TYPE_CHECKING, Any

from ...demo import task
from ...demo.run import SETTINGS, model_path


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 128  # completions in an update, in every arm
TRAINING: dict[str, Any] = {**SETTINGS, "per_device_train_batch_size": ROWS}
LOGGED: dict[str, str] = {}
EACH_SEED_HAS_PROBLEMS = True
exact_match = task.exact_match


def load(name: str, folder: Any = None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the embedded `"teacher"` or `"student"` and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(model_path(name))


def held_out_problems(count: int, seed: int) -> list[tuple[int, int]]:
    """Return the test problems of a seed. A point of the learning curve takes the first few of them."""
    return task.problems("test", count, seed=seed)


def accuracy(model, tokenizer, problems: list[tuple[int, int]], temperature: float = 1.0, seed: int = 0) -> float:
    """Return the share of problems that one answer solves."""
    return task.accuracy(model, tokenizer, problems, temperature=temperature, seed=seed)


def measured(model, tokenizer, problems: list[tuple[int, int]], seed: int) -> tuple[float, dict[str, Any]]:
    """Return the accuracy at temperature 1, and nothing that is written beside it."""
    return accuracy(model, tokenizer, problems, seed=seed), {}


def prompts(rows: int, seed: int) -> "Dataset":
    """Return the prompts of a run, with the right answers."""
    return task.dataset("train", rows, seed=seed)


def completed(teacher, tokenizer, rows: "Dataset", seed: int) -> "Dataset":
    """Return prompts with one completion each that the teacher has sampled: the rows of supervised fine-tuning."""
    completions = task.sampled_completions(teacher, tokenizer, list(rows["prompt"]), seed=seed)
    return rows.select_columns(["prompt"]).add_column("completion", completions)


def rollouts(student: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", seed: int) -> None:
    """Say that the trainer samples by itself."""


def prepare(folder: Any) -> None:
    """Do nothing before the runs: the models lie in the package."""
