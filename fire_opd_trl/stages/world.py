"""Statistics are taken over the rows of every rank, not over those that one process happens to hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


class World:
    """
    The rows of one window as seen from one process. This class is the world of a single process; a trainer that runs
    on several ranks passes a subclass whose methods communicate. Every statistic of every stage goes through it, so
    the same recipe gives the same numbers on one process and on a thousand.
    """

    rank = 0
    ranks = 1

    def gather(self, value_B: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks in global order, `[B, ...] -> [N, ...]`. Ranks may hold different numbers of rows."""
        return value_B

    def local_slice(self, rows: int) -> slice:
        """
        Where the `rows` rows of this rank lie among the `N` gathered ones. On several ranks this is a collective,
        since ranks may hold different numbers of rows: every rank must call it.
        """
        return slice(0, rows)

    def own(self, rows: int) -> slice:
        """The former name of `local_slice`."""
        return self.local_slice(rows)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "own" in vars(cls) and "local_slice" not in vars(cls):  # a world of a user's, written for the former name
            cls.local_slice = cls.own  # type: ignore[method-assign]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks."""
        return value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks."""
        return value

    def swap(self, parcels: list[torch.Tensor]) -> list[torch.Tensor]:
        """Give every rank a tensor of bytes, and get the one that every rank gives to this rank."""
        return parcels


@dataclass(frozen=True)
class Context:
    """
    What a stage may know besides its tensors. On one process, `Context()` is enough; a method with a schedule reads
    `progress`, and one that draws random numbers reads `seed`: `Context(progress=0.5, seed=7)`.

    Args:
        world ([`World`]): Gathers rows, sums and maxima over all ranks; the default is one process.
        progress (`float`): Share of the training already done, in `[0, 1]`, for methods with a schedule.
        seed (`int`): Seed of this window, equal on all ranks, for methods that draw random numbers.
    """

    world: World = field(default_factory=World)
    progress: float = 0.0
    seed: int = 0


@contextmanager
def failing_alike(world: World, device: torch.device) -> Iterator[None]:
    """
    Inside this a rank works on rows of its own, with which it may fail. If one rank fails, all of them leave it by an
    error; the others would else wait for that rank in their next collective.
    """
    fault = None
    try:
        yield
    except Exception as error:
        fault = error
    if world.max(torch.tensor(int(fault is not None), device=device)):
        raise fault or ValueError("A row of another rank is wrong; its message says how.")


def global_row_B(rows: int, world: World, device: torch.device) -> torch.Tensor:
    """Index of each of this rank's rows in the global order, `[B]`: the same however the window is split."""
    own = world.local_slice(rows)
    return torch.arange(own.start, own.stop, device=device)


def order_by_draw(draw: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The places along the last axis: those under the mask in the order of their draws, then the others."""
    return torch.where(mask, draw, 2.0).argsort(dim=-1, stable=True)  # draws lie in [0, 1)


def random_order_N(mask_N: torch.Tensor, seed: int) -> torch.Tensor:
    """The rows of all ranks in a random order, first those under the mask, `[N]`; equal on all ranks."""
    return order_by_draw(uniform_hash(seed, torch.arange(len(mask_N), device=mask_N.device)), mask_N)


def uniform_hash(seed: int, *keys: torch.Tensor) -> torch.Tensor:
    """
    Random numbers in `[0, 1)` that depend on nothing but the seed and the keys.

    A generator would tie the draw of a row to the shape of the tensor it is drawn in, hence to padding and to the
    split over ranks; a counter hash (32-bit xorshift-multiply rounds) does not.

    Args:
        seed (`int`): Seed of the window.
        keys (`torch.Tensor`): Broadcastable integer tensors, for example the global row and the token's number.

    Returns:
        `torch.Tensor`: Float32 numbers of the broadcast shape.
    """
    low32 = 0xFFFFFFFF
    state = torch.zeros((), dtype=torch.int64, device=keys[0].device)
    for key in (torch.tensor(seed, device=state.device), *keys):
        state = (state ^ key.long()) & low32
        for multiplier, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
            state = ((state ^ (state >> shift)) * multiplier) & low32
        state = ((state ^ (state >> 16)) + 0x9E3779B9) & low32
    return (state >> 8).float() / 2**24  # 24 bits are what float32 holds
