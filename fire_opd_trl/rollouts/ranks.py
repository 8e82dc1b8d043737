"""The world of a distributed run: here the statistics of the stages are gathered over the ranks of an accelerator."""

from typing import TYPE_CHECKING

import torch
from torch.distributed import all_to_all_single

from ..stages import World


if TYPE_CHECKING:
    from accelerate import Accelerator


class AcceleratorWorld(World):
    """The trainer makes one: all ranks of its accelerator in the order of their number, each with rows of its own."""

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes

    def _sizes(self, rows: int) -> list[int]:
        size = torch.tensor([rows], device=self.accelerator.device)
        return self.accelerator.gather(size).tolist()

    def gather(self, value_B: torch.Tensor) -> torch.Tensor:
        # Collectives want equal shapes, and with gloo unequal ones return garbage in silence: pad, gather, cut.
        sizes = self._sizes(len(value_B))
        longest = max(sizes)
        padded = value_B.new_zeros((longest, *value_B.shape[1:]))
        padded[: len(value_B)] = value_B
        blocks = self.accelerator.gather(padded).unflatten(0, (self.ranks, longest))  # also where no rank has a row
        return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])

    def local_slice(self, rows: int) -> slice:
        start = sum(self._sizes(rows)[: self.rank])
        return slice(start, start + rows)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(value.clone(), reduction="sum")

    def max(self, value: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(value.unsqueeze(0)).amax(dim=0)

    def swap(self, parcels: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.ranks == 1:
            return parcels
        device = self.accelerator.device
        sizes = torch.tensor([len(parcel) for parcel in parcels], device=device)
        coming = self.accelerator.gather(sizes.unsqueeze(0))[:, self.rank].tolist()
        arrived = torch.empty(sum(coming), dtype=torch.uint8, device=device)
        all_to_all_single(arrived, torch.cat(parcels).to(device), coming, sizes.tolist())
        return list(arrived.split(coming))
