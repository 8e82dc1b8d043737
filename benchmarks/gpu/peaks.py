"""Peak memory of a step by phase, rollouts by transformers, beside what `fire-opd plan` computes for it."""

import gc
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.throughput.arms import common_arguments
from benchmarks.throughput.memory import CLEAR, resident
from benchmarks.throughput.phases import PHASES, Stopwatch
from benchmarks.throughput.replay import Replay, tokenizer_of
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.preflight.plan.memory import memory
from fire_opd_trl.preflight.plan.run import PlannedRun, read_accelerate, run_of_arguments

from .models import Models
from .serving import CannotRun


STEPS = 2  # the second one has the optimizer's states from its beginning
RANK = 16
# What the plan calls the phases of the benchmark.
PLANNED = {"rollout": "rollout", "teacher": "teacher scoring", "student": "student scoring", "update": "update"}
# What each setting changes in a plain run of `fire`; `lora` gets an adapter beside it.
CHANGES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {},
    "whole": {"method": "opd_full"},
    "checkpoints": {"gradient_checkpointing": True},
}


class PeakWatch(Stopwatch):
    """A stopwatch that also keeps the peak of memory of each phase."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.peaks: dict[str, int] = {}

    def start(self) -> None:
        gc.collect()
        self.peaks = dict.fromkeys(PHASES, 0)
        reset_peak(self.device)
        super().start()

    def _turn(self) -> None:
        phase = self.open[-1]
        self.peaks[phase] = max(self.peaks[phase], peak(self.device))
        reset_peak(self.device)
        super()._turn()


def peak(device: torch.device) -> int:
    """The most bytes that were in use since the last reset: of CUDA's allocator, or of this process."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Begin a new peak at what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        CLEAR.write_text("5")


class Steps(TrainerCallback):
    """Starts the watch with every step, and keeps what it saw of the last one."""

    def __init__(self, watch: PeakWatch):
        self.watch = watch
        self.seconds: dict[str, float] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.watch.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = self.watch.stop()


def arguments(models: Models, setting: str, folder: str) -> FiReOPDConfig:
    """The run of a setting."""
    size = models.size
    values = {
        **common_arguments(size, folder, 1),
        "max_completion_length": longest(models),
        "method": "fire",
        "max_steps": STEPS,
        "use_cpu": models.device == "cpu",
        "bf16": True,
        "preflight": False,
        "allow_guessing_teacher": True,
        **CHANGES[setting],
    }
    return FiReOPDConfig(**values)


def longest(models: Models) -> int:
    """Tokens of every completion: random weights hardly ever end one."""
    return max(models.size.lengths)


def adapter_of(setting: str) -> Any:
    """The adapter's configuration, `None` where all weights are trained."""
    if setting != "lora":
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise CannotRun("peft is not installed") from error
    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")


def planned_run(models: Models, setting: str, folder: str) -> PlannedRun:
    """The same run as a plan sees it, from configurations alone. Every prompt and every completion is equally long."""
    for name, dtype in (("student", torch.float32), ("teacher", torch.bfloat16)):
        models.config(name, dtype).save_pretrained(f"{folder}/{name}")
    args = arguments(models, setting, folder)
    args.teacher_model_name_or_path = f"{folder}/teacher"
    parts = {"model": f"{folder}/student", "args": args, "peft_config": adapter_of(setting)}
    machine = {**read_accelerate(None), "device": models.device, "mixed_precision": "bf16"}
    prompt = models.size.prompt
    return run_of_arguments(parts, machine, prompts=(prompt, prompt), mean_completion=longest(models))


def measure(models: Models, setting: str) -> Iterator[dict[str, Any]]:
    """Yield one row: bytes by phase, measured, and computed by the plan."""
    device, adapter = torch.device(models.device), adapter_of(setting)
    with tempfile.TemporaryDirectory() as folder:
        planned = memory(planned_run(models, setting, folder))
    base = 0 if device.type == "cuda" else resident("VmRSS")  # Python and its libraries
    with tempfile.TemporaryDirectory() as folder:
        trainer = FiReOPDTrainer(
            models.student(),
            models.teacher(torch.bfloat16),
            arguments(models, setting, folder),
            Replay.of(models.size).dataset(),
            processing_class=tokenizer_of(models.size, folder),
            peft_config=adapter,
        )
        watch = PeakWatch(device)
        watch.time_method(trainer, "_generate", "rollout")
        for name, scorer in trainer.window_scorer.scorers.items():
            watch.time_method(scorer, "token_scores", "student" if name == "student" else "teacher")
        steps = Steps(watch)
        trainer.add_callback(steps)
        trainer.train()
    yield {
        "setting": setting,
        "phases": {phase: bytes_ - base for phase, bytes_ in watch.peaks.items()},
        "seconds": steps.seconds,
        "reserved": torch.cuda.max_memory_reserved() if device.type == "cuda" else None,
        "base": base,
        "planned": {phase: sum(planned[name].values()) for phase, name in PLANNED.items()},
    }
