"""Environments and tools, with a tiny model that chats: they may give rewards; what they say never trains."""

import json

import pytest
import torch
from datasets import Dataset
from support.trainers import logs_of
from support.vision import characters, template
from support.worker import recorded
from transformers import Qwen3Config, Qwen3ForCausalLM

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer


class Adder:
    """Offers a tool, and no reward."""

    def reset(self, **columns) -> str | None:
        self.calls = []

    def add(self, a: int, b: int) -> int:
        """
        Adds two numbers.

        Args:
            a: One number.
            b: The other.

        Returns:
            Their sum.
        """
        self.calls.append((a, b))
        return a + b


class Judge(Adder):
    """The same, and tells how good it was."""

    def get_reward(self) -> float:
        return float(len(self.calls))


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: One number.
        b: The other.

    Returns:
        Their sum.
    """
    return a + b


def chat_model(seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(characters()), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.2,
            eos_token_id=1, pad_token_id=0, bos_token_id=None,
        )
    ).eval()  # fmt: skip


def chat_trainer(folder, monkeypatch, says: list[str], columns: dict | None = None, **kwargs) -> FiReOPDTrainer:
    """A trainer whose student is made to say these turns, one a call, and which is otherwise real."""
    tokenizer = characters()
    tokenizer.chat_template = template("qwen3_instruct_2507")
    config = {"method": "opd", "per_device_train_batch_size": 4, "max_steps": 1, **kwargs.pop("config", {})}
    trainer = FiReOPDTrainer(
        model=chat_model(0),
        teacher_model=chat_model(1),
        args=FiReOPDConfig(
            str(folder), max_completion_length=300, shuffle_dataset=False, save_strategy="no", logging_steps=1,
            disable_tqdm=True, preflight=False, bf16=False, use_cpu=True, learning_rate=0.1,
            allow_guessing_teacher=True, **config,
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": f"{row} + 2?"}] for row in range(4)], **(columns or {})}
        ),
        processing_class=tokenizer,
        **kwargs,
    )  # fmt: skip
    turns = iter(says)

    def said(self, prompt_ids, *args, **kwargs):
        ids = tokenizer(next(turns))["input_ids"] + [tokenizer.eos_token_id]
        return [list(ids) for _ in prompt_ids], None

    monkeypatch.setattr("trl.GRPOTrainer._generate_single_turn", said)
    return trainer


CALL = f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': {'a': 1, 'b': 2}})}\n</tool_call>"
ANSWER = "It is 3."


@pytest.mark.parametrize("given", [{"environment_factory": Adder}, {"tools": [add]}])
def test_without_any_reward_the_student_trains_on_its_own_turns_alone(given, tmp_path, monkeypatch):
    trainer = chat_trainer(tmp_path, monkeypatch, [CALL, ANSWER], config={"log_rollouts": 4}, **given)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    (log,) = logs_of(trainer)
    assert not [name for name in log if "reward" in name]
    assert log["tools/call_frequency"] == 1.0 and log["fire/kept_rows"] == 4
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    (part,) = trainer._buffered_inputs
    for row in range(4):
        ids = part["completion_ids"][row]
        trained = "".join(characters().convert_ids_to_tokens(ids[part["train_mask"][row]]))
        assert trained == f"{CALL}<|im_end|>{ANSWER}<|im_end|>"
        masked = part["completion_mask"][row].bool() & ~part["train_mask"][row]
        told = "".join(characters().convert_ids_to_tokens(ids[masked]))
        assert "<tool_response>\n3\n</tool_response>" in told  # it is read, and never trained
        assert not part["advantages"][row][masked].any()
    for record in recorded(tmp_path):
        texts, trains = record["tokens"], record["trains"]
        trained = "".join(text for text, own in zip(texts, trains, strict=True) if own)
        assert trained == f"{CALL}<|im_end|>{ANSWER}<|im_end|>" and not all(trains)
        assert "<tool_response>\n3\n</tool_response>" in record["completion"] == "".join(texts)
        assert not any(
            w or a for w, a, own in zip(record["weight"], record["advantage"], trains, strict=True) if not own
        )


def test_an_environment_that_gives_rewards_is_asked_for_them(tmp_path, monkeypatch):
    trainer = chat_trainer(tmp_path, monkeypatch, [CALL, ANSWER], environment_factory=Judge)
    trainer.train()
    (log,) = logs_of(trainer)
    assert log["rewards/Judge/mean"] == 1.0 and log["reward"] == 1.0  # one call in each row


def test_environments_with_and_without_rewards_train_side_by_side(tmp_path, monkeypatch):
    columns = {"environment": ["quiet", "judge"] * 2}
    factories = {"quiet": Adder, "judge": Judge}
    trainer = chat_trainer(tmp_path, monkeypatch, [CALL, ANSWER], columns, environment_factory=factories)
    trainer.train()
    (log,) = logs_of(trainer)
    assert log["rewards/Judge/mean"] == 1.0 and log["fire/kept_rows"] == 4  # the rows without a reward train too


def test_weights_do_not_reach_the_reward_of_an_environment(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"reward_weights=\[0.25\] is refused.*rewards of an environment count once"):
        chat_trainer(tmp_path, monkeypatch, [], environment_factory=Judge, config={"reward_weights": [0.25]})


@pytest.mark.parametrize("config", [{"reward_coef": 0.5, "num_generations": 2}])
def test_an_environment_without_rewards_gives_none_to_read(config, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="reward_coef=0.5 has no reward to read. Pass reward_funcs, or set it to 0."):
        chat_trainer(tmp_path, monkeypatch, [], environment_factory=Adder, config=config)
