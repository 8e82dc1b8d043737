"""Small works for two ranks (`launches.Pair`)."""

import os
import time
from pathlib import Path

import torch


def ragged_rows() -> None:
    """Ranks with 3 and 7 rows: gathered, found again, summed, maximised. Fails if any value is wrong."""
    from accelerate import Accelerator

    from fire_opd_trl.rollouts.ranks import AcceleratorWorld

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
    assert world.gather(torch.empty(0, 3)).shape == (0, 3)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def windows_without_a_token() -> None:
    """Every method on windows in which no token is usable on the first rank, on the second, and on both."""
    from accelerate import Accelerator
    from support.windows import emptied, rows_of, window

    from fire_opd_trl import METHODS, Context, distil
    from fire_opd_trl.rollouts.ranks import AcceleratorWorld

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    world = AcceleratorWorld(accelerator)
    rollout, scores = window(rows=8)
    mine = slice(4 * world.rank, 4 * world.rank + 4)
    for gone in (range(4), range(4, 8), range(8)):
        rows = rows_of(emptied(rollout, list(gone)), scores, mine)
        for name, recipe in METHODS.items():
            for progress in (0.0, 0.9):  # reopold reads the entropies in the second phase alone
                signal = distil(*rows, recipe(), Context(world, progress=progress))
                assert signal.metrics["empty"] == len(gone), name
                weights = [v for v in (signal.weight_BT, signal.advantage_BT, signal.divergence_BT) if v is not None]
                assert all(value.isfinite().all() for value in weights), name
                alive = len(gone) < 8 and world.rank == int(0 in gone)
                assert alive or not any(value.any() for value in weights), name
    accelerator.wait_for_everyone()
    accelerator.end_training()


def leave_a_mark(path: str) -> None:
    """Write which process does this work for which rank, and where it meets the other."""
    Path(f"{path}{os.environ['RANK']}").write_text(f"{os.getpid()} {os.getpgid(0)} {os.environ['MASTER_PORT']}")


def fail_on_the_second_rank(path: str, sentence: str) -> None:
    """The first rank waits for the second, which will not come."""
    leave_a_mark(path)
    if os.environ["RANK"] == "1":
        while not Path(f"{path}0").exists():
            time.sleep(0.02)
        raise ValueError(sentence)
    time.sleep(600)


def never_end(path: str) -> None:
    leave_a_mark(path)
    time.sleep(600)
