"""Rollouts by a real vLLM in the trainer's process, on the CPU: `make test-vllm`."""

import math
import warnings

import pytest
import torch


pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytest.importorskip("vllm_on_cpu", reason="tests/engine/plugin is not on PYTHONPATH: make test-vllm")

from support.folders import loaded  # noqa: E402
from support.scorers import watch_scorers  # noqa: E402

import fire_opd_trl.trainer.trainer as trainer_module  # noqa: E402
from fire_opd_trl import METHODS, FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.rollouts.engine_gap import EngineMonitor  # noqa: E402
from fire_opd_trl.trainer.sampling import Sampler  # noqa: E402


ROWS = 512  # as in the demo: what differs at few tokens needs some
SMALL = 0.01  # nats: vLLM samples in bfloat16, the student trains in float32


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One engine for all tests: a second one in the same process is not to be had."""
    args = FiReOPDConfig(
        str(tmp_path_factory.mktemp("vllm")), use_cpu=True, bf16=False, per_device_train_batch_size=ROWS, max_steps=2,
        learning_rate=4e-4, max_completion_length=33, logging_steps=1, save_strategy="no", disable_tqdm=True,
        preflight=False, use_vllm=True, vllm_mode="colocate", vllm_max_model_length=64, drop_fraction=0.2,
    )  # fmt: skip
    trainer = FiReOPDTrainer(loaded("student"), loaded("teacher"), args, task.dataset("train", 2048, seed=0))
    return trainer, {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture
def trainer(built):
    """The trainer as it was built, ready for a run."""
    trainer, start = built
    trainer.model.load_state_dict(start)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.method = METHODS["fire"](drop_fraction=0.2)
    trainer.engine_monitor = EngineMonitor(trainer.args)
    trainer.state.log_history.clear()
    for metrics in trainer._metrics.values():
        metrics.clear()
    return trainer


def logs_of(trainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "grad_norm" in log]


def greedy_of_engine(trainer, prompts: list[list[int]]) -> list[list[int]]:
    from vllm import SamplingParams

    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = trainer.vllm_generation.llm.generate(
        inputs, SamplingParams(temperature=0, max_tokens=33), use_tqdm=False
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def greedy_of_model(trainer, prompts: list[list[int]]) -> list[list[int]]:
    model, eos = trainer.model.eval(), trainer.eos_token_ids  # gradient checkpointing has no cache
    found = []
    for ids in prompts:
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=33, eos_token_id=eos)
        found.append(out[0, len(ids) :].tolist())
    model.train()
    return found


def test_it_trains_and_the_engine_agrees_with_the_student(trainer, monkeypatch):
    calls = watch_scorers(trainer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*differ by")
        trainer.train()
    logs = logs_of(trainer)
    assert len(logs) == 2
    for log in logs:
        assert log["fire/sampling_gap"] < SMALL and abs(log["fire/sampling_kl"]) < 2e-3
        assert log["fire/sampling_unknown"] == 0 and log["fire/kept_rows"] > 0
        assert log["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=SMALL)
        assert math.isfinite(log["loss"]) and log["entropy"] > 0 and "fire/confusion" in log
    # Old log-probabilities and entropies of the student in one forward, and one of the teacher, for each window.
    assert calls == 2 * ["student", "teacher"]


def test_greedy_outputs_follow_the_new_weights_after_each_step(trainer, monkeypatch):
    prompts = trainer._tokenizer([row["prompt"] for row in task.dataset("test", 24, seed=3)])["input_ids"]
    seen, generate = [], trainer.vllm_generation.generate

    def watched(**kwargs):
        seen.append((greedy_of_engine(trainer, prompts), greedy_of_model(trainer, prompts)))
        return generate(**kwargs)

    monkeypatch.setattr(trainer.vllm_generation, "generate", watched)
    trainer.train()
    trainer.train()  # a second run begins with the weights that the first one left
    engines, models = zip(*seen, strict=True)
    assert len(seen) == 4

    def alike(some, others):
        return sum(one == other for one, other in zip(some, others, strict=True))

    now = [alike(engine, model) for engine, model in seen]
    before = [alike(engine, model) for engine, model in zip(engines[1:], models[:-1], strict=True)]
    assert min(now) >= 20, now  # of 24; bfloat16 decides ties otherwise
    assert all(old < new for old, new in zip(before, now[1:], strict=True)), (before, now)


def test_a_measurement_samples_through_the_engine_and_leaves_it_as_it_was(trainer):
    prompts = [row["prompt"] for row in task.dataset("test", 24, seed=3)]
    sampler, before = Sampler(trainer), dict(vars(trainer.vllm_generation))
    trainer._last_loaded_step = -1  # the fixture has brought other weights
    random = torch.get_rng_state()
    likeliest = sampler.sample(prompts, 0, temperature=0.0)
    greedy = greedy_of_model(trainer, trainer._tokenizer(prompts)["input_ids"])
    texts = trainer._tokenizer.batch_decode(greedy, skip_special_tokens=True)
    assert sum(one.text == text for one, text in zip(likeliest, texts, strict=True)) >= 20  # see above
    assert all(one.finished and one.tokens > 20 for one in likeliest)
    hot = (2.0, 8)  # temperature, longest
    drawn = sampler.sample(prompts[:1] * 32, 1, *hot)
    assert len({one.text for one in drawn}) > 8  # each answer has random numbers of its own
    assert {one.tokens for one in drawn if not one.finished} == {8}
    assert sampler.sample(prompts[:1] * 32, 1, *hot) == drawn != sampler.sample(prompts[:1] * 32, 2, *hot)
    assert torch.equal(random, torch.get_rng_state()) and dict(vars(trainer.vllm_generation)) == before


@pytest.mark.parametrize("name", ["opd", "fire", "random", "iw_opd", "power_opd", "reopold", "fire_released"])
def test_the_ratio_is_applied_to_every_method_alike(trainer, monkeypatch, name):
    """An engine that says of each token half its probability: the ratio is 2 everywhere."""
    generate = trainer.vllm_generation.generate

    def halved(**kwargs):
        prompts, ids, logps, tokens = generate(**kwargs)
        return prompts, ids, [[[lp - math.log(2) for lp in one] for one in row] for row in logps], tokens

    trainer.method = METHODS[name]()
    rows = [trainer.train_dataset[row] for row in range(ROWS)]
    signals, distil = [], trainer_module.distil
    monkeypatch.setattr(trainer_module, "distil", lambda *a: signals.append(distil(*a)) or signals[-1])
    monkeypatch.setattr(trainer.vllm_generation, "generate", halved)
    trainer.model.train()
    trainer._last_loaded_step = -1
    batch = trainer._generate_and_score_completions(rows)
    mask_BT = batch["train_mask"] & signals[0].keep_B.unsqueeze(1)
    ratio_BT = batch["importance_sampling_ratio"]
    found_BT = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).exp()
    torch.testing.assert_close(ratio_BT[mask_BT], found_BT[mask_BT])
    assert ratio_BT[mask_BT].mean() == pytest.approx(2, abs=SMALL)
    expected_BT = signals[0].advantage_BT * (1 if name == "fire_released" else ratio_BT)
    torch.testing.assert_close(batch["advantages"][mask_BT], expected_BT[mask_BT])


def stale(trainer, monkeypatch):
    sync, calls = trainer.vllm_generation.sync_weights, []
    monkeypatch.setattr(
        trainer.vllm_generation, "sync_weights", lambda: calls.append(1) or (len(calls) == 1 and sync())
    )


def warm(trainer, monkeypatch):
    monkeypatch.setattr(trainer.vllm_generation, "temperature", 0.7)


def nucleus(trainer, monkeypatch):
    monkeypatch.setattr(trainer.vllm_generation, "top_p", 0.9)


@pytest.mark.parametrize(
    ("fault", "cause"), [(stale, "its weights are stale"), (warm, "temperature"), (nucleus, "top_p, top_k or min_p")]
)
def test_a_fault_is_noticed_within_two_steps(trainer, monkeypatch, fault, cause):
    fault(trainer, monkeypatch)
    with pytest.warns(UserWarning, match="the log-probabilities of sampling and training differ by") as said:
        trainer.train()  # two steps
    logs = logs_of(trainer)
    print(fault.__name__, [(log["fire/sampling_gap"], log["fire/sampling_kl"]) for log in logs])
    text = next(str(warning.message) for warning in said if "differ by" in str(warning.message))
    assert cause in text and (fault is not stale or text.startswith("step 1"))
    assert ("the engine cuts its distribution" in text) == (fault is nucleus)


def test_tokens_without_a_log_probability_have_ratio_1_and_are_counted(trainer, monkeypatch):
    generate, windows = trainer.vllm_generation.generate, []

    def with_holes(**kwargs):
        prompts, ids, logps, tokens = generate(**kwargs)  # TRL makes `None` of vLLM's NaN
        return (
            prompts,
            ids,
            [[[None] if place % 3 == 0 else lp for place, lp in enumerate(row)] for row in logps],
            tokens,
        )

    scored = trainer._generate_and_score_completions
    monkeypatch.setattr(trainer.vllm_generation, "generate", with_holes)
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda rows: windows.append(scored(rows)) or windows[-1]
    )
    trainer.train()
    for window, log in zip(windows, logs_of(trainer), strict=True):
        unknown_BT = window["train_mask"] & (torch.arange(window["train_mask"].shape[1]) % 3 == 0)
        ratio_BT = window["importance_sampling_ratio"]
        assert log["fire/sampling_unknown"] == unknown_BT.sum() > 0 and (ratio_BT[unknown_BT] == 1).all()
        assert math.isfinite(log["loss"]) and log["fire/sampling_gap"] < SMALL
    assert all(value.isfinite().all() for value in trainer.model.parameters())


def test_an_engine_that_answers_with_the_end_alone(trainer, monkeypatch):
    """Empty completions, as vLLM gives them where a prompt fills its context, are holes that never train."""
    generate = trainer.vllm_generation.generate

    def some_empty(**kwargs):
        prompts, ids, logps, tokens = generate(**kwargs)
        return prompts, [[], *ids[1:]], [[], *logps[1:]], [[], *tokens[1:]]

    monkeypatch.setattr(trainer.vllm_generation, "generate", some_empty)
    scored, windows = trainer._generate_and_score_completions, []
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda rows: windows.append(scored(rows)) or windows[-1]
    )
    trainer.train()
    for window, log in zip(windows, logs_of(trainer), strict=True):
        assert not window["train_mask"][0].any() and not window["keep"][0] and window["train_mask"][1:].any()
        assert math.isfinite(log["loss"]) and log["fire/empty"] >= 1


def test_evaluation_uses_the_engine_with_the_weights_of_the_last_step(trainer):
    trainer.train()
    trainer.eval_dataset = task.dataset("test", 16, seed=0)
    metrics = trainer.evaluate()
    assert metrics["eval_fire/sampling_gap"] < SMALL and metrics["eval_loss"] > 0
