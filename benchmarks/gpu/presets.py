"""The sizes of a run, and which sections it has."""

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.throughput.processes import ENVIRONMENT
from benchmarks.throughput.sizes import SIZE_PRESETS, Size

from .models import Models
from .running import Section


@dataclass(frozen=True)
class Preset:
    """
    The sizes of a run.

    Args:
        size ([`Size`]): The models, and the window of the sections that train.
        rows (`int`): Hidden states that the head's kernels get.
        benches (`tuple[str, ...]`): Presets of the benchmark of throughput.
        repeats (`int`): Its rounds that count.
        about (`str`): The models in words.
    """

    size: Size
    rows: int
    benches: tuple[str, ...]
    repeats: int
    about: str


PRESETS = {
    "tiny": Preset(
        Size(64, 2, 2, 1, 64, 128, 600, rows=8, batch=2, prompt=8, mean_length=16),
        rows=24,
        benches=("tiny",),
        repeats=1,
        about="0.1 M parameters, a vocabulary of 600: minutes on a CPU, to try all but the device",
    ),
    "card": Preset(
        replace(SIZE_PRESETS["qwen3-0.6b"].size, rows=16, batch=4, prompt=128, mean_length=64),
        rows=512,
        benches=("medium", "qwen3-0.6b"),
        repeats=3,
        about="the shape of Qwen3-0.6B, random weights: for a GPU of 24 GB or more",
    ),
}
# Settings of the section of memory, whose measured peaks are set beside those that are computed.
SETTINGS = {
    "full": "all weights, `fire`",
    "lora": "LoRA of rank 16 on all linear layers, `fire`",
    "whole": "all weights, `opd_full`: whole distributions",
    "checkpoints": "all weights, `fire`, gradient checkpointing",
}


def sections_of(preset: Preset, models: Models, work: Path) -> list[Section]:
    """
    The sections of a run, in their order: what the others rest on comes first. Their weights are about the seconds
    that they should take on a GPU with the larger preset (estimated: none was at hand).

    Args:
        preset ([`Preset`]): The sizes.
        models ([`Models`]): The models and the device.
        work (`Path`): A folder for what is not a result.
    """
    # Of several GPUs the first; with --device cpu none.
    here = {**ENVIRONMENT, **({} if models.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})}
    # Without a GPU, Triton's kernels are run by its interpreter, where Triton is installed.
    interpreted = here if models.device == "cuda" else {**here, "TRITON_INTERPRET": "1"}
    engine = {**here, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    given, room = (models,), "benchmarks.gpu"
    return [
        Section("rates", "rates of the device", f"{room}.rates:measure", 25, given, here),
        Section(
            "correctness",
            "bfloat16 and Triton beside float32",
            f"{room}.correctness:compare",
            65,
            (models, preset.rows),
            interpreted,
        ),
        Section("attention", "implementations of attention", f"{room}.attention:compare", 45, given, here),
        *(
            Section(f"memory_{name}", f"peak memory: {what}", f"{room}.peaks:measure", 35, (models, name), here)
            for name, what in SETTINGS.items()
        ),
        Section("engine", "vLLM in the trainer's process", f"{room}.engine:measure", 140, (models, str(work)), engine),
        *(
            Section(
                f"bench_{name}",
                f"beside TRL's trainers, `{name}`",
                f"{room}.bench:measure",
                85,
                (models.device, name, preset.repeats, str(work)),
                here,
            )
            for name in preset.benches
        ),
        Section("tests", "tests that need a GPU", f"{room}.marked:run", 35, (), here),
    ]
