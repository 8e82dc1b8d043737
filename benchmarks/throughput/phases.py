"""Where the time of a step goes, and which tokens pass through which model. No trainer is changed for it."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from fire_opd_trl.preflight.plan.cost import Work
from fire_opd_trl.stages import World


PHASES = ("rollout", "teacher", "student", "update")
PARTS = ("statistics", "micro_batches")  # of the communication


class Stopwatch:
    """
    Seconds of a step by phase. Phases nest, and the time of an inner one does not count for the outer one. The time
    outside of all of them is `"update"`.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.open: list[str] = []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _turn(self) -> None:
        now = self._now()
        self.seconds[self.open[-1]] += now - self.last
        self.last = now

    def start(self) -> None:
        """Begin a step, in the update."""
        self.seconds, self.open, self.last = dict.fromkeys(PHASES, 0.0), ["update"], self._now()

    def stop(self) -> dict[str, float]:
        """End the step, and return its seconds by phase."""
        self._turn()
        self.open = []
        return self.seconds

    def push(self, phase: str) -> None:
        """Begin a phase inside the one under way."""
        if self.open:
            self._turn()
            self.open.append(phase)

    def pop(self) -> None:
        """End the innermost phase."""
        if self.open:
            self._turn()
            self.open.pop()

    @property
    def phase(self) -> str | None:
        """The innermost phase under way."""
        return self.open[-1] if self.open else None

    def time_method(self, owner: Any, name: str, phase: str | Callable[..., str]) -> None:
        """Time a method of an object; `phase` may be a function of its arguments."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args, **kwargs):
            self.push(phase if isinstance(phase, str) else phase(*args, **kwargs))
            try:
                return method(*args, **kwargs)
            finally:
                self.pop()

        setattr(owner, name, timed)

    def time_module(self, module: torch.nn.Module, phase: str) -> None:
        """Time the forward of a module."""
        module.register_forward_pre_hook(lambda module, args: self.push(phase))
        module.register_forward_hook(lambda module, args, output: self.pop())


class Counter:
    """Counts the work of a step under `"teacher"`, `"student"` (scoring) and `"update"`."""

    def __init__(self, stopwatch: Stopwatch, prompt: int, pad_token_id: int):
        self.stopwatch, self.prompt, self.pad_token_id = stopwatch, prompt, pad_token_id
        self.forwards: list[tuple[str, torch.Tensor, int]] = []

    def watch(self, model: torch.nn.Module, name: str | None = None) -> None:
        """Count the forwards of a backbone under a name, by default that of the phase under way."""

        def note_forward(module, args, kwargs):
            ids = kwargs.get("input_ids", args[0] if args else None)
            if self.stopwatch.phase:  # counted by their ids, since some forwards get no mask
                lengths = (ids != self.pad_token_id).sum(dim=1)
                self.forwards.append((name or self.stopwatch.phase, lengths, ids.shape[1]))

        model.register_forward_pre_hook(note_forward, with_kwargs=True)

    def total(self) -> dict[str, Work]:
        """The work since the last call."""
        works: dict[str, Work] = defaultdict(Work)
        for name, lengths, width in self.forwards:
            works[name].add(lengths.tolist(), width, self.prompt)
        self.forwards = []
        return dict(works)


class CountedWorld(World):
    """A world that counts its calls: the bytes that this rank hands in, and the seconds until it has the answer."""

    def __init__(self, world: World):
        self.world, self.rank, self.ranks = world, world.rank, world.ranks
        self.part = "micro_batches"
        self.bytes: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    def _counted(self, name: str, *args, **kwargs):
        started = time.perf_counter()
        answer = getattr(self.world, name)(*args, **kwargs)
        self.seconds[self.part] += time.perf_counter() - started
        self.bytes[self.part] += sum(bytes_of(value) for value in (*args, *kwargs.values()))
        return answer

    def gather(self, value_B: torch.Tensor) -> torch.Tensor:
        return self._counted("gather", value_B)

    def local_slice(self, rows: int) -> slice:
        return self._counted("local_slice", rows)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return self._counted("sum", value)

    def max(self, value: torch.Tensor) -> torch.Tensor:
        return self._counted("max", value)

    def swap(self, parcels: list[torch.Tensor]) -> list[torch.Tensor]:
        arrived = self._counted("swap", parcels)
        self.bytes[self.part] -= bytes_of(parcels[self.rank])  # stays here
        return arrived

    def count_as_statistics(self, owner: Any, name: str) -> None:
        """Count what is handed in during this method of an object as statistics; the rest serves the micro-batches."""
        method = getattr(owner, name)

        def inside(*args, **kwargs):
            self.part = "statistics"
            try:
                return method(*args, **kwargs)
            finally:
                self.part = "micro_batches"

        setattr(owner, name, inside)

    def total(self) -> dict[str, dict[str, float]]:
        """Bytes and seconds since the last call, by part."""
        parts = {part: {"bytes": self.bytes[part], "seconds": self.seconds[part]} for part in PARTS}
        self.bytes.clear()
        self.seconds.clear()
        return parts


def bytes_of(value: Any) -> int:
    """Bytes of a tensor, of all tensors of a list, and 8 for a number."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(bytes_of(one) for one in value)
    return 8 if isinstance(value, int | float) else 0
