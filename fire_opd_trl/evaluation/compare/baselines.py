"""Arguments of TRL's own trainers in a comparison, and the order of the prompts in every arm."""

from types import ModuleType
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOConfig, SFTConfig


def common_arguments(setting: ModuleType, output_dir: str, steps: int, seed: int) -> dict[str, Any]:
    """
    The training arguments that all arms share, whatever their trainer.

    Args:
        setting (`ModuleType`): What is learned: `embedded` or `real`.
        output_dir (`str`): Where the trainer may write.
        steps (`int`): Updates.
        seed (`int`): Seed of the training.
    """
    return {
        "bf16": False,
        **setting.TRAINING,
        "output_dir": output_dir,
        "max_steps": steps,
        "seed": seed,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def prompts(setting: ModuleType, steps: int, seed: int, generations: int = 1) -> "Dataset":
    """
    The prompts of a run in the order of its updates. An update with several completions for each prompt takes the
    first prompts of the update with one.

    Args:
        setting (`ModuleType`): What is learned: `embedded` or `real`.
        steps (`int`): Updates.
        seed (`int`): Seed of the draw.
        generations (`int`, *optional*, defaults to `1`): Completions for each prompt.
    """
    rows = setting.prompts(steps * setting.ROWS, seed)
    kept = setting.ROWS // generations
    return rows.select([row for row in range(len(rows)) if row % setting.ROWS < kept])


def sft_config(setting: ModuleType, output_dir: str, steps: int, seed: int, **changes: Any) -> "SFTConfig":
    """
    TRL's SFTConfig: as many rows in as many updates as the on-policy arms have.

    Args:
        setting (`ModuleType`): What is learned: `embedded` or `real`.
        output_dir (`str`): Where the trainer may write.
        steps (`int`): Updates.
        seed (`int`): Seed of the training.
        changes (*optional*): Further fields.
    """
    from trl import SFTConfig

    arguments = common_arguments(setting, output_dir, steps, seed)
    del arguments["max_completion_length"]  # the teacher has written already
    arguments |= {"completion_only_loss": True, "train_sampling_strategy": "sequential"}
    return SFTConfig(**{**arguments, **changes})


def grpo_config(setting: ModuleType, output_dir: str, steps: int, seed: int, **changes: Any) -> "GRPOConfig":
    """
    TRL's GRPOConfig: a right answer is worth 1, and nothing holds the policy to a reference.

    Args:
        setting (`ModuleType`): What is learned: `embedded` or `real`.
        output_dir (`str`): Where the trainer may write.
        steps (`int`): Updates.
        seed (`int`): Seed of the training.
        changes (*optional*): Further fields.
    """
    from trl import GRPOConfig

    arguments = {**common_arguments(setting, output_dir, steps, seed), "num_generations": 4, "beta": 0.0}
    return GRPOConfig(**{**arguments, "shuffle_dataset": False, **changes})
