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
    accelerator.wait_for_everyone()
    accelerator.end_training()


def checked_rows(folder: str) -> None:
    """Check a dataset that is read by a pool; write how many rows this rank measured, and the longest it heard of."""
    import datasets
    from accelerate import PartialState

    from fire_opd_trl.preflight import dataset

    rank, measure = os.environ["RANK"], dataset.measure
    PartialState(cpu=True)

    def counted(batch, **arguments):
        with open(f"{folder}/measured{rank}", "a") as file:
            file.write("." * len(batch["prompt"]))
        return measure(batch, **arguments)

    datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
    dataset.POOL_ROWS, dataset.ROWS_OF_A_PROCESS, dataset.measure = 20, 15, counted
    rows = datasets.Dataset.from_list([{"prompt": "1" * (1 + row % 7)} for row in range(30)])
    reader = dataset.Reader(lambda rows: [[1] * len(row["prompt"]) for row in rows], None)
    teachers, columns = {"teacher": dataset.Reader(dataset.no_ids, None)}, ("teacher_id", "teacher_prompt")
    _, facts = dataset.check_dataset(
        rows, "rows", student=reader, teachers=teachers, overlong="error", columns=columns
    )
    done = Path(f"{folder}/measured{rank}")
    count = len(done.read_text()) if done.exists() else 0
    Path(f"{folder}/rank{rank}").write_text(f"{count} rows measured, {facts.longest}")


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
