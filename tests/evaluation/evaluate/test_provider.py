"""The provider of inspect-ai: why a completion ended, how long it is, and what of the model's own settings gets in."""

import asyncio
import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import provider
from fire_opd_trl.evaluation.evaluate.settings import Settings


SETTINGS = {"max_new_tokens": 40, "temperature": 1.0, "top_p": 1.0}
PROMPT = task.prompt(123, 456)


class Known:
    """What a sampler is told of its model."""

    def __init__(self, context=128, ends=(1, 14)):
        self.context, self.ends, self.tokenizer = context, set(ends), task.build_tokenizer()


TOKENS = Known().tokenizer(PROMPT)["input_ids"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The student, with a generation config that would change its samples."""
    folder = shutil.copytree(model_path("student"), tmp_path_factory.mktemp("provider") / "student")
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 3.0, "eos_token_id": [1, 14]}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return provider.load(folder, "float32", "cpu")


@pytest.fixture
def sampling(loaded):
    """Makes samplers, and closes them."""
    made = []

    def make(batch_size=8, **known):
        made.append(provider.Sampler(loaded, Known(**known), batch_size))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_sampler_counts_tokens_and_knows_the_end(sampling):
    config = SimpleNamespace(temperature=1.0, top_p=1.0, max_tokens=40, seed=0)
    sampler = sampling(ends={1})
    done = [asyncio.run(sampler.sample(TOKENS, config)) for config.seed in range(3)]
    assert all(one.stopped and one.tokens[-1] == 1 and 5 < len(one.tokens) < 40 for one in done)
    config.max_tokens, config.seed = 5, 0
    cut = asyncio.run(sampler.sample(TOKENS, config))
    assert not cut.stopped and cut.tokens == done[0].tokens[:5]


def test_nothing_but_the_end_tokens_of_the_generation_config_gets_in(sampling):
    sampler = sampling()
    futures = [sampler.ask(TOKENS, seed, **{**SETTINGS, "temperature": 3.0}) for seed in range(20)]
    rows = [future.result(60) for future in futures]
    assert all(row.tokens[-1] in (1, 14) or len(row.tokens) == 40 for row in rows)
    assert len({tuple(row.tokens) for row in rows}) > 10  # with top_k 1 there would be one


def test_a_completion_ends_where_the_context_ends(sampling):
    sampler = sampling(context=12, ends=())
    row = sampler.ask(TOKENS, 0, **SETTINGS).result(60)
    assert len(row.prompt) + len(row.tokens) == 12
    with pytest.raises(ValueError, match="20 tokens of 12"):
        sampler.ask([5] * 20, 0, **SETTINGS)


def test_what_is_expected_is_what_is_asked(sampling):
    sampler = sampling()
    alone = sampler.ask(TOKENS, 7, **SETTINGS).result(60)
    sampler.expect([(TOKENS, 7), (TOKENS, 8)], **SETTINGS)
    again = sampler.ask(TOKENS, 7, **SETTINGS)
    assert again.result(60).tokens == alone.tokens and len(sampler.expected) == 1


def test_a_sample_that_is_cancelled_leaves_and_a_closed_sampler_refuses(sampling):
    sampler = sampling(batch_size=2, context=None, ends=())
    assert sampler.ask(TOKENS, 0, **{**SETTINGS, "max_new_tokens": 100_000}).cancel()
    assert len(sampler.ask(TOKENS, 1, **SETTINGS).result(60).tokens) == 40
    sampler.close()
    with pytest.raises(RuntimeError, match="thread has ended"):
        sampler.ask(TOKENS, 2, **SETTINGS)
    assert not [thread for thread in threading.enumerate() if thread is sampler.thread]


def test_half_precision_is_not_used_on_a_cpu_unasked():
    def used(**settings):
        return provider.Transformers(Settings(**settings)).dtype(SimpleNamespace(dtype="bfloat16"))

    assert used(device="cpu") == "float32" and used(device="cuda:1") == "bfloat16"
    assert used(device="cpu", dtype="float16") == "float16"
    assert provider.load(model_path("student"), "bfloat16", "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_before_a_model_is_loaded(device):
    with pytest.raises(ValueError, match=f"--device {device}: it cannot be used here"):
        provider.Transformers(Settings(device=device)).check()


def test_weights_that_are_broken_or_not_there_are_refused(tmp_path):
    folder = shutil.copytree(model_path("student"), tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="its files lack 1 of its weights, first model.norm.weight"):
        provider.load(folder, "float32", "cpu")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="its weights cannot be read"):
        provider.load(folder, "float32", "cpu")
