"""This library's trainer beside TRL's: the benchmark of throughput at one size, with the arms that fit together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput import main as throughput
from benchmarks.throughput.sizes import SIZE_PRESETS

from .serving import CannotRun


ARMS = ("fire", "opd_full", "grpo", "distillation")
COPIES = 5  # of a model in float32 that an arm holds: student, gradients, two moments, teacher
ROOM = 1.5  # the arms' tiles and activations, and what CUDA takes, over their copies (estimated)


def measure(device: str, preset: str, repeats: int, work: str) -> Iterator[dict[str, Any]]:
    """
    Yield a row for each arm, and one for each of TRL's trainers over one of this library's.

    Args:
        device (`str`): `"cuda"` or `"cpu"`.
        preset (`str`): A size of the benchmark of throughput.
        repeats (`int`): Rounds that count.
        work (`str`): The folder that gets its report.
    """
    needed = len(ARMS) * COPIES * 4 * SIZE_PRESETS[preset].size.parameters * ROOM
    if device == "cuda" and (there := torch.cuda.mem_get_info()[1]) < needed:
        raise CannotRun(
            f"its {len(ARMS)} arms need about {needed / 1e9:.0f} GB at a time; there are {there / 1e9:.0f}"
        )
    output = Path(work) / f"bench-{preset}"
    flags = ["--preset", preset, "--arms", ",".join(ARMS), "--repeats", str(repeats), "--output", str(output)]
    if throughput.main([*flags, "--skip-equal", "--skip-growth", "--skip-ranks"]):
        raise RuntimeError("a worker of the benchmark failed; this section's log says which")
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))["summary"]
    for arm, row in found["steps"].items():
        yield {"arm": arm, **row, "memory": found["memory"][arm]}
    for row in found["ratios"]:
        yield {"ratio": row}
