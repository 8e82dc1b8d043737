"""What the device reaches, as hardware that `fire-opd plan` takes, beside what its maker says."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from fire_opd_trl.preflight.plan.calibrate import measured_hardware
from fire_opd_trl.preflight.plan.hardware import HARDWARE, Hardware

from .models import Models


def measure(models: Models) -> Iterator[dict[str, Any]]:
    """Yield one row: the measured hardware, and the row of the plan's table that describes the same card, if any."""
    measured = measured_hardware(torch.device(models.device))
    measured = replace(measured, source="measured by `make gpu`: matrix products, copies in memory and from the host")
    listed = listed_as(measured.name) if models.device == "cuda" else None
    yield {"measured": asdict(measured), "listed": asdict(listed) if listed else None}


def listed_as(card: str) -> Hardware | None:
    """The row of the plan's table whose name is a word of the card's name: `h100` of `NVIDIA H100 80GB HBM3`."""
    words = card.lower().replace("-", " ").split()
    joined = " ".join(words)
    found = [row for name, row in HARDWARE.items() if name.lower().replace("-", " ") in joined]
    return max(found, key=lambda row: len(row.name), default=None)
