"""Rows that change their rank arrive to the bit, with all that is known of them."""

import pytest
import torch
from support.batches import random_batch, tokens_of
from support.windows import on_ranks

from fire_opd_trl.rollouts.exchange import exchange_rows, pack_rows, unpack_rows
from fire_opd_trl.rollouts.layout import PER_TOKEN, take
from fire_opd_trl.rollouts.micro_batches import micro_batches
from fire_opd_trl.scoring.forward import rows_in_lines
from fire_opd_trl.stages import World


def full_batch(seed: int, rows: int) -> dict:
    """A batch with all that the loss may need of a row, every number another."""
    batch = random_batch(seed, rows)
    shape, random = batch["completion_ids"].shape, torch.Generator().manual_seed(seed)
    for key in ("advantages", "old_per_token_logps", "ref_per_token_logps", "divergence"):
        batch[key] = torch.randn(shape, generator=random)
    batch["train_mask"] = batch["train_mask"] & (torch.rand(shape, generator=random) < 0.8)  # tools write too
    batch["scale"], batch["teacher_number"] = torch.rand(rows, generator=random), torch.arange(rows) + 10 * seed
    return batch


def known_of(batch: dict, row: int) -> dict[str, list]:
    """All that a batch says about a row, without padding."""
    one, width = take(batch, [row]), int(batch["completion_mask"][row].sum())
    known = {key: value[0][:width] if value[0].dim() else value[0] for key, value in one.items()}
    return {"tokens": tokens_of(batch, row), **{k: v.tolist() for k, v in known.items() if not k.startswith("prompt")}}


def test_a_parcel_holds_its_rows_to_the_bit_and_no_padding():
    batch = full_batch(seed=4, rows=9)
    parcels = [pack_rows(batch, [5, 2]), pack_rows(batch, []), pack_rows(batch, [7])]
    arrived = unpack_rows(parcels, like=batch)
    assert [known_of(arrived, row) for row in range(3)] == [known_of(batch, row) for row in (5, 2, 7)]
    assert {key: value[0].dtype for key, value in arrived.items()} == {key: batch[key][0].dtype for key in arrived}
    assert len(parcels[1]) == 0 and unpack_rows([parcels[1]], like=batch) == {}
    wider = {**batch, "completion_ids": torch.nn.functional.pad(batch["completion_ids"], (0, 999))}
    wider |= {"completion_mask": torch.nn.functional.pad(batch["completion_mask"], (0, 999))}
    wider |= {key: torch.nn.functional.pad(batch[key], (0, 999)) for key in PER_TOKEN if key != "completion_ids"}
    assert len(pack_rows(wider, [5, 2])) == len(parcels[0])


def test_rows_arrive_where_the_plan_sends_them_with_all_that_is_known_of_them():
    batches = [full_batch(seed, rows) for seed, rows in enumerate([4, 6, 1])]
    home = [(rank, row) for rank, batch in enumerate(batches) for row in range(len(batch["scale"]))]
    plan = [[9, 0, 4], [], [10, 3, 8, 1]]  # rows 2, 5, 6, 7 were dropped; rank 1 gets nothing
    for rank, (batch, place) in enumerate(on_ranks(3, lambda rank, world: exchange_rows(batches[rank], plan, world))):
        assert sorted(place) == sorted(plan[rank]) and sorted(place.values()) == list(range(len(plan[rank])))
        for row, where in place.items():
            owner, number = home[row]
            assert known_of(batch, where) == known_of(batches[owner], number)
        assert bool(batch) == bool(plan[rank])


def test_an_empty_prompt_is_the_same_padding_token_after_a_move():
    batch = full_batch(seed=4, rows=3)
    batch["prompt_mask"][1], batch["prompt_ids"][1] = 0, 9  # padding has id 9
    arrived = unpack_rows([pack_rows(batch, [1])], like=batch)
    assert rows_in_lines(arrived)[0].tolist() == rows_in_lines(take(batch, [1]))[0].tolist()
    assert rows_in_lines(arrived)[0][0, 0] == 9


@pytest.mark.parametrize("key", ["token_type_ids", "top_ids"])
def test_rows_with_images_or_whole_distributions_stay(key):
    batches = [random_batch(seed, 4) for seed in range(2)]
    for batch in batches:
        batch["keep"] = torch.ones(4, dtype=torch.bool)
    both = torch.cat([batches[1]["prompt_ids"], batches[1]["completion_ids"]], dim=1)
    batches[1][key] = torch.ones_like(both) if key == "token_type_ids" else list(both.split(1))
    arguments = {"loss_type": "grpo", "seed": 5, "multiple": 1, "balance": "tokens"}

    def work(rank: int, world: World):
        return micro_batches(batches[rank], steps=1, per_step=2, world=world, **arguments)

    for rank, parts in enumerate(on_ranks(2, work)):  # one rank's images keep all ranks' rows where they are
        rows = [tokens_of(part, row) for part in parts for row in range(len(part["scale"]))]
        assert sorted(rows) == sorted(tokens_of(batches[rank], row) for row in range(4))
