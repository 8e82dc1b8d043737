"""Rows in lines and in TRL's rectangle."""

import torch
from support.batches import literal_batch, random_batch
from support.folders import rescaled_folder
from transformers import AutoConfig, AutoModelForCausalLM, Phi3Config
from trl.trainer.utils import add_fused_lm_head

from fire_opd_trl.rollouts.layout import lengths, take
from fire_opd_trl.scoring.forward import length_bounds, rows_in_lines, score_lines, trl_rectangle
from fire_opd_trl.scoring.heads import make_observable
from fire_opd_trl.scoring.token_scores import score_rows
from fire_opd_trl.stages import World


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


# Models that read a whole forward as its longest row wants


def test_a_bound_is_where_longrope_changes_its_frequencies(tmp_path):
    longrope = AutoConfig.from_pretrained(rescaled_folder(tmp_path / "longrope"))
    assert length_bounds(longrope) == (24,)
    assert length_bounds(longrope, multiple=16) == (16,)  # a forward of 17 tokens is 32 wide
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    phi = Phi3Config(original_max_position_embeddings=4096, rope_scaling={"type": "longrope", **factors})
    assert length_bounds(phi) == (4096,)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    for kind in (yarn, {"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "default"}):
        assert length_bounds(AutoConfig.from_pretrained(rescaled_folder(tmp_path / kind["rope_type"], **kind))) == ()


def test_what_longrope_says_of_a_row_does_not_depend_on_the_rows_beside_it(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(rescaled_folder(tmp_path), dtype=torch.float32).eval()
    add_fused_lm_head(model)
    make_observable(model)
    batch = random_batch(seed=3, rows=12)
    for key in ("prompt_ids", "completion_ids"):
        batch[key] %= 16
    length_B = lengths(batch)
    assert min(length_B) <= 24 < max(length_B)
    widths = []

    def forward(part):
        widths.append(rows_in_lines(part)[0].shape[1])
        return score_lines(model, model, part, None, False, 1)

    alone_BT = torch.zeros(batch["completion_ids"].shape)
    with torch.no_grad():
        for row in range(12):
            (logp_T,) = forward(take(batch, [row])).logp_BC
            alone_BT[row, : len(logp_T)] = logp_T
        beside_BT = score_rows(forward, batch, 10**6, World(), vocabulary=16).logp_BT
        apart_BT = score_rows(forward, batch, 10**6, World(), vocabulary=16, bounds=(24,)).logp_BT
    assert (beside_BT - alone_BT).abs().max() > 1  # nats
    assert torch.allclose(apart_BT, alone_BT, atol=1e-5)
