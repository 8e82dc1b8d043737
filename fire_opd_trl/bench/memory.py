"""The peak memory of a step above what stays: weights, optimizer states, and the gradients of the step."""

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import torch


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What is freed goes back to the system at once, so that a peak is what was in use together.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Memory:
    """
    Watches one step. Between steps a trainer holds weights and optimizer states; gradients come and go inside the step
    and are taken off the peak: `above = peak - rest - gradients`.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> None:
        """The step begins: forget earlier peaks."""
        gc.collect()
        self.reason = None
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

    def stop(self, model: torch.nn.Module) -> dict[str, Any]:
        """The step ends; bytes, or why there are none."""
        if self.reason:
            return {"above": None, "reason": self.reason}
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else resident("VmHWM")
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        above = peak - self.rest - gradients
        return {"peak": peak, "rest": self.rest, "gradients": gradients, "above": above, "reason": None}


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{field} is not in {STATUS}")
    return 1024 * int(found.group(1))
