"""The hash from which every random choice is drawn, on one rank as on many; a failure of one rank is one of all."""

import math

import pytest
import torch
from support.windows import hash_in_plain_python, on_ranks

from fire_opd_trl.stages import (
    failing_alike,
    uniform_hash,
)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, -7])
def test_the_hash_is_the_one_of_plain_integers(seed):
    row_B, number_BT = torch.arange(4).unsqueeze(1), torch.tensor([[0, 1, 77, 2**31 + 5, 2**32 - 1]])
    expected = [[hash_in_plain_python(seed, row, number) for number in number_BT[0].tolist()] for row in range(4)]
    assert uniform_hash(seed, row_B, number_BT).tolist() == expected  # also: no overflow of 64-bit integers matters


@pytest.mark.parametrize("seed", [0, 1, 123456])
def test_the_hash_is_uniform(seed):
    count = 2**16
    draw_N = uniform_hash(seed, torch.arange(count)).double()
    assert 0 <= draw_N.min() and draw_N.max() < 1
    # Standard error of the mean sqrt(1/12 / 65536) = 0.0011, of the mean square sqrt(4/45 / 65536) = 0.0012.
    assert abs(draw_N.mean() - 1 / 2) < 5 * 0.0011
    assert abs(draw_N.square().mean() - 1 / 3) < 5 * 0.0012
    bins = torch.histc(draw_N, 256, 0, 1)
    chi_square = (bins - count / 256).square().sum() / (count / 256)
    assert 255 - 5 * math.sqrt(510) < chi_square < 255 + 5 * math.sqrt(510)  # neither lumpy nor suspiciously even


def test_different_seeds_rows_and_tokens_are_uncorrelated():
    count, bound = 4096, 5 / math.sqrt(4096)
    row_N = torch.arange(count)
    by_seed = torch.stack([uniform_hash(seed, row_N) for seed in (0, 1, 2, 3, 42, 43, 2**20)])
    by_token = torch.stack([uniform_hash(0, row_N, torch.full_like(row_N, token)) for token in range(6)])
    swapped = torch.stack([uniform_hash(0, row_N, row_N * 0 + 5), uniform_hash(0, row_N * 0 + 5, row_N)])
    score_and_token = torch.stack([uniform_hash(0, row_N), by_token[1]])
    neighbours = torch.stack([by_seed[0][:-1], by_seed[0][1:]])
    for family in (by_seed, by_token, swapped, score_and_token, neighbours):
        apart = family.double().corrcoef() - torch.eye(len(family))
        assert apart.abs().max() < bound


@pytest.mark.parametrize("wrong", [None, 0, 2])
def test_where_one_rank_fails_all_of_them_do(wrong):
    def work(rank: int, world) -> str:
        try:
            with failing_alike(world, torch.device("cpu")):
                if rank == wrong:
                    raise KeyError("mine")
        except Exception as error:
            return str(error)
        return "went on"

    theirs = "went on" if wrong is None else "A row of another rank is wrong; its message says how."
    assert on_ranks(3, work) == ["'mine'" if rank == wrong else theirs for rank in range(3)]
