"""Windows of every signal that a method could read, and several ranks in one process: what the mathematics is fed."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import torch

from fire_opd_trl import Rollout, Scores
from fire_opd_trl.stages import World


NAN, INF = math.nan, math.inf
CORRECT_OF_4 = torch.tensor([2, 1, 3, 2, 0, 4, 2, 1, 3, 2])  # of each prompt; all wrong and all correct among them


def window(seed: int = 0, rows: int = 40, width: int = 11, dtype: torch.dtype = torch.float64):
    """
    Ragged rows with padding behind and holes inside, every signal that a method could read, no two rows alike. Four
    rows of each prompt stand together; 1 and 0.5 are the rewards of correct ones, 0 and -0.5 those of wrong ones.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand():
        return torch.rand(rows, width, generator=generator, dtype=torch.float64)

    length_B = torch.randint(1, width, (rows, 1), generator=generator)
    mask_BT = (torch.arange(width) < length_B) & (rand() < 0.8)
    mask_BT[:, 0] = True  # every row has a token, and the last column is padding everywhere
    row_B = torch.arange(rows)
    prompt_B, number_B = row_B // 4, (row_B + row_B // 4) % 4  # the correct ones in another place in each prompt
    correct_B, partly_B = number_B < CORRECT_OF_4[prompt_B % 10], row_B % 3 == 0
    reward_B = torch.where(correct_B, torch.where(partly_B, 0.5, 1.0), torch.where(partly_B, -0.5, 0.0))
    rollout = Rollout(
        mask_BT,
        teacher_B=row_B % 3,
        group_B=3 * prompt_B + 5,
        reward_B=reward_B.to(dtype),
        finished_B=row_B % 5 > 0,
        looped_B=row_B % 7 == 3,
    )
    scores = Scores(
        teacher_logp_BT=(4 * rand().log() * rand()[:, :1]).to(dtype),
        student_logp_BT=rand().log().to(dtype),
        teacher_entropy_BT=(6 * rand() ** 4).to(dtype),
        student_entropy_BT=(6 * rand() ** 2).to(dtype),
        reference_logp_BT=rand().log().to(dtype),
        reverse_kl_BT=(8 * rand() ** 3).to(dtype),
    )
    return rollout, scores


def mapped(scores: Scores, change: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    """Every signal, changed alike."""
    return replace(scores, **{name: change(value_BT) for name, value_BT in vars(scores).items()})


def rows_of(rollout: Rollout, scores: Scores, rows: slice | list[int]) -> tuple[Rollout, Scores]:
    return replace(rollout, **{n: v[rows] for n, v in vars(rollout).items()}), mapped(scores, lambda v_BT: v_BT[rows])


def with_value(scores: Scores, name: str, row: int, token: int, value: float) -> Scores:
    value_BT = vars(scores)[name].clone()
    value_BT[row, token] = value
    return replace(scores, **{name: value_BT})


def emptied(rollout: Rollout, rows: list[int]) -> Rollout:
    keep_B = torch.ones(len(rollout.mask_BT), dtype=torch.bool)
    keep_B[rows] = False
    return rollout.only(keep_B)


def hash_in_plain_python(seed: int, *keys: int) -> float:
    """The counter hash in Python's integers: for every key xor, two xorshift-multiply rounds, a golden-ratio step."""
    state = 0
    for key in (seed, *keys):
        state = (state ^ key) % 2**32
        state = (state ^ state >> 16) * 0x7FEB352D % 2**32
        state = (state ^ state >> 15) * 0x846CA68B % 2**32
        state = ((state ^ state >> 16) + 0x9E3779B9) % 2**32
    return (state >> 8) / 2**24


# Several ranks


class Meeting:
    """
    Where the threads of one window meet: each leaves a value, all read, and nobody leaves before. Between meetings one
    thread works at a time, so that no two are ever inside torch at once.
    """

    def __init__(self, ranks: int):
        self.barrier = threading.Barrier(ranks, timeout=10)
        self.values = [None] * ranks
        self.turn = threading.Lock()

    def wait(self):
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()

    def exchange(self, rank: int, operation: str, value) -> list:
        self.values[rank] = (operation, value)
        self.wait()
        values = list(self.values)
        self.wait()
        assert {name for name, _ in values} == {operation}, f"ranks meet in different collectives: {values}"
        return [value for _, value in values]


class Rank(World):
    """One of several ranks, each a thread of this process."""

    def __init__(self, meeting: Meeting, rank: int):
        self.meeting, self.rank, self.ranks = meeting, rank, len(meeting.values)

    def gather(self, value_B):
        return torch.cat(self.meeting.exchange(self.rank, "gather", value_B))

    def local_slice(self, rows):
        start = sum(self.meeting.exchange(self.rank, "own", rows)[: self.rank])
        return slice(start, start + rows)

    def sum(self, value):
        return torch.stack(self.meeting.exchange(self.rank, "sum", value)).sum(dim=0)

    def max(self, value):
        return torch.stack(self.meeting.exchange(self.rank, "max", value)).amax(dim=0)

    def swap(self, parcels):
        return [theirs[self.rank] for theirs in self.meeting.exchange(self.rank, "swap", parcels)]


def on_ranks(count: int, work: Callable[[int, World], object]) -> list:
    """`work(rank, world)` on every rank at once: what each returned, or the FloatingPointError that stopped it."""
    meeting, results, errors = Meeting(count), [None] * count, []

    def run(rank: int):
        with meeting.turn:
            try:
                results[rank] = work(rank, Rank(meeting, rank))
            except FloatingPointError as error:
                results[rank] = error
            except Exception as error:  # a bug: no rank waits for this one, and the test shows it
                errors.append(error)
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return results


def parts_of(sizes: list[int]) -> list[slice]:
    """Which rows each rank holds."""
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def trimmed(rollout: Rollout, scores: Scores) -> tuple[Rollout, Scores, int]:
    """As a rank holds it: no wider than its own longest row."""
    columns = rollout.mask_BT.shape[1]
    width = max(1, int((rollout.mask_BT * torch.arange(1, columns + 1)).max()))
    return replace(rollout, mask_BT=rollout.mask_BT[:, :width]), mapped(scores, lambda v_BT: v_BT[:, :width]), width
