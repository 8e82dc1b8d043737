"""
Divergences over the whole vocabulary and over the teacher's top k: the numbers of a dense float64 computation that
materialises everything, in values and gradients, at far less memory.
"""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from support.dense import (
    THRESHOLD,
    TOP_K,
    dense_eopd,
    dense_fire_full,
    dense_opd_full,
    dense_tip,
    sampled,
)
from support.launches import SUPPORT, run_killably
from support.worker import built
from transformers import AutoModelForCausalLM

import fire_opd_trl.scoring.divergences as vocabulary_module
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.scoring.divergences import FullDivergence, TopK, TopKDivergence, hidden_states
from fire_opd_trl.scoring.heads import Head


CASE = {"batch": 8, "accumulation": 4, "max_steps": 1, "scoring_token_budget": 300}


def window(case: dict, folder) -> tuple:
    """A trainer that has not trained, its window of frozen completions, and that window's micro-batches."""
    trainer = built(case, str(folder))
    trainer.model.train()
    generations = case.get("generations", 1)
    inputs = [trainer.train_dataset[row // generations] for row in range(32)]
    batch = trainer._generate_and_score_completions(inputs)
    return trainer, batch, trainer._micro_batches(dict(batch))


def dense_rows(batch, temperature: float):
    """For every trained row its sampled ids and all log-probabilities of student and teachers, in float64."""
    models = {}
    for name in ("student", "teacher"):
        models[name] = AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float64)
    by_number = [models["teacher"].requires_grad_(False), AutoModelForCausalLM.from_pretrained(
        model_path("student"), dtype=torch.float64).requires_grad_(False)]  # fmt: skip
    rows = []
    for row in range(len(batch["prompt_ids"])):
        if not batch["train_mask"][row].any():
            continue
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        sampled = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        ids = torch.cat([prompt, sampled]).unsqueeze(0)

        def distribution(model, ids=ids, start=len(prompt)):
            return (model(ids).logits[0, start - 1 : -1] / temperature).log_softmax(dim=-1)

        teacher = by_number[int(batch["teacher_number"][row])]
        rows.append((row, sampled, distribution(models["student"]), distribution(teacher)))
    return models["student"], rows


def dense_tropd(rows, distrusted):
    losses = []
    for row, ids, s, t in rows:
        out = distrusted[row][: len(ids)].double()  # the coins are the trainer's own, the rest is not
        advantage = (1 - out) * (sampled(t, ids) - sampled(s, ids)).detach()
        gradient = advantage * (sampled(s, ids) - sampled(s, ids).detach()).exp()
        top = t.topk(TOP_K, dim=1)
        forward_kl = (top.values.exp() * (top.values - s.gather(1, top.indices))).sum(dim=1)
        losses.append((-gradient + out * forward_kl).mean())
    return torch.stack(losses).mean()


DENSE = {
    "tropd": (dense_tropd, {"top_k": TOP_K}),
    "opd_full": (dense_opd_full, {}),
    "tip": (dense_tip, {}),
    "eopd": (dense_eopd, {"threshold": THRESHOLD, "top_k": TOP_K}),
    "fire_full": (dense_fire_full, {}),
}


@pytest.mark.parametrize("two_teachers", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("method", DENSE)
def test_loss_and_gradient_are_those_of_a_dense_computation(method, temperature, two_teachers, tmp_path):
    dense, kwargs = DENSE[method]
    config = {"temperature": temperature, "method_kwargs": kwargs}
    trainer, batch, parts = window(
        {**CASE, "method": method, "two_teachers": two_teachers, "config": config}, tmp_path
    )
    loss = sum(trainer.compute_loss(trainer.model, part) for part in parts)
    loss.backward()

    reference, rows = dense_rows(batch, temperature)
    expected = dense(rows, batch["divergence"]) if method == "tropd" else dense(rows)
    expected.backward()
    assert expected.item() > 0.1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = max(parameter.grad.abs().max().item() for parameter in reference.parameters())
    for (name, ours), theirs in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        apart = (ours.grad.double() - theirs.grad).abs().max().item()
        assert apart < 1e-5 * largest, name


def test_with_a_reward_or_a_penalty_the_divergence_is_added_to_their_gradient(tmp_path):
    """A pure divergence has no backward through the log-probabilities; GRPO's terms bring it back."""
    losses = {}
    for name, config in {
        "plain": {},
        "reward": {"reward_coef": 1.0},
        "penalty": {"beta": 0.5},
    }.items():
        case = {**CASE, "method": "opd_full", "generations": 4, "rewards": True, "config": config}
        trainer, _, parts = window(case, tmp_path / name)
        sum(trainer.compute_loss(trainer.model, part) for part in parts).backward()
        losses[name] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert (losses["reward"] - losses["plain"]).abs().max() > 1e-2
    # Student and reference are equal, where the penalty has gradient zero, up to the rounding of 1 - exp(0).
    torch.testing.assert_close(losses["penalty"], losses["plain"], rtol=0, atol=1e-6)


# Heads of every kind


def random_head(rows: int, width: int, bias: bool, scale: float, softcap: float | None, seed: int):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    offset = torch.randn(rows, generator=generator, dtype=torch.float64) if bias else None
    return weight, offset, scale, softcap


def dense_logps(hidden, weight, bias, scale, softcap, temperature):
    raw = hidden @ weight.T + (0 if bias is None else bias)
    logits = raw * scale
    return ((softcap * torch.tanh(logits / softcap) if softcap else logits) / temperature).log_softmax(dim=-1)


HEADS = [(False, 1.0, None), (True, 0.5, None), (True, 1.0, 3.0), (False, 2.0, 5.0)]


@pytest.mark.parametrize("tile", [1, 100, 2**24])
@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_top_k_and_its_divergence_agree_with_dense_float64(bias, scale, softcap, tile, monkeypatch):
    monkeypatch.setattr(vocabulary_module, "LARGEST_TILE", tile)
    rows, length, vocab, width, temperature = 3, 5, 23, 8, 0.8
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 2, 4]
    ids = torch.randint(vocab, (rows, length), generator=generator)
    chosen = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 0]]).bool()

    teacher = random_head(vocab, width + 3, bias, scale, softcap, seed=1)
    theirs = torch.randn(rows, length, width + 3, generator=generator, dtype=torch.float64)
    head = Head(
        teacher[0].float(), None if teacher[1] is None else teacher[1].float(), scale, softcap, width + 3, False
    )
    seen = TopK(4, temperature, torch.ones(theirs.shape[:2], dtype=torch.bool))(theirs.float(), head, None)
    dense_top = dense_logps(theirs, *teacher, temperature).topk(4, dim=-1)
    assert torch.equal(seen["top_ids"].long(), dense_top.indices)
    torch.testing.assert_close(seen["top_logps"].double(), dense_top.values, rtol=1e-5, atol=1e-5)

    student = random_head(vocab, width, bias, scale, softcap, seed=2)
    hidden = torch.randn(rows, length, width, generator=generator, dtype=torch.float64)
    parameters = [hidden, student[0], *([student[1]] if bias else [])]
    parameters = [value.requires_grad_() for value in parameters]
    dense = dense_logps(hidden, *student, temperature)
    expected = (dense_top.values.exp() * (dense_top.values - dense.gather(2, dense_top.indices))).sum(dim=-1)
    coefficient = torch.rand(rows, length, generator=generator, dtype=torch.float64)
    (coefficient * expected)[chosen].sum().backward()

    ours = [value.detach().float().requires_grad_() for value in parameters]
    logps = dense_logps(ours[0], ours[1], ours[2] if bias else None, scale, softcap, temperature)
    part = {
        "top_ids": [row[:size] for row, size in zip(seen["top_ids"], lengths, strict=True)],
        "top_logps": [row[:size] for row, size in zip(seen["top_logps"], lengths, strict=True)],
        "completion_ids": ids,
    }
    head = Head(ours[1], ours[2] if bias else None, scale, softcap, width, False)
    logp = logps.gather(2, ids.unsqueeze(2)).squeeze(2)  # as the fused head gives it, with its gradient
    value = TopKDivergence(part, chosen, temperature)(ours[0], head, logp)["divergence"]
    torch.testing.assert_close(value.double(), torch.where(chosen, expected, 0.0), rtol=1e-5, atol=1e-5)
    (coefficient.float() * value).sum().backward()
    for mine, reference in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_teachers_top_k_is_not_rounded_to_the_precision_of_its_layers(autocast):
    torch.manual_seed(0)
    hidden_BTH, weight_VH = torch.randn(1, 8, 64).bfloat16(), (2 * torch.randn(50, 64)).bfloat16()
    exact = (hidden_BTH.double() @ weight_VH.double().T).log_softmax(dim=2).topk(4, dim=2)
    head = Head(weight_VH.float() if autocast else weight_VH, None, 1.0, None, 64, False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden_BTH = hidden_BTH.float() if autocast else hidden_BTH
        seen = TopK(4, 1.0, torch.ones(1, 8, dtype=torch.bool))(hidden_BTH, head, None)
    assert torch.equal(seen["top_ids"].long(), exact.indices)
    # Logits are up to 64: rounded to bfloat16, which has 8 bits, they would be off by up to 1/8.
    assert torch.allclose(seen["top_logps"].double(), exact.values, atol=1e-4)


@pytest.mark.parametrize("mixture", [1.0, 0.0, 0.3])
@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_the_full_divergence_agrees_with_dense_float64(bias, scale, softcap, mixture):
    rows, length, vocab, temperature = 4, 5, 23, 0.8
    generator = torch.Generator().manual_seed(3)
    lengths, numbers = [5, 2, 4, 3], torch.tensor([0, 1, 1, 0])
    chosen = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]).bool()
    student = random_head(vocab, 8, bias, scale, softcap, seed=4)
    widths, teachers, hidden_of = (6, 11), [], []
    for number, width in enumerate(widths):
        teachers.append(random_head(vocab, width, bias, 1 / scale, None, seed=5 + number))
        hidden_of.append(torch.randn(rows, length, width, generator=generator, dtype=torch.float64))
    hidden = torch.randn(rows, length, 8, generator=generator, dtype=torch.float64)
    parameters = [value.requires_grad_() for value in (hidden, student[0], *([student[1]] if bias else []))]
    s = dense_logps(hidden, *student, temperature)
    t = torch.stack([dense_logps(hidden_of[n][row], *teachers[n], temperature) for row, n in enumerate(numbers)])
    if mixture in (0.0, 1.0):
        first, second = (s, t) if mixture else (t, s)
        expected = (first.exp() * (first - second)).sum(dim=-1)
    else:
        m = ((1 - mixture) * s.exp() + mixture * t.exp()).log()
        expected = mixture * (t.exp() * (t - m)).sum(-1) + (1 - mixture) * (s.exp() * (s - m)).sum(-1)
    expected[chosen].sum().backward()

    def model(head, width):
        weight, offset, multiplier, cap = head
        config = SimpleNamespace(
            hidden_size=width, logit_scale=multiplier, final_logit_softcapping=cap, model_type="any"
        )
        config.get_text_config = lambda: config
        layer = SimpleNamespace(weight=weight.float(), bias=None if offset is None else offset.float())
        return SimpleNamespace(config=config, get_output_embeddings=lambda: layer)

    ours = [value.detach().float().requires_grad_() for value in parameters]
    part = {
        "teacher_hidden": [hidden_of[n][row, : lengths[row]].float() for row, n in enumerate(numbers)],
        "teacher_number": numbers,
    }
    models = [model(head, width) for head, width in zip(teachers, widths, strict=True)]
    observer = FullDivergence(part, chosen, models, mixture, temperature)
    head = Head(ours[1], ours[2] if bias else None, scale, softcap, 8, False)
    value = observer(ours[0], head, None)["divergence"]
    torch.testing.assert_close(value.double(), torch.where(chosen, expected, 0.0), rtol=1e-4, atol=1e-5)
    value.sum().backward()
    for mine, reference in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [0, 3])
def test_a_slice_without_a_chosen_token_is_a_zero_that_can_be_differentiated(top_k):
    """What a rank runs when it has no row left: sharded heads are gathered in it, so it must not be skipped."""
    hidden, weight = torch.randn(1, 4, 8, requires_grad=True), torch.randn(23, 8, requires_grad=True)
    chosen, head = torch.zeros(1, 4).bool(), Head(weight, None, 1.0, None, 8, False)
    if top_k:
        part = {"top_ids": [torch.zeros(0, 3).int()], "top_logps": [torch.zeros(0, 3)]}
        observer = TopKDivergence({**part, "completion_ids": torch.zeros(1, 4).long()}, chosen, 1.0)
    else:
        config = SimpleNamespace(hidden_size=5, model_type="any")
        config.get_text_config = lambda: config
        layer = SimpleNamespace(weight=torch.randn(23, 5), bias=None)
        teacher = SimpleNamespace(config=config, get_output_embeddings=lambda: layer)
        part = {"teacher_hidden": [torch.zeros(0, 5)], "teacher_number": torch.tensor([0])}
        observer = FullDivergence(part, chosen, [teacher], 1.0, 1.0)
    value = observer(hidden, head, hidden.sum(dim=2) * 0.0)["divergence"]
    assert torch.equal(value, torch.zeros(1, 4))
    value.sum().backward()
    assert not hidden.grad.any() and not weight.grad.any()


# Cost


@pytest.fixture(scope="module")
def peak():
    """`peak(method, how)`: what `support/memory_worker.py` saw of a method, ours or dense."""
    pairs = [(method, "ours") for method in ("opd_full", "tip", "fire_full", "eopd")]
    pairs += [("opd_full", "dense"), ("eopd", "dense")]
    words = [word for pair in pairs for word in pair]
    code, output = run_killably([sys.executable, str(SUPPORT / "memory_worker.py"), *words])
    assert code == 0, output[-4000:]
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"method"')]
    seen = {(line["method"], line["how"]): line for line in lines}
    assert list(seen) == pairs
    return lambda *pair: seen[pair]


@pytest.mark.launch
@pytest.mark.parametrize("method", ["opd_full", "tip", "fire_full", "eopd"])
def test_peak_memory_at_a_vocabulary_of_50_000_is_far_below_the_dense_version(method, peak):
    ours, dense = peak(method, "ours"), peak("eopd" if method == "eopd" else "opd_full", "dense")
    assert ours["peak_mb"] * 2 < dense["peak_mb"], (ours, dense)
    assert ours["largest_of_logits"] < 0.1 and dense["largest_of_logits"] >= 1, (ours, dense)


def test_a_gpu_reads_the_head_few_times():
    """Of 16384 tokens at a vocabulary of 151936: 2^23 // 151936 = 55 rows a tile on a CPU, 2^27 // 151936 = 883."""
    reads = {kind: len(vocabulary_module.tiles(16384, 151936, torch.device(kind))) for kind in ("cpu", "cuda")}
    assert reads == {"cpu": math.ceil(16384 / 55), "cuda": math.ceil(16384 / 883)} == {"cpu": 298, "cuda": 19}


def test_hidden_states_are_kept_in_the_precision_in_which_the_head_multiplies_them():
    torch.manual_seed(0)
    states_TH, student_BTH = torch.randn(6, 8), torch.randn(1, 6, 8)
    teacher = torch.nn.Linear(8, 16, bias=False)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace()), get_output_embeddings=lambda: teacher
    )
    head = Head(torch.randn(16, 8), None, 1.0, None, 8, False)

    def divergence(states_TH):
        part = {"teacher_hidden": [states_TH], "teacher_number": torch.tensor([0])}
        chosen_BT = torch.ones((1, 6), dtype=torch.bool)
        return FullDivergence(part, chosen_BT, [model], 1.0, 1.0)(student_BTH, head, None)["divergence"]

    for autocast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            kept_TH = hidden_states(states_TH[None], head, None)["teacher_hidden"][0]
            assert kept_TH.dtype == dtype and torch.equal(divergence(kept_TH), divergence(states_TH))
    with torch.no_grad():  # a head in float32 over a model in 16 bits: the states stay in 16, the products are in 32
        head.float32, half_TH = True, states_TH.bfloat16()
        kept_TH = hidden_states(half_TH[None], head, None)["teacher_hidden"][0]
        assert kept_TH.dtype == torch.bfloat16 and torch.equal(divergence(kept_TH), divergence(half_TH.float()))
