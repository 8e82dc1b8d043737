"""Sampling with one random stream a row: what a row gets depends on nothing but its prompt, settings and seed."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate.decoding import Decoder, Row, next_tokens


@pytest.fixture(scope="module")
def student():
    folder = model_path("student")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(task.prompt(a, b))["input_ids"] for a, b in task.problems("test", 8)]
    return model, prompts


def rows_of(prompts, samples=2, **settings):
    settings = {"max_new_tokens": 40, **settings}
    return [
        Row(prompt, seed=100 * index + sample, key=(index, sample), **settings)
        for index, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def decoded(model, rows, batch_size, ends=frozenset({1}), **settings):
    """All rows, by their keys: their tokens, or the error."""
    found = {}
    decoder = Decoder(
        model,
        set(ends),
        0,
        batch_size,
        lambda row, error: found.update({row.key: error or list(row.tokens)}),
        **settings,
    )
    decoder.waiting.extend(rows)
    steps = 0
    while decoder.busy:
        decoder.step()
        steps += 1
        assert len(decoder.rows) <= batch_size and steps < 5000
    return found, steps


@torch.inference_mode()
def by_hand(model, row, ends=(1,)):
    """The tokens of a row without a cache, a batch or padding: every step reads the whole text again."""
    row.begin()
    while len(row.tokens) < row.max_new_tokens and not (row.tokens and row.tokens[-1] in ends):
        logits = model(torch.tensor([row.prompt + row.tokens])).logits[0, -1]
        shares = torch.softmax(logits / row.temperature, -1).cumsum(0, dtype=torch.float64)
        row.tokens.append(int((shares <= row.uniform() * shares[-1]).sum()))
    return row.tokens


def test_a_row_gets_what_the_model_says_of_it_alone(student):
    model, prompts = student
    found, steps = decoded(model, rows_of(prompts, temperature=3.0), batch_size=5)
    assert len({len(tokens) for tokens in found.values()}) > 3  # rows left and others entered, in the middle
    for row in rows_of(prompts[:4], temperature=3.0):
        assert found[row.key] == by_hand(model, row)


def test_neither_the_batch_nor_the_order_changes_a_row(student):
    model, prompts = student
    expected, _ = decoded(model, rows_of(prompts), batch_size=16)
    for batch_size, order in ((2, 1), (7, -1)):
        assert decoded(model, rows_of(prompts)[::order], batch_size)[0] == expected
    other = [Row(row.prompt, row.seed + 1, 40, key=row.key) for row in rows_of(prompts)]
    assert decoded(model, other, 16)[0] != expected


def test_rows_of_a_model_with_a_sliding_window_do_not_mix():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=6, eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    prompts = [[2 + (3 * index + place) % 14 for place in range(2 + index)] for index in range(6)]
    found, _ = decoded(model, rows_of(prompts, max_new_tokens=20), batch_size=4)
    for row in rows_of(prompts, max_new_tokens=20)[::3]:
        assert found[row.key] == by_hand(model, row)


def test_a_long_row_does_not_hold_the_finished_ones(student):
    model, prompts = student
    rows = rows_of(prompts)
    for row in rows:
        row.max_new_tokens = 3
    rows[0].max_new_tokens = 60
    ended = []
    decoder = Decoder(model, set(), 0, 4, lambda row, error: ended.append((row.key, steps)))
    decoder.waiting.extend(rows)
    steps = 0
    while decoder.busy:
        steps += 1
        decoder.step()
    assert ended[-1][0] == rows[0].key and ended[-2][1] < 60  # all others were through before the long one


def test_an_error_of_one_row_is_its_own(student):
    model, prompts = student
    expected, _ = decoded(model, rows_of(prompts[:5]), batch_size=16)

    class Refuses(torch.nn.Module):
        config, device = model.config, model.device

        def forward(self, input_ids, **arguments):
            if input_ids.shape[1] > 1 and (input_ids[:, -1] == 15).any():
                raise RuntimeError("this prompt breaks the kernel")
            return model(input_ids=input_ids, **arguments)

    bad = Row([*prompts[0][:-1], 15], seed=1, max_new_tokens=40, key="bad")
    found, _ = decoded(Refuses(), [*rows_of(prompts[:5])[:3], bad, *rows_of(prompts[:5])[3:]], batch_size=16)
    assert "breaks the kernel" in str(found.pop("bad"))
    assert found == expected


def test_a_batch_that_is_too_large_for_the_memory_is_halved(student):
    model, prompts = student

    class Small(torch.nn.Module):
        config, device = model.config, model.device

        def forward(self, input_ids, **arguments):
            if len(input_ids) > 3:
                raise torch.OutOfMemoryError("a batch of more than 3")
            return model(input_ids=input_ids, **arguments)

    assert decoded(Small(), rows_of(prompts[:5]), 8)[0] == decoded(model, rows_of(prompts[:5]), 8)[0]


def test_a_row_that_nobody_wants_leaves(student):
    model, prompts = student
    rows, unwanted = rows_of(prompts[:4]), {(0, 0), (3, 1)}
    found, _ = decoded(model, rows, 4, dropped=lambda row: row.key in unwanted and len(row.tokens) > 2)
    assert all(len(found[key]) == 3 for key in unwanted) and len(found[1, 0]) > 3


def test_tokens_come_as_often_as_the_model_says():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    rows = [Row([0], seed, 1, temperature=0.7) for seed in range(4000)]
    for row in rows:
        row.begin()
    tokens = torch.tensor(next_tokens(logits.expand(4000, 5), rows))
    expected = 4000 * torch.softmax(logits / 0.7, -1)[:4]
    chi2 = ((tokens.bincount(minlength=5)[:4] - expected) ** 2 / expected).sum()
    assert chi2 < 16.3 and tokens.max() < 4  # 0.999 of chi2 with 3 degrees of freedom

    for row in rows:
        row.top_p = 0.8  # 0.77 and 0.18 of the first two: both are needed
        row.begin()
    tokens = torch.tensor(next_tokens(logits.expand(4000, 5), rows)).bincount(minlength=5)
    share = torch.softmax(logits[:2] / 0.7, -1)[1]
    assert tokens[2:].sum() == 0 and abs(tokens[1] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_rows_of_other_settings_and_broken_logits_share_a_batch():
    logits = torch.tensor([[0.0, 3.0, 1.0], [float("nan"), 0.0, 0.0], [5.0, 0.0, 0.0]])
    rows = [Row([0], 0, 1, temperature=0.0), Row([0], 0, 1), Row([0], 0, 1, top_p=0.5)]
    for row in rows:
        row.begin()
    assert next_tokens(logits, rows) == [1, None, 0]
