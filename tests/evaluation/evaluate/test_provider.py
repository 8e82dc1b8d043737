"""The provider of inspect-ai: why a completion ended, how long it is, and what of the model's own settings gets in."""

import asyncio
import json
import shutil
import threading

import pytest
import torch

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import provider


SETTINGS = {"max_new_tokens": 40, "temperature": 1.0, "top_p": 1.0}
PROMPT = task.prompt(123, 456)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The student, with a generation config that would change its samples."""
    folder = shutil.copytree(model_path("student"), tmp_path_factory.mktemp("provider") / "student")
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 3.0, "eos_token_id": [1, 14]}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return provider.load(str(folder), "float32", "cpu")


@pytest.fixture
def sampler(loaded):
    made = provider.Sampler(*loaded, batch_size=8)
    yield made
    made.close()


def test_a_sampler_counts_tokens_and_knows_the_end(sampler):
    sampler.decoder.end_tokens = {1}
    rows = [sampler.ask(PROMPT, seed, **SETTINGS).result(60) for seed in range(6)]
    assert {sampler.text(row).count(";") for row in rows} == {1}
    assert all(
        sampler.stopped(row) and len(row.tokens) == len(sampler.text(row)) + 1 for row in rows
    )  # one a character
    short = sampler.ask(PROMPT, 0, **{**SETTINGS, "max_new_tokens": 5}).result(60)
    assert not sampler.stopped(short) and short.tokens == rows[0].tokens[:5]


def test_nothing_but_the_end_tokens_of_the_generation_config_gets_in(sampler):
    assert sampler.decoder.end_tokens == {1, 14}  # and a comma ends a completion now
    rows = [sampler.ask(PROMPT, seed, **{**SETTINGS, "temperature": 3.0}).result(60) for seed in range(20)]
    assert all(row.tokens[-1] in (1, 14) or len(row.tokens) == 40 for row in rows)
    assert len({tuple(row.tokens) for row in rows}) > 10  # with top_k 1 there would be one


def test_a_completion_ends_where_the_context_ends(loaded):
    made = provider.Sampler(*loaded, batch_size=2)
    made.context, made.decoder.end_tokens = 12, set()
    row = made.ask(PROMPT, 0, **SETTINGS).result(60)
    assert len(row.prompt) + len(row.tokens) == 12 and not made.stopped(row)
    with pytest.raises(ValueError, match="20 tokens, and the model's context has 12"):
        made.ask("1" * 20, 0, **SETTINGS)
    with pytest.raises(ValueError, match="prompt is empty"):
        made.ask("", 0, **SETTINGS)
    made.close()


def test_what_is_expected_is_what_is_asked(sampler):
    alone = sampler.ask(PROMPT, 7, **SETTINGS).result(60)
    sampler.expect([(PROMPT, 7), ("", 1), (PROMPT, 8)], **SETTINGS)
    again = sampler.ask(PROMPT, 7, **SETTINGS)
    assert again.result(60).tokens == alone.tokens and len(sampler.expected) == 1
    with pytest.raises(ValueError, match="prompt is empty"):
        sampler.ask("", 1, **SETTINGS)


def test_a_sample_that_is_cancelled_leaves_and_a_closed_sampler_refuses(loaded):
    made = provider.Sampler(*loaded, batch_size=2)
    made.decoder.end_tokens = set()
    future = made.ask(PROMPT, 0, **{**SETTINGS, "max_new_tokens": 100_000})
    made.context = None
    assert future.cancel()
    assert len(made.ask(PROMPT, 1, **SETTINGS).result(60).tokens) == 40
    made.close()
    with pytest.raises(RuntimeError, match="thread has ended"):
        made.ask(PROMPT, 2, **SETTINGS)
    assert not [thread for thread in threading.enumerate() if thread is made.thread]


def test_inspect_gets_stop_reasons_and_tokens(sampler):
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    sampler.decoder.end_tokens = {1}
    model = provider.as_inspect_model(sampler, "student")
    asked = [ChatMessageUser(content=PROMPT)]

    async def both():
        config = {"temperature": 1.0, "top_p": 1.0, "seed": 3}
        return await asyncio.gather(
            *(model.generate(asked, config=GenerateConfig(max_tokens=most, **config)) for most in (40, 6))
        )

    whole, cut = asyncio.run(both())
    assert (whole.stop_reason, cut.stop_reason) == ("stop", "max_tokens")
    assert whole.usage.output_tokens == len(whole.completion) + 1 and cut.usage.output_tokens == 6
    assert whole.usage.input_tokens == len(PROMPT) and whole.completion.startswith(cut.completion)
    assert model.api.max_connections() == 16


def test_a_chat_template_is_told_about_thinking_and_adds_the_beginning_token(loaded):
    model, tokenizer = loaded
    assert provider.render(tokenizer, [{"role": "user", "content": "1+1="}], True) == "1+1="
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ ';' if enable_thinking else '=' }}"
    try:
        assert provider.render(tokenizer, [{"role": "user", "content": "1+1"}], True) == "1+1;"
        assert provider.render(tokenizer, [{"role": "user", "content": "1+1"}], False) == "1+1="
    finally:
        tokenizer.chat_template = None


def test_half_precision_is_not_used_on_a_cpu_unasked(tmp_path):
    folder = shutil.copytree(model_path("student"), tmp_path / "student")
    assert provider.dtype_used(folder, "auto", "cpu", False) == "float32"
    assert provider.dtype_used(folder, "auto", "cuda:1", False) == "bfloat16"
    assert provider.dtype_used(folder, "float16", "cpu", False) == "float16"
    assert provider.load(str(folder), "bfloat16", "cpu")[0].dtype == torch.bfloat16
