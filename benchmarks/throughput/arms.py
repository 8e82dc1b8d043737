"""The arms: this library's trainer in a few settings and TRL's trainers, on the same models and completions."""

from dataclasses import dataclass
from typing import Any

import torch
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer
from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer
from trl.trainer.utils import add_fused_lm_head

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.pipeline import Method
from fire_opd_trl.scoring.heads import set_tiles
from fire_opd_trl.trainer.logs import no_reward

from .names import OURS
from .phases import CountedWorld, Counter, Stopwatch
from .replay import PAD, Replay, model_of, tokenizer_of
from .sizes import Size


ENTROPIES = ("teacher_logp_BT", "teacher_entropy_BT", "student_logp_BT", "student_entropy_BT")
# What this library's arms differ in. `opd_entropies` computes what `fire` reads, and uses none of it.
SETTINGS: dict[str, tuple[dict[str, Any], Method | None]] = {
    "fire": ({"method": "fire", "drop_fraction": 0.2}, None),
    "fire_keep_all": ({"method": "fire", "drop_fraction": 0.0}, None),
    "opd": ({"method": "opd"}, None),
    "opd_entropies": ({}, Method("opd_entropies", signals=ENTROPIES)),
    "opd_full": ({"method": "opd_full"}, None),
}


class GRPOWithTeacher(GRPOTrainer):
    """
    Distillation in GRPO's own layout: one rectangle as wide as the longest completion of the window, scored by
    teacher and student with their entropies in micro-batches of its rows, and trained in the same ones. The advantage
    is teacher minus student log-probability, nothing is dropped.
    """

    def __init__(self, teacher: torch.nn.Module, **kwargs: Any):
        super().__init__(reward_funcs=[no_reward], **kwargs)
        add_fused_lm_head(teacher, outputs=("log_probs", "entropy"))
        self.teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True)

    def token_scores(self, name: str, model: torch.nn.Module, batch: dict[str, Any]):
        """Log-probabilities and entropies of the window under a model, as GRPO scores its old policy."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width, rows = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        return self._get_per_token_logps_and_entropies(model, ids, mask, width, batch_size=rows, compute_entropy=True)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        with torch.no_grad():
            teacher_logp_BT, *_ = self.token_scores("teacher", self.teacher, batch)
            student_logp_BT, *_ = self.token_scores("student", self.model, batch)
        batch["advantages"] = teacher_logp_BT - student_logp_BT
        return batch


@dataclass
class ObservedTrainer:
    """The trainer of an arm, ready to train, with its student and with what observes the steps."""

    trainer: Any
    student: torch.nn.Module
    stopwatch: Stopwatch
    counter: Counter
    world: CountedWorld | None = None


def common_arguments(size: Size, folder: str, ranks: int) -> dict[str, Any]:
    """The arguments that the configurations of all arms share. `max_steps` is more than any benchmark asks for."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": size.batch,
        "gradient_accumulation_steps": size.accumulation(ranks),
        "max_completion_length": max(size.lengths),
        "max_steps": 1_000_000,
        "learning_rate": 1e-6,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "ddp_timeout": 600,
        "ddp_find_unused_parameters": False,
        **({"ddp_backend": "gloo"} if ranks > 1 else {}),
    }


def build_trainer(name: str, size: Size, ranks: int, student, teacher, tokenizer, replay: Replay, folder: str) -> Any:
    """
    Build the trainer of an arm.

    `distillation` runs teacher and student side by side in the loss, without a scoring pass, over rectangles as wide
    as the window's longest completion. `iw_opd` does so too, with the logits of whole sequences, prompts included; it
    samples micro-batch by micro-batch, so that its rectangles are as wide as the longest completion of their rows.
    """
    common = common_arguments(size, folder, ranks)
    given = {"model": student, "processing_class": tokenizer}
    if name in ("grpo_tiles", "distillation_tiles"):
        set_tiles(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if name in OURS:
        fields, method = SETTINGS[name]
        ours = FiReOPDConfig(**common, **fields, preflight=False, allow_guessing_teacher=True)
        return FiReOPDTrainer(**given, teacher_model=teacher, args=ours, method=method, train_dataset=replay.dataset())
    if name in ("grpo", "grpo_tiles"):
        grpo = GRPOConfig(**common, num_generations=2)
        grpo.num_generations = 1  # refused there because rewards need a group; here there are none
        return GRPOWithTeacher(teacher, **given, args=grpo, train_dataset=replay.dataset())
    if name in ("distillation", "distillation_tiles"):
        whole = DistillationConfig(**common)
        return DistillationTrainer(**given, teacher_model=teacher, args=whole, train_dataset=replay.dataset())
    teacher.config._name_or_path = folder  # where its tokenizer is
    weighted = IWOPDConfig(**common, top_p=1.0, max_length=size.prompt + max(size.lengths))
    return IWOPDTrainer(**given, teacher_model=teacher, args=weighted, train_dataset=replay.conversations())


def build_arm(name: str, size: Size, ranks: int, folder: str) -> ObservedTrainer:
    """
    Build the trainer of an arm, whose rollouts are replayed, phases timed and tokens counted.

    Args:
        name (`str`): One of [`~benchmarks.throughput.names.ARMS`].
        size ([`Size`]): Models and window.
        ranks (`int`): Processes that share the window.
        folder (`str`): Where the trainer may write.
    """
    student, teacher = model_of(size, seed=0), model_of(size, seed=1)
    tokenizer, replay = tokenizer_of(size, folder), Replay.of(size)
    backbones = student.base_model, teacher.base_model
    trainer = build_trainer(name, size, ranks, student, teacher, tokenizer, replay, folder)
    student.generate = replay.generate
    stopwatch = Stopwatch(trainer.accelerator.device)
    observed = ObservedTrainer(trainer, student, stopwatch, Counter(stopwatch, size.prompt, PAD))
    observed.counter.watch(backbones[0])
    observed.counter.watch(backbones[1], "teacher")
    if name in OURS:
        observed.world = trainer.world = CountedWorld(trainer.world)
        for scored_by, scorer in trainer.window_scorer.scorers.items():
            scorer.world = observed.world
            phase = "student" if scored_by == "student" else "teacher"
            stopwatch.time_method(scorer, "token_scores", phase)
        observed.world.count_as_statistics(trainer, "_generate_and_score_completions")
    elif name in ("grpo", "grpo_tiles"):
        stopwatch.time_method(trainer, "token_scores", lambda name, *a, **k: name)
    else:  # in the loss: the backbone alone, or the whole model; comparing the two is part of the update
        stopwatch.time_module(teacher if name == "iw_opd" else backbones[1], "teacher")
    stopwatch.time_method(trainer, "_generate_student_completions" if name == "iw_opd" else "_generate", "rollout")
    return observed
