"""A teacher that only guesses stops the run; it goes on where that is asked for."""

import pytest
import torch
from support.folders import loaded
from support.trainers import sampling_trainer
from transformers import AutoModelForCausalLM

from fire_opd_trl.demo import task


@pytest.mark.parametrize("method", ["opd", "fire"])
def test_a_teacher_that_guesses_stops_the_run_before_a_weight_moves(tmp_path, method):
    config = loaded("teacher").config
    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(config)
    trainer = sampling_trainer(tmp_path, rows=32, teacher=untrained, method=method)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    guess = r"step 0: teacher 'teacher' .* -2\.\d\d in the mean.*16 tokens gives -2\.77.*random or lost"
    with pytest.raises(FloatingPointError, match=guess):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_a_guessing_teacher_is_let_through_when_asked_for(tmp_path):
    untrained = AutoModelForCausalLM.from_config(loaded("teacher").config)
    trainer = sampling_trainer(tmp_path, rows=32, teacher=untrained, allow_guessing_teacher=True)
    trainer.train()
    assert trainer.state.global_step == 1


def test_of_several_teachers_the_guessing_one_is_named(tmp_path):
    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(loaded("teacher").config)
    trainer = sampling_trainer(tmp_path, rows=32, teacher={"good": loaded("teacher"), "lost": untrained},
                               dataset=routed(64))  # fmt: skip
    with pytest.raises(FloatingPointError, match="teacher 'lost'"):
        trainer.train()


def routed(rows: int):
    dataset = task.dataset("train", rows, seed=0)
    return dataset.add_column("teacher_id", ["good" if row % 3 == 0 else "lost" for row in range(rows)])
