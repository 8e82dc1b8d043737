"""Prompts that are malformed or too long are named before a model is loaded."""

import pytest
from support.trainers import GOOD, sample_trainer

from fire_opd_trl.rollouts.prompts import refuse_malformed


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": None}, "train_dataset row 1: `prompt` is missing"),
        ({"prompt": ""}, "train_dataset row 1: `prompt` is empty"),
        ({"prompt": "1" * 96}, "train_dataset row 1: the prompt has 96 tokens, and 95 fit"),
        ({"prompt": " \n\t"}, "train_dataset row 1: `prompt` holds nothing but spaces"),
    ],
)
def test_f12_f47_a_bad_row_is_named_before_a_model_is_loaded(monkeypatch, tmp_path, row, sentence):
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: pytest.fail("model loaded")
    )
    with pytest.raises(ValueError, match=sentence):
        sample_trainer(tmp_path, [GOOD, row])


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([{"role": "robot", "content": "hi"}], "row 1: the role 'robot' is unknown"),
        ([{"role": "user", "content": None}], "row 1: the message .* has no `content`"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "row 1: the last message is the"),
        ([], "row 1: `prompt` is \\[\\]"),
        ([{"role": "system", "content": ""}], "row 1: `prompt` is empty: no message says anything"),
    ],
)
def test_f47_a_bad_conversation_is_named(tmp_path, prompt, sentence):
    from fire_opd_trl.rollouts.prompts import refuse_malformed

    with pytest.raises(ValueError, match=sentence):
        refuse_malformed({"prompt": prompt}, 1, "train_dataset")
    tool_call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    user = {"role": "user", "content": "a"}
    refuse_malformed({"prompt": [user, tool_call, {"role": "tool", "content": "1"}, user]}, 1, "train_dataset")


def test_f47_a_dataset_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has no column `prompt`. It has: question"):
        sample_trainer(tmp_path, [{"question": "1+1="}])


def test_f12_long_rows_are_left_out_and_counted_when_asked(tmp_path):
    rows = [GOOD, {"prompt": "1" * 30}, GOOD, {"prompt": "1" * 31}]
    with pytest.warns(
        UserWarning, match="train_dataset: 1 of 4 rows left out, their prompts are longer than 30 tokens"
    ):
        trainer = sample_trainer(tmp_path, rows, max_prompt_length=30, overlong_prompts="drop")
    assert len(trainer.train_dataset) == 3


def test_a_user_who_says_nothing_is_refused_also_where_a_system_prompt_stands_before():
    silent = [{"role": "system", "content": "Be short."}, {"role": "user", "content": " \n"}]
    with pytest.raises(ValueError, match="row 4: `prompt` is empty: the user says nothing"):
        refuse_malformed({"prompt": silent}, 4, "train_dataset")
    refuse_malformed({"prompt": [*silent[:1], {"role": "user", "content": "1+1="}]}, 4, "train_dataset")


def test_blank_parts_say_nothing_and_a_picture_says_something():
    blank = {"type": "text", "text": " "}
    with pytest.raises(ValueError, match="the user says nothing"):
        refuse_malformed({"prompt": [{"role": "user", "content": [blank]}]}, 4, "train_dataset")
    refuse_malformed({"prompt": [{"role": "user", "content": [{"type": "image"}, blank]}]}, 4, "train_dataset")
    refuse_malformed({"prompt": [{"role": "user", "content": ""}]}, 4, "train_dataset", pictured=True)
