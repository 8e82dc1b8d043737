"""How much of a divergence each token gets, by hand."""

import pytest
import torch
from support.windows import hash_in_plain_python

from fire_opd_trl import Context, Rollout, Scores
from fire_opd_trl.stages.divergence import distrusted, trusted, uncertain_teacher


def test_only_where_the_teacher_leaves_a_choice():
    mask_BT = torch.tensor([[1, 1, 1, 0]]).bool()
    logp_BT = -torch.ones(1, 4)
    scores = Scores(logp_BT, logp_BT, teacher_entropy_BT=torch.tensor([[0.8, 0.81, 0.0, 5.0]]))
    weight_BT = uncertain_teacher(Rollout(mask_BT), scores, Context(), threshold=0.8, coef=0.5)
    assert weight_BT.tolist() == [[0.0, 0.5, 0.0, 0.0]] and weight_BT.dtype == logp_BT.dtype


def test_a_token_is_trusted_by_a_coin_of_the_ratio_of_the_probabilities():
    mask_BT = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    ratio_BT = torch.tensor([[0.5, 0.5, 0.9, 2.0], [0.1, 0.7, 0.7, 0.7]])
    scores = Scores(ratio_BT.log() - 1.0, -torch.ones(2, 4))
    trusted_BT = trusted(Rollout(mask_BT), scores, Context(seed=3))
    for row, numbers in enumerate(mask_BT.cumsum(dim=1).tolist()):
        for token, number in enumerate(numbers):  # the number of the token in its row, whatever the padding
            accepted = hash_in_plain_python(3, row, number, 1) < min(ratio_BT[row, token].item(), 1.0)
            assert trusted_BT[row, token] == (mask_BT[row, token] and accepted)
    assert trusted_BT[0, 3] == 1.0  # the teacher finds it likelier than the student: always
    assert (trusted_BT + distrusted(Rollout(mask_BT), scores, Context(seed=3)) == mask_BT).all()


def test_as_many_are_trusted_as_the_ratio_says():
    mask_BT = torch.ones(200, 50, dtype=torch.bool)
    scores = Scores(torch.full((200, 50), 0.3).log(), torch.zeros(200, 50))
    assert trusted(Rollout(mask_BT), scores, Context()).mean().item() == pytest.approx(0.3, abs=0.015)  # 3 deviations
