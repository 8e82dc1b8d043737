"""Answers between the steps of a run: sampled with settings of their own, and without a trace in the training."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.trainers import sampling_trainer
from transformers import TrainerCallback

from fire_opd_trl import FiReOPDTrainer
from fire_opd_trl.stages import World
from fire_opd_trl.trainer.sampling import Sampler, SamplingCallback, hand_out_samplers, replaced


PROMPTS = [f"{first}+34=" for first in range(20, 27)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A trainer that would sample 8 rows at once, with settings of its own."""
    settings = {"temperature": 0.7, "top_k": 3, "generation_kwargs": {"typical_p": 0.9}, "preflight": False}
    folder = tmp_path_factory.mktemp("sampling")
    with pytest.warns(UserWarning, match="does not sample from its whole distribution"):
        return sampling_trainer(folder, allow_truncated_sampling=True, **settings)


def state_of(trainer) -> dict:
    """All that sampling could leave behind."""
    return {
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "training": [module.training for module in trainer.model.modules()],
        "settings": (trainer.generation_config.to_dict(), dict(trainer.generation_kwargs)),
        "of the model": trainer.model.generation_config.to_dict(),
        "metrics": {mode: dict(of) for mode, of in trainer._metrics.items()},
        "logs": {name: str(of) for name, of in trainer._logs.items()},
        "tokens": trainer.state.num_input_tokens_seen,
        "tools": (trainer.tools, trainer.environment_factories),
    }


def test_it_samples_with_its_own_settings_and_leaves_no_trace(trainer, monkeypatch):
    seen, generate = [], trainer.model.generate

    def watched(*args, generation_config, **kwargs):
        seen.append((generation_config, trainer.model.training, len(kwargs["input_ids"])))
        return generate(*args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(trainer.model, "generate", watched)
    trainer.model.train()
    trainer.model.lm_head.eval()  # a module that is not in training stays so
    before = state_of(trainer)
    found = Sampler(trainer).sample(PROMPTS, 5, 0.9, 66)
    assert state_of(trainer) == before
    assert [rows for *_, rows in seen] == [4, 3]  # answers twice as long as in training, half as many at once
    for config, in_training, _ in seen:
        assert (config.temperature, config.top_p, config.max_new_tokens, config.do_sample) == (0.9, 1.0, 66, True)
        assert (config.top_k, config.min_p, config.repetition_penalty, config.typical_p) == (0, None, 1.0, None)
        assert config.eos_token_id == trainer.eos_token_ids and not in_training
    assert len(found) == 7 and all(one.text and one.finished and 20 < one.tokens < 40 for one in found)


def test_the_seed_decides_and_the_greedy_answer_needs_none(trainer):
    sample = Sampler(trainer).sample
    hot = (3.0, 12)  # temperature, longest
    assert sample(PROMPTS, 1, *hot) == sample(PROMPTS, 1, *hot) != sample(PROMPTS, 2, *hot)
    assert len({one.text for one in sample(PROMPTS[:1] * 8, 1, *hot)}) > 4
    assert {one.finished for one in sample(PROMPTS, 1, max_new_tokens=5)} == {False}  # cut
    assert sample(PROMPTS, 1, 0.0, 12) == sample(PROMPTS, 2, 0.0, 12)


def test_a_failure_leaves_no_trace_either(trainer, monkeypatch):
    def out_of_memory(*args, **kwargs):
        random.random()
        raise MemoryError

    before = state_of(trainer)
    monkeypatch.setattr(FiReOPDTrainer, "_generate_single_turn", out_of_memory)
    with pytest.raises(MemoryError):
        Sampler(trainer).sample(PROMPTS, 5, 0.9, 66)
    assert state_of(trainer) == before


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_rows_are_dealt_out_so_that_all_ranks_make_equally_many_calls(trainer, count, monkeypatch):
    calls, dealt = [], []

    def answered(prompt_ids, *_):
        calls[-1].append(len(prompt_ids))
        return [[*ids, *trainer.eos_token_ids] for ids in prompt_ids], None

    def gathered(mine):
        dealt.append(mine)
        return [row for of_rank in dealt for row in of_rank]

    monkeypatch.setattr(trainer, "_generate_single_turn", answered)
    monkeypatch.setattr("fire_opd_trl.trainer.sampling.gather_object", gathered)
    for rank in (0, 1):
        world = World()
        world.rank, world.ranks = rank, 2
        monkeypatch.setattr(trainer, "world", world)
        calls.append([])
        try:
            found = Sampler(trainer).sample(PROMPTS[:1] * count, 0, max_new_tokens=99)
        except KeyError:  # the rows of the other rank are not there yet
            assert rank == 0 and count > 1
    assert calls[0] == calls[1] and sum(calls[0]) == -(-count // 2)
    assert len(found) == count and {one.text for one in found} == {PROMPTS[0]}


def test_an_engine_of_its_own_takes_all_rows_at_once_and_gets_its_settings_back(trainer, monkeypatch):
    engine = SimpleNamespace(
        temperature=0.7, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.1, max_completion_length=33,
        structured_outputs_regex="[0-9]", generation_kwargs={"seed": 3, "stop": ["x"]},
    )  # fmt: skip
    before, seen = dict(vars(engine)), []

    def answered(prompt_ids, *_):
        seen.append((len(prompt_ids), dict(vars(engine))))
        return [[*trainer.eos_token_ids] for _ in prompt_ids], None

    monkeypatch.setattr(trainer, "vllm_generation", engine, raising=False)
    monkeypatch.setattr(trainer, "use_vllm", True)
    monkeypatch.setattr(trainer.args, "generation_kwargs", {"seed": 3, "stop": ["x"]})
    monkeypatch.setattr(trainer, "_generate_single_turn", answered)
    Sampler(trainer).sample(PROMPTS * 9, 0, 0.6, 100)
    ((rows, settings),) = seen
    assert rows == 63 and vars(engine) == before
    assert (settings["temperature"], settings["top_p"], settings["max_completion_length"]) == (0.6, 1.0, 100)
    assert (settings["top_k"], settings["min_p"], settings["repetition_penalty"]) == (0, None, 1.0)
    # A seed would give all answers to a problem the same random numbers.
    assert settings["generation_kwargs"] == {"stop": ["x"]} and settings["structured_outputs_regex"] is None


def test_a_chat_model_reads_a_message_of_a_user_and_no_tools(trainer, monkeypatch):
    monkeypatch.setattr(trainer.processing_class, "chat_template", "{{ messages[0]['content'] }}")
    monkeypatch.setattr(trainer, "tools", [print])
    monkeypatch.setattr(trainer, "_tokenize_prompts", lambda prompts: (prompts, trainer.tools))
    read, tools = Sampler(trainer)._tokens(["1+2="])
    assert read == [[{"role": "user", "content": "1+2="}]] and tools == [] and trainer.tools == [print]


def test_an_empty_answer_has_no_token(trainer):
    sampler, pad, ends = Sampler(trainer), trainer._tokenizer.pad_token_id, trainer.eos_token_ids
    empty, ended = sampler._completion([pad]), sampler._completion(list(ends))
    assert (empty.text, empty.tokens, empty.finished) == ("", 0, True)
    assert (ended.text, ended.tokens, ended.finished) == ("", 1, True)


def test_a_log_of_its_own_takes_nothing_from_the_next_log_of_the_run(trainer):
    trainer._metrics["train"]["loss_of_mine"].append(2.0)
    trainer.control.should_log = True
    Sampler(trainer).log({"accuracy/x/avg@4": 0.5})
    assert {"accuracy/x/avg@4": 0.5, "step": 0}.items() <= trainer.state.log_history[-1].items()
    assert "loss_of_mine" not in trainer.state.log_history[-1]
    assert trainer._metrics["train"].pop("loss_of_mine") == [2.0] and trainer.control.should_log


def test_callbacks_that_sample_come_last_and_only_one_keeps_the_best(trainer, monkeypatch):
    sampling, other = SamplingCallback(), TrainerCallback()
    before = list(trainer.callback_handler.callbacks)
    monkeypatch.setattr(trainer.callback_handler, "callbacks", [sampling, *before, other])
    hand_out_samplers(trainer)
    assert trainer.callback_handler.callbacks == [*before, other, sampling]
    assert sampling.sampler is not None
    second = SamplingCallback()
    sampling.keeps_best = second.keeps_best = True
    trainer.callback_handler.callbacks.append(second)
    with pytest.raises(ValueError, match="Several callbacks keep the best model"):
        hand_out_samplers(trainer)


def test_a_task_that_nobody_would_measure_is_refused(trainer, monkeypatch):
    monkeypatch.setattr(trainer.args, "accuracy_task", "math500")
    with pytest.raises(ValueError, match="accuracy_task='math500' is read by `fire-opd train`. In Python, pass"):
        hand_out_samplers(trainer)


def test_what_is_replaced_comes_back():
    one = SimpleNamespace(a=1, b=2)
    with pytest.raises(KeyError), replaced(one, a=3):
        assert (one.a, one.b) == (3, 2)
        raise KeyError
    assert vars(one) == {"a": 1, "b": 2}
