"""Arguments of TRL's own trainers on the embedded task, their prompts, and completions that a teacher writes."""

from typing import TYPE_CHECKING, Any

from ...demo.run import SETTINGS


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, SFTConfig

ROWS = 128  # completions in an update, in every arm
TRAINING = {**SETTINGS, "per_device_train_batch_size": ROWS}


def common_arguments(output_dir: str, steps: int, seed: int) -> dict[str, Any]:
    """
    The training arguments that all arms share, whatever their trainer.

    Args:
        output_dir (`str`): Where the trainer may write.
        steps (`int`): Updates.
        seed (`int`): Seed of the training.
    """
    return {
        **TRAINING,
        "output_dir": output_dir,
        "max_steps": steps,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def prompts(steps: int, seed: int, generations: int = 1) -> "Dataset":
    """
    The prompts of a run in the order of its updates. An update with several completions for each prompt takes the
    first prompts of the update with one.

    Args:
        steps (`int`): Updates.
        seed (`int`): Seed of the draw.
        generations (`int`, *optional*, defaults to `1`): Completions for each prompt.
    """
    from ...demo import task

    rows = task.dataset("train", steps * ROWS, seed=seed)
    return rows.select([row for row in range(len(rows)) if row % ROWS < ROWS // generations])


def add_completions(
    teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", seed: int
) -> "Dataset":
    """
    Sample one completion of the teacher for each prompt, and return both: the rows of supervised fine-tuning.

    Args:
        teacher ([`~transformers.PreTrainedModel`]): The model that writes.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        rows (`Dataset`): Rows with a `prompt`.
        seed (`int`): Seed of the sampling.
    """
    from ...demo import task

    completions = task.sampled_completions(teacher, tokenizer, list(rows["prompt"]), seed=seed)
    return rows.select_columns(["prompt"]).add_column("completion", completions)


def sft_config(output_dir: str, steps: int, seed: int, **changes: Any) -> "SFTConfig":
    """
    TRL's SFTConfig for the embedded task: as many rows in as many updates as the on-policy arms have.

    Args:
        output_dir (`str`): Where the trainer may write.
        steps (`int`): Updates.
        seed (`int`): Seed of the training.
        changes (*optional*): Further fields.
    """
    from trl import SFTConfig

    arguments = common_arguments(output_dir, steps, seed)
    del arguments["max_completion_length"]  # the teacher has written already
    arguments |= {"completion_only_loss": True, "train_sampling_strategy": "sequential"}
    return SFTConfig(**{**arguments, **changes})


def grpo_config(output_dir: str, steps: int, seed: int, **changes: Any) -> "GRPOConfig":
    """
    TRL's GRPOConfig for the embedded task: a right answer is worth 1, and nothing holds the policy to a reference.

    Args:
        output_dir (`str`): Where the trainer may write.
        steps (`int`): Updates.
        seed (`int`): Seed of the training.
        changes (*optional*): Further fields.
    """
    from trl import GRPOConfig

    arguments = {**common_arguments(output_dir, steps, seed), "num_generations": 4, "beta": 0.0}
    return GRPOConfig(**{**arguments, "shuffle_dataset": False, **changes})
