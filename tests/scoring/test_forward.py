"""Rows in lines and in TRL's rectangle."""

import torch
from support.batches import literal_batch

from fire_opd_trl.scoring.forward import rows_in_lines, trl_rectangle


def test_a_line_is_prompt_and_completion_without_a_gap():
    ids, mask, labels, columns = rows_in_lines(literal_batch())
    assert ids[mask].tolist() == [11, 12, 13, 14, 15, 21, 22, 23, 24, 31, 32, 33]
    assert ids.shape == (3, 5)  # the longest row, 2 + 3; the rectangle has 4 + 5 columns
    assert labels.tolist() == [[-100, -100, 13, 14, 15], [-100, -100, -100, 24, -100], [-100, 32, 33, -100, -100]]
    # Which of the 4 predictions is about each completion token: column j predicts the token in column j + 1.
    places = columns + 4
    assert [places[0, :3].tolist(), places[1, :1].tolist(), places[2, :2].tolist()] == [[1, 2, 3], [2], [0, 1]]
    assert int(places.max()) <= 3 and int(places.min()) >= 0
    assert rows_in_lines(literal_batch(), multiple=4)[0].shape == (3, 8)


def test_a_line_asks_for_no_token_that_does_not_train():
    part = {**literal_batch(), "train_mask": torch.tensor([[1, 0, 1, 0, 0], [1] * 5, [0, 1, 0, 0, 0]]).bool()}
    labels = rows_in_lines(part)[2]
    assert labels.tolist() == [[-100, -100, 13, -100, 15], [-100, -100, -100, 24, -100], [-100, -100, 33, -100, -100]]


def test_a_line_may_have_no_prompt_and_one_token():
    part = {"prompt_ids": torch.tensor([[0]]), "prompt_mask": torch.tensor([[0]])}
    part.update(completion_ids=torch.tensor([[7]]), completion_mask=torch.tensor([[1]]))
    ids, mask, labels, columns = rows_in_lines(part)
    assert ids.tolist() == [[0, 7]] and labels.tolist() == [[-100, 7]] and columns.tolist() == [[-1]]
    part["completion_mask"] = torch.tensor([[0]])
    assert (rows_in_lines(part)[2] == -100).all()


def test_the_rectangle_is_trls():
    ids, mask, width, images, columns = trl_rectangle(literal_batch())
    assert ids.shape == (3, 9) and int(mask.sum()) == 12 and width == 5 and list(images) == ["token_type_ids"]
    assert columns.tolist() == [[-5, -4, -3, -2, -1]] * 3
