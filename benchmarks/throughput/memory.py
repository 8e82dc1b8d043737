"""The peak memory of a step above the weights, the optimizer states and the gradients of the step."""

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import torch


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# The C library gives freed memory back at once, so that a peak is what was in use at the same time.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Memory:
    """
    Watches one step. Between two steps a trainer holds weights and optimizer states: the `rest`. Before the first loss
    of the step there are no gradients; after it they are subtracted from the peak:
    `above = max(peak before - rest, peak after - rest - gradients)`.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> None:
        """Forget earlier peaks, when the step begins."""
        gc.collect()
        self.reason: str | None = None
        self.before: int | None = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.rest = torch.cuda.memory_allocated()
            return
        try:
            ctypes.CDLL(None).malloc_trim(0)
            CLEAR.write_text("5")  # the high-water mark becomes what is resident now
            self.rest = resident("VmRSS")
        except (OSError, AttributeError) as error:
            self.reason = f"the peak of this process cannot be reset: {type(error).__name__}"

    def update(self) -> None:
        """Take the peak of scoring, when the first loss of the step is about to be computed; do nothing later."""
        if self.before is not None or self.reason:
            return
        self.before = self._peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            CLEAR.write_text("5")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else resident("VmHWM")

    def stop(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return what the step took in bytes, or the reason why nothing was measured."""
        if self.reason:
            return {"above": None, "reason": self.reason}
        after, before = self._peak(), self.rest if self.before is None else self.before
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        above = max(before - self.rest, after - self.rest - gradients)
        return {"peak": max(before, after), "rest": self.rest, "gradients": gradients, "above": above, "reason": None}


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{field} is not in {STATUS}")
    return 1024 * int(found.group(1))
