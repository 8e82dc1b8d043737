"""Two steps with vLLM in the trainer's process: its memory awake and asleep, its agreement, the time of each phase."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.throughput.arms import common_arguments
from benchmarks.throughput.memory import resident
from benchmarks.throughput.replay import Replay, tokenizer_of
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer

from .models import Models
from .serving import CannotRun


PLUGIN = Path(__file__).parents[2] / "tests" / "engine" / "plugin"
STEPS = 2
SHARE = 0.3  # of the GPU's memory that the engine takes while it is awake
METRICS = ("fire/sampling_gap", "fire/sampling_kl", "fire/sampling_unknown")


def measure(models: Models, work: str) -> Iterator[dict[str, Any]]:
    """
    Yield a row for each step with what the trainer logged, and one with the memory in use at each point.

    Args:
        models ([`Models`]): The models.
        work (`str`): The folder where the engine finds the student.
    """
    if find_spec("vllm") is None:
        raise CannotRun(
            "vLLM is not installed: `pip install fire-opd-trl[vllm]`, which `make gpu` does on a machine with a GPU"
        )
    sleeps = models.device == "cuda"
    if not sleeps:
        sys.path.insert(0, str(PLUGIN))  # vLLM's CPU backend packs weights, and would not see later ones
    folder = saved(models, Path(work) / "engine-model")
    arguments = {
        **common_arguments(models.size, str(Path(work) / "engine-run"), 1),
        "method": "fire",
        "max_steps": STEPS,
        "use_cpu": not sleeps,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "preflight": False,
        "allow_guessing_teacher": True,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": sleeps,
        "vllm_gpu_memory_utilization": SHARE,
        "vllm_max_model_length": models.size.prompt + max(models.size.lengths) + 16,
    }
    used = {"before": used_memory(models.device)}
    trainer = FiReOPDTrainer(
        folder,
        models.teacher(torch.bfloat16),
        FiReOPDConfig(**arguments),
        Replay.of(models.size).dataset(),
        processing_class=tokenizer_of(models.size, folder),
    )
    used["built"] = used_memory(models.device)
    noting_memory(trainer, used, models.device)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "fire/sampling_gap" in log]
    for number, log in enumerate(logs, 1):
        times = {name.removeprefix("time/"): value for name, value in log.items() if name.startswith("time/")}
        yield {
            "step": number,
            **{name: log[name] for name in METRICS},
            "seconds": log.get("step_time"),
            "times": times,
        }
    yield {"memory": used, "sleeps": sleeps, "limit": trainer.args.sampling_gap_limit}
    if len(logs) < STEPS:
        raise RuntimeError(f"{len(logs)} of {STEPS} steps logged how far engine and trainer are apart")


def saved(models: Models, folder: Path) -> str:
    """A folder with the student and a tokenizer, as vLLM wants one."""
    models.student(torch.bfloat16).save_pretrained(folder)  # in which the engine samples; training loads float32
    tokenizer_of(models.size, str(folder))
    return str(folder)


def used_memory(device: str) -> int:
    """Bytes in use on the whole GPU, since the engine has an allocator of its own; without one, of this process."""
    if device != "cuda":
        return resident("VmRSS")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def noting_memory(trainer: FiReOPDTrainer, used: dict[str, int], device: str) -> None:
    """Let the memory in use be noted when the engine has sampled, and when a step ends, while it sleeps."""
    engine = trainer.vllm_generation.llm
    generate = engine.generate

    def sampled(*args: Any, **kwargs: Any) -> Any:
        outputs = generate(*args, **kwargs)
        used["sampling"] = used_memory(device)
        return outputs

    engine.generate = sampled

    class AtTheEnd(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            used["training"] = used_memory(device)

    trainer.add_callback(AtTheEnd())
