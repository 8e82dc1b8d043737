"""Two ranks with 3 and 7 rows: gathered, found again, summed, maximised."""

import torch
from accelerate import Accelerator

from fire_opd_trl.rollouts.ranks import AcceleratorWorld


def ragged_rows() -> None:
    """A work of `launches.Pair`: fails if any value is wrong."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    world, rank = AcceleratorWorld(accelerator), accelerator.process_index
    rows, start = (3, 0) if rank == 0 else (7, 3)
    value_B = torch.arange(start, start + rows)
    assert world.gather(value_B).tolist() == list(range(10))
    assert world.gather(value_B.float().unsqueeze(1).expand(-1, 2)).tolist() == [[float(i)] * 2 for i in range(10)]
    assert world.gather(value_B > 4).tolist() == [i > 4 for i in range(10)]
    assert world.local_slice(rows) == slice(start, start + rows)
    assert world.sum(torch.tensor([rows, 1])).tolist() == [10, 2]
    assert world.max(torch.tensor([float(rank), -float(rank)])).tolist() == [1.0, 0.0]
    assert world.gather(torch.empty(0) if rank == 0 else torch.ones(2)).tolist() == [1.0, 1.0]
    accelerator.wait_for_everyone()
    accelerator.end_training()
