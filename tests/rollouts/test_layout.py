"""Rows that are taken out of a batch: trimmed, rounded up, with their images."""

import inspect

import pytest
import torch
from support.batches import literal_batch, random_batch, tokens_of
from trl import GRPOTrainer

from fire_opd_trl.rollouts.layout import VISION_KEYS, WHOLE_KEYS, lengths, take
from fire_opd_trl.rollouts.packing import (
    cut_into_micro_batches,
)


def test_take_trims_to_its_own_longest_prompt_and_completion():
    part = take(literal_batch(), [2, 0])
    assert part["prompt_ids"].tolist() == [[0, 31], [11, 12]]
    assert part["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert part["completion_ids"].tolist() == [[32, 33, 0], [13, 14, 15]]
    assert part["completion_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    torch.testing.assert_close(part["advantages"], torch.tensor([[3.2, 3.3, 0.0], [1.3, 1.4, 1.5]]))
    assert part["token_type_ids"].tolist() == [[9, 1, 2, 3, 9], [1, 2, 3, 4, 5]]  # both sides, still side by side
    torch.testing.assert_close(part["scale"], torch.tensor([0.3, 0.1]))
    assert "rewards" not in part  # neither forward nor loss needs them


def test_take_rounds_widths_up_but_never_beyond_the_batch():
    part = take(literal_batch(), [1], multiple=4)
    assert part["prompt_ids"].tolist() == [[0, 21, 22, 23]]  # 3 -> 4
    assert part["completion_ids"].tolist() == [[24, 0, 0, 0]]  # 1 -> 4
    part = take(literal_batch(), [0], multiple=64)
    assert part["prompt_ids"].shape == (1, 4) and part["completion_ids"].shape == (1, 5)


def test_take_brings_the_images_of_its_rows():
    # Row 0 has an image of 1 x 2 x 1 patches, row 1 none, row 2 one of 3 and one of 1 patch: patches 0-1, none, 2-5.
    batch = {
        **literal_batch(),
        "pixel_values": torch.arange(6.0).unsqueeze(1),
        "image_grid_thw": torch.tensor([[1, 2, 1], [1, 3, 1], [1, 1, 1]]),
        "num_images": [1, 0, 2],
    }
    part = take(batch, [2, 1])
    assert part["pixel_values"].flatten().tolist() == [2.0, 3.0, 4.0, 5.0]
    assert part["image_grid_thw"].tolist() == [[1, 3, 1], [1, 1, 1]]
    assert part["num_images"] == [2, 0]


@pytest.mark.parametrize("multiple", [1, 8])
def test_micro_batches_that_are_taken_hold_every_token_of_the_batch(multiple):
    batch = random_batch(seed=1, rows=24)
    rows = list(range(24))
    parts = [take(batch, cut, multiple) for cut in cut_into_micro_batches(rows, lengths(batch), 5)]
    taken = [tokens_of(part, row) for part in parts for row in range(len(part["prompt_ids"]))]
    assert sorted(taken) == sorted(tokens_of(batch, row) for row in rows)
    padded = sum(part["prompt_ids"].numel() + part["completion_ids"].numel() for part in parts)
    assert padded < 0.7 * (batch["prompt_ids"].numel() + batch["completion_ids"].numel())


def with_images(counts: list[int] | None) -> dict:
    patches = sum(counts or ())  # one patch to an image
    pixels = {
        "pixel_values": torch.arange(float(patches)).unsqueeze(1),
        "image_grid_thw": torch.ones(patches, 3).long(),
    }
    return {**literal_batch(), **(pixels if counts else {}), "num_images": counts}


def test_rows_without_an_image_bring_nothing_of_images():
    """No model takes a tensor of no images; without token types they are rows like any other."""
    assert not set(take(with_images([1, 0, 2]), [1])) & {*VISION_KEYS, *WHOLE_KEYS}
    assert take(with_images([1, 0, 2]), [1, 0])["num_images"] == [0, 1]


def test_rows_whose_images_trl_has_dropped_can_be_taken():
    """TRL says so by `num_images=None`, where what a tool drew does not fit the tokens (`without_lost_images`)."""
    assert not set(take(with_images(None), [1, 0])) & {*VISION_KEYS, *WHOLE_KEYS}


def test_the_layout_knows_every_input_that_trl_gives_to_a_forward():
    takes = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert {*VISION_KEYS, *WHOLE_KEYS} == set(takes[takes.index("pixel_values") :])
