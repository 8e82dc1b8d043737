"""What is measured: models with random weights that are large enough to be most of a process, and how they train."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fire_opd_trl.preflight.plan.run import PlannedRun, read_accelerate, run_of_arguments


HERE = Path(__file__).parent
CPU = HERE.parents[1] / "configs" / "accelerate" / "cpu.yaml"
ZERO3 = HERE / "zero3_cpu.yaml"


@dataclass(frozen=True)
class Model:
    """
    A Qwen3 model with random weights.

    Args:
        layers, hidden, intermediate, vocabulary (`int`): Its size; its heads have 64 numbers.
        tied (`bool`): Whether embeddings and head are one matrix.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int = 4096
    tied: bool = False

    def config(self) -> Any:
        """Its configuration."""
        from transformers import Qwen3Config

        heads = self.hidden // 64
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            head_dim=64,
            max_position_embeddings=4096,
            tie_word_embeddings=self.tied,
            architectures=["Qwen3ForCausalLM"],
            dtype="float32",
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )


@dataclass(frozen=True)
class Setting:
    """
    One row of the table.

    Args:
        name (`str`): Its name.
        what (`str`): What it changes, for the table.
        student, teacher ([`Model`]): The models.
        completions (`tuple[int, ...]`): Tokens of the completions, repeated until the window is full.
        prompt (`int`): Tokens of every prompt.
        rows, accumulation (`int`): Rows of a micro-batch and micro-batches of a step.
        zero3 (`bool`): Two ranks with ZeRO-3, in place of one process.
        lora (`int`): Rank of an adapter; 0 trains all weights.
        generate (`bool`): Whether transformers samples, where completions are otherwise given.
        arguments (`dict`): Further arguments of the configuration.
    """

    name: str
    what: str
    student: Model
    teacher: Model
    completions: tuple[int, ...] = (192,)
    prompt: int = 64
    rows: int = 4
    accumulation: int = 2
    zero3: bool = False
    lora: int = 0
    generate: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Tokens of the completions of a rank's window."""
        return list(itertools.islice(itertools.cycle(self.completions), self.rows * self.accumulation))

    def args(self, folder: str, teacher: str) -> Any:
        """The configuration of the trainer."""
        from fire_opd_trl import FiReOPDConfig

        return FiReOPDConfig(
            folder,
            teacher_model_name_or_path=teacher,
            **{
                "method": "opd",
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "per_device_train_batch_size": self.rows,
                "gradient_accumulation_steps": self.accumulation,
                "max_completion_length": max(self.completions),
                "max_steps": 2,
                "learning_rate": 1e-6,
                "allow_guessing_teacher": True,  # its weights are random
                "save_strategy": "no",
                "report_to": [],
                "print_metrics": "none",
                "on_sick": "ignore",
                "disable_tqdm": True,
                "seed": 1,
                "preflight": False,
                **self.arguments,
            },
        )

    def peft_config(self) -> Any:
        """The adapter."""
        if not self.lora:
            return None
        from peft import LoraConfig

        return LoraConfig(r=self.lora, target_modules="all-linear", task_type="CAUSAL_LM")

    def planned(self, folder: Path) -> PlannedRun:
        """What `plan` knows of it, from configurations in a folder and the arguments of the training."""
        names = {}
        for name, model in (("student", self.student), ("teacher", self.teacher)):
            names[name] = str(folder / name)
            if not (folder / name / "config.json").is_file():
                model.config().save_pretrained(folder / name)
        parts = {
            "model": names["student"],
            "args": self.args(str(folder / "output"), names["teacher"]),
            "peft_config": self.peft_config(),
            "quantization_config": None,
        }
        lengths = self.lengths
        return run_of_arguments(
            parts,
            read_accelerate(ZERO3 if self.zero3 else CPU),
            prompts=(self.prompt, self.prompt),
            mean_completion=sum(lengths) / len(lengths),
        )


SMALL, MIDDLE, LARGE = Model(8, 512, 2048), Model(10, 768, 3072), Model(12, 1024, 4096)
WIDE = Model(4, 512, 1536, vocabulary=96000)
TIED = Model(4, 512, 1536, vocabulary=96000, tied=True)
AGAIN: dict[str, Any] = {"arguments": {"gradient_checkpointing": True}}
WHOLE: dict[str, Any] = {"arguments": {"method": "opd_full"}}
TOP_K: dict[str, Any] = {"arguments": {"method": "eopd", "method_kwargs": {"top_k": 64, "threshold": 0.0}}}
STREAMED: dict[str, Any] = {"arguments": {"teacher_placement": "offload"}}
REPLICA: dict[str, Any] = {"arguments": {"teacher_placement": "replicated"}}
SHARDED: dict[str, Any] = {"completions": (32,), "rows": 1, "accumulation": 1, "zero3": True}
NOTHING = Model(1, 128, 128, vocabulary=256)
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("nothing", "models of 1 MB: what a process takes for itself", NOTHING, NOTHING, (8,), 8, 1, 1),
        Setting("nothing-zero3", "the same on each of two ranks", NOTHING, NOTHING, (8,), 8, 1, 1, zero3=True),
        Setting("base", "a student of 36 M parameters, a teacher of 95 M", SMALL, MIDDLE),
        Setting("large-student", "a student of 197 M", LARGE, SMALL, (64,), rows=1),
        Setting("checkpointing", "layers are computed twice", SMALL, MIDDLE, rows=8, accumulation=1, **AGAIN),
        Setting("split", "one row in each of four micro-batches", SMALL, MIDDLE, (64,), rows=1, accumulation=4),
        Setting("long", "completions of 1024 tokens", SMALL, SMALL, (1024,), rows=1, accumulation=1),
        Setting("uneven", "completions of 32, 64, 128 and 512 tokens", SMALL, SMALL, (32, 64, 128, 512), rows=2),
        Setting("vocabulary", "96 000 tokens: 98 M of 110 M parameters", WIDE, WIDE, rows=2),
        Setting("tied", "the same, the student's head is its embeddings", TIED, WIDE, (64,), rows=2),
        Setting("lora", "an adapter of rank 16 on the large student", LARGE, SMALL, lora=16),
        Setting("whole", "whole distributions (opd_full)", WIDE, WIDE, (64,), rows=2, accumulation=1, **WHOLE),
        Setting("top-k", "the teacher's top 64 (eopd)", SMALL, MIDDLE, (64,), rows=2, **TOP_K),
        Setting("streamed", "the teacher stays in its files", SMALL, MIDDLE, (64,), rows=2, **STREAMED),
        Setting("generate", "transformers samples 24 rows", SMALL, SMALL, (48,), 32, 2, 12, generate=True),
        Setting(
            "zero3", "ZeRO-3 on two ranks, both models of 197 M", LARGE, LARGE, rows=2, accumulation=1, zero3=True
        ),
        Setting("zero3-replica", "ZeRO-3, the teacher whole on each rank", SMALL, MIDDLE, **SHARDED, **REPLICA),
        Setting("zero3-whole", "ZeRO-3, whole distributions", WIDE, WIDE, **SHARDED, **WHOLE),
    )
}
