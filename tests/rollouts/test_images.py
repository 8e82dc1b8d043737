"""Rows with images beside rows without: lists of images, images that TRL has dropped, a companion for each rank."""

import torch
from support.batches import literal_batch
from support.windows import on_ranks

from fire_opd_trl.rollouts.images import images_of, lists_of_images, with_companion, without_lost_images
from fire_opd_trl.rollouts.layout import COMPANION, take
from fire_opd_trl.scoring.forward import trl_rectangle
from fire_opd_trl.stages import World


def test_no_image_is_an_empty_list():
    assert lists_of_images([{"images": None}, {"images": [1]}]) == [{"images": []}, {"images": [1]}]
    assert lists_of_images([{"image": None}] * 2) == [{"image": None, "images": []}] * 2  # TRL reads `images` first
    mixed = [{"image": None, "images": []}, {"image": 1, "images": [1]}]
    assert lists_of_images([{"image": None}, {"image": 1}]) == mixed
    assert images_of([{"image": None}, {"image": 1}, {"images": [2, 3]}, {}]) == [[], [1], [2, 3], []]


def pictured(counts: list[int]) -> dict:
    """The literal batch, of which rows have so many images of one patch each."""
    patches = sum(counts)
    return {
        **literal_batch(),
        "pixel_values": torch.arange(float(patches)).unsqueeze(1),
        "image_grid_thw": torch.ones(patches, 3).long(),
        "num_images": counts,
    }


def test_where_trl_dropped_the_images_rows_with_image_tokens_do_not_train():
    batch = {**literal_batch(), "mm_token_type_ids": torch.zeros(3, 9), "num_images": None}
    batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
    rest = without_lost_images(batch, placeholder=14, pad_token_id=0)
    assert rest["completion_ids"][0].tolist() == [13, 0, 15, 0, 0]  # 14 is an image's place
    assert rest["tool_mask"].any(dim=1).tolist() == [False, True, True]
    assert not {"num_images", "mm_token_type_ids"} & set(rest)
    whole = {**pictured([1, 0, 0]), "mm_token_type_ids": torch.zeros(3, 9)}
    assert without_lost_images(whole, 14, 0) is whole


def test_a_rank_without_images_runs_the_shortest_row_with_images_of_another():
    batches = [pictured([1, 2, 0]), literal_batch(), literal_batch()]
    batches[0]["token_type_ids"] = literal_batch()["token_type_ids"]
    given = on_ranks(3, lambda rank, world: with_companion(batches[rank], world)[COMPANION])
    for companion in given:
        assert companion["ids"].tolist() == [[21, 22, 23, 24]] and companion["mask"].all()  # 4 tokens, and row 0 has 5
        assert companion["num_images"] == [2] and companion["pixel_values"].flatten().tolist() == [1.0, 2.0]
    part = take({**literal_batch(), COMPANION: given[1]}, [2])
    ids, mask, width, images, columns = trl_rectangle(part)
    assert ids.tolist() == [[0, 31, 32, 33], [21, 22, 23, 24]] and mask.tolist() == [[0, 1, 1, 1], [1] * 4]
    assert images["num_images"] == [0, 2] and images["token_type_ids"].tolist() == [[0] * 4, [1, 2, 3, 4]]
    assert width == 2 and columns.tolist() == [[-2, -1]]  # of the row alone


def test_rows_with_images_need_no_companion():
    batches = [pictured([1, 2, 0]), pictured([1, 0, 0])]
    given = on_ranks(2, lambda rank, world: with_companion(batches[rank], world))
    assert COMPANION not in take(given[1], [0, 2]) and COMPANION in take(given[1], [2])


def test_without_images_or_other_ranks_there_is_no_companion():
    assert all(COMPANION not in b for b in on_ranks(2, lambda rank, world: with_companion(literal_batch(), world)))
    assert COMPANION not in with_companion(pictured([1, 0, 0]), World())
