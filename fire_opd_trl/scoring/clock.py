"""Times of work that a device does while the program goes on."""

from time import perf_counter

import torch


def clock(device: torch.device) -> float:
    """
    Whoever measures a phase calls this before and after it. Returns seconds, read when the device has finished all
    that it was given: work is only queued there, and would be charged to the phase that waits for it. One wait for
    each phase of a window is cheap, where one for each forward would not be.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()
