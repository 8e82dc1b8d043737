"""What fails in silence: sampling from another distribution than the one that trains, a teacher that guesses."""

import dataclasses
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from support.configs import cut
from support.trainers import CASE, sampling_trainer
from support.windows import on_ranks
from support.worker import built

import fire_opd_trl.trainer.trainer as trainer_module
from fire_opd_trl import FiReOPDConfig, Rollout
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import ROLLOUTS
from fire_opd_trl.rollouts.engine_gap import ONE_SIDED, EngineMonitor, Gap, engine_gaps
from fire_opd_trl.stages import World


LIMIT = 0.05  # the config's default


NAN = float("nan")


def gap_of(sampled_BT, student_BT, mask_BT) -> Gap:
    return engine_gaps(sampled_BT, student_BT, mask_BT, World())[0]


def test_a_gap_by_hand():
    sampled_BT = torch.tensor([[-1.0, -2.0, NAN], [-3.0, -9.0, -9.0]])
    student_BT = torch.tensor([[-1.5, -1.0, -1.0], [-3.0, -1.0, NAN]])
    mask_BT = torch.tensor([[True, True, True], [True, False, True]])
    gap = gap_of(sampled_BT, student_BT, mask_BT)
    # Differences 0.5 and -1 in one row, 0 in the other; one is unknown to the engine, one to the student, one is none.
    assert (gap.tokens, gap.unknown) == (3, 1)
    assert gap.mean == pytest.approx(0.5) and gap.kl == pytest.approx(-1 / 6)
    # Rows sum to -1/2 over two tokens and 0 over one; less their expectation -1/3 and -1/6 that is -1/6 and 1/6.
    assert gap.error == pytest.approx(math.sqrt(2) / 6 / 3)


def test_a_window_without_tokens_has_no_gap():
    nothing_BT = torch.zeros(2, 3)
    assert gap_of(nothing_BT, nothing_BT, nothing_BT.bool()) == Gap(0, 0, 0.0, 0.0, 0.0)


def test_ranks_agree_on_the_gap_of_all_tokens_and_know_each_others():
    draw = torch.Generator().manual_seed(0)
    sampled_BT, student_BT = torch.randn(9, 5, generator=draw), torch.randn(9, 5, generator=draw)
    mask_BT = torch.rand(9, 5, generator=draw) < 0.7
    whole = gap_of(sampled_BT, student_BT, mask_BT)
    parts = [slice(0, 6), slice(6, 6), slice(6, 9)]

    def of_rank(rank, world):
        own = parts[rank]
        return engine_gaps(sampled_BT[own], student_BT[own], mask_BT[own], world)

    found = on_ranks(3, of_rank)
    assert found[0] == found[1] == found[2] and found[0][0].tokens == whole.tokens
    assert dataclasses.astuple(found[0][0]) == pytest.approx(dataclasses.astuple(whole), abs=1e-6)
    assert found[0][1] == [gap_of(sampled_BT[own], student_BT[own], mask_BT[own]) for own in parts]


def samples(logits_NV: torch.Tensor, engine_NV: torch.Tensor) -> Gap:
    """Of tokens drawn from the engine, as a window of rows of ten tokens."""
    engine_NV = engine_NV.log_softmax(dim=1)
    token_N1 = torch.multinomial(engine_NV.exp(), 1, generator=torch.Generator().manual_seed(1))
    sampled_BT, student_BT = (
        logp_NV.gather(1, token_N1).view(-1, 10) for logp_NV in (engine_NV, logits_NV.log_softmax(dim=1))
    )
    return gap_of(sampled_BT, student_BT, torch.ones(sampled_BT.shape, dtype=torch.bool))


def test_noise_of_kernels_is_no_alarm_and_another_distribution_is():
    """Engines of a student that is unsure everywhere, with the noise of 16 bits, and without."""
    draw = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(4000, 50, generator=draw, dtype=torch.float64)
    noise_NV = 0.02 * torch.randn(logits_NV.shape, generator=draw, dtype=torch.float64)
    engines = {
        "the same": (logits_NV, False, False),
        "noise": (logits_NV + noise_NV, False, False),
        "much noise": (logits_NV + 8 * noise_NV, True, False),
        "top-p 0.9": (cut(logits_NV, 0.9), True, True),
        "top-p 0.9 and noise": (cut(logits_NV + noise_NV, 0.9), True, True),
        "top-p 0.98": (cut(logits_NV, 0.98), True, True),
        "temperature 0.9": (logits_NV / 0.9, True, False),
        "temperature 1.1": (logits_NV / 1.1, True, False),
    }
    for name, (engine_NV, alarm, one_sided) in engines.items():
        gap = samples(logits_NV, engine_NV)
        assert (gap.level(LIMIT) > 1) == alarm, (name, gap)
        assert (gap.kl > ONE_SIDED * gap.mean > 0) == one_sided, (name, gap)
    # What the second bound is for: too small a gap for the first one, and yet another distribution.
    assert samples(logits_NV, cut(logits_NV, 0.98)).mean < LIMIT


def test_normal_noise_reaches_both_bounds_at_once():
    draw = torch.Generator().manual_seed(0)
    sigma = LIMIT * math.sqrt(math.pi / 2)  # mean |d| = LIMIT
    for factor, alarm in ((0.9, False), (1.1, True)):
        noise_BT = factor * sigma * torch.randn(10000, 100, generator=draw) + (factor * sigma) ** 2 / 2
        gap = gap_of(noise_BT - 1, torch.full_like(noise_BT, -1), torch.ones_like(noise_BT).bool())
        assert (gap.level(LIMIT) > 1) == alarm
        assert gap.kl / (math.pi / 4 * LIMIT**2) == pytest.approx((gap.mean / LIMIT) ** 2, rel=0.1)


def test_a_row_whose_tokens_err_together_is_no_evidence_of_many():
    """An offset of each row, as of a prompt computed otherwise: as many opinions as rows, not as tokens."""
    draw = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(100):
        offset_B1 = 0.025 * torch.randn(64, 1, generator=draw)
        sampled_BT = -1 + offset_B1.expand(64, 100)
        alarms += gap_of(sampled_BT, torch.full_like(sampled_BT, -1), torch.ones(64, 100).bool()).level(LIMIT) > 1
    assert alarms < 5


def watched(monitor, sampled_BT, student_BT, rank=0, world=None, **fields):
    """One look at a window, as from a trainer."""
    args = FiReOPDConfig("output", use_cpu=True, bf16=False, per_device_train_batch_size=8, **fields)
    if world is None:
        world = World()
        world.rank = rank
    monitor = monitor or EngineMonitor(args)
    rollout = Rollout(torch.ones(sampled_BT.shape, dtype=torch.bool))
    scores = SimpleNamespace(student_logp_BT=student_BT)
    return monitor.observe(sampled_BT, rollout, scores, world, step=7)


def texts(said) -> list[str]:
    return [str(warning.message) for warning in said if str(warning.message).startswith("step")]


SIGN_T = torch.tensor([1.0, -1.0]).repeat(5)


def test_a_warning_says_figures_and_the_causes_that_can_be():
    student_BT = torch.full((4, 10), -1.0)
    with pytest.warns(UserWarning) as said:
        metrics = watched(None, student_BT + 0.2, student_BT)
        watched(None, student_BT + 0.2 * SIGN_T, student_BT, use_vllm=True, vllm_enable_sleep_mode=True)
        watched(None, student_BT + 0.2 * SIGN_T, student_BT, use_vllm=True, vllm_mode="server")
    one_sided, asleep, server = texts(said)
    assert metrics == pytest.approx({"sampling_gap": 0.2, "sampling_kl": 0.2, "sampling_unknown": 0.0})
    for words in ("step 7", "differ by 0.2 a token", "limit=0.05", "the engine cuts its distribution"):
        assert words in one_sided
    assert "stale" not in one_sided and "--logprobs-mode" not in one_sided
    assert "stale" in asleep and "vllm_enable_sleep_mode: false" in asleep and "cuts" not in asleep
    assert "--logprobs-mode processed_logprobs" in server and "sleep" not in server and "temperature, top_p" in server


def test_it_warns_again_when_the_gap_has_doubled_or_was_gone_and_on_one_rank_alone():
    monitor, student_BT = EngineMonitor(FiReOPDConfig("output", use_cpu=True, bf16=False)), torch.full((4, 10), -1.0)
    with pytest.warns(UserWarning) as said:
        for gap in (0.01, 0.1, 0.15, 0.25, 0.01, 0.1):
            watched(monitor, student_BT + gap * SIGN_T, student_BT)
    assert [text.split("differ by ")[1][:4] for text in texts(said)] == ["0.1 ", "0.25", "0.1 "]
    assert "(0.01 in the first window" in texts(said)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="step")
        watched(None, student_BT + 1, student_BT, rank=1)
        assert watched(None, student_BT + 1, student_BT, sampling_gap_limit=None)["sampling_gap"] == 1.0


def test_one_engine_of_many_is_noticed_and_named():
    student_BT = torch.full((4, 10), -1.0)
    with pytest.warns(UserWarning) as said:
        on_ranks(8, lambda rank, world: watched(
            None, student_BT + (0.2 if rank == 5 else 0.001) * SIGN_T, student_BT, world=world
        ))  # fmt: skip
    assert len(texts(said)) == 1 and "rank 5 alone by 0.2" in texts(said)[0]


def test_an_engine_that_says_nothing_is_no_engine_that_agrees():
    student_BT = torch.full((4, 10), -1.0)
    with pytest.warns(UserWarning, match="no log-probability for 40 of 40 tokens"):
        assert watched(None, torch.full_like(student_BT, NAN), student_BT) == {"sampling_unknown": 40.0}


# Through the trainer


def with_reports(folder, change, **config):
    """Train on frozen rollouts whose log-probabilities an engine reports; the scored window, and what was logged."""
    trainer = built({**CASE, "max_steps": 1, "config": config}, str(folder))
    rollout, scored = trainer.rollout_func, trainer._generate_and_score_completions
    batches = []

    def reported(prompts, trainer):
        output = rollout(prompts, trainer)
        places = [range(len(ids)) for ids in output["completion_ids"]]
        return {**output, "logprobs": [[change(place) for place in row] for row in places]}

    trainer.rollout_func = reported
    trainer._generate_and_score_completions = lambda rows: batches.append(scored(rows)) or batches[-1]
    trainer.use_vllm, trainer.vllm_generation = True, SimpleNamespace(sync_weights=lambda: None)  # as GRPO sees it
    trainer.train()
    return trainer, batches[0], next(log for log in trainer.state.log_history if "grad_norm" in log)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_tokens_without_a_log_probability_have_ratio_1_and_are_counted(tmp_path, mode):
    plain = built({**CASE, "max_steps": 1}, str(tmp_path / "plain"))
    plain.train()
    trainer, batch, log = with_reports(tmp_path, lambda place: NAN, vllm_importance_sampling_mode=mode)
    assert (batch["importance_sampling_ratio"] == 1).all()
    assert log["fire/sampling_unknown"] == batch["train_mask"].sum() and "fire/sampling_gap" not in log
    for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # the student scored other rows together


def test_some_tokens_without_a_log_probability(tmp_path):
    with pytest.warns(UserWarning, match="gave no log-probability for 166 of 473 tokens"):
        trainer, batch, log = with_reports(tmp_path, lambda place: NAN if place % 3 == 0 else -1000.0)
    ratio_BT, mask_BT = batch["importance_sampling_ratio"], batch["train_mask"]
    unknown_BT = mask_BT & (torch.arange(mask_BT.shape[1]) % 3 == 0)
    assert (ratio_BT[unknown_BT] == 1).all() and (ratio_BT[mask_BT & ~unknown_BT] == 5).all()  # 5: its cap
    assert log["fire/sampling_unknown"] == unknown_BT.sum() > 0
    assert math.isfinite(log["loss"]) and all(value.isfinite().all() for value in trainer.model.parameters())


# Engines that report nothing: transformers' own


@pytest.mark.parametrize("engine", ["transformers", "continuous"])
def test_what_is_sampled_is_the_students_own_in_every_window(tmp_path, monkeypatch, engine):
    """
    Where tokens are drawn from the distribution that scores them, -log p of each token has its entropy as the mean, so
    that the sums over rows are noise around 0. Weights of before the last step, or a cut distribution, shift them.
    """
    config = {**ROLLOUTS[engine], "drop_fraction": 0.0, "max_steps": 3}  # every row is scored
    trainer = sampling_trainer(tmp_path, rows=128, dataset=task.dataset("train", 384, seed=0), **config)
    seen, distil = [], trainer_module.distil
    monkeypatch.setattr(trainer_module, "distil", lambda *args: seen.append(args[:2]) or distil(*args))
    trainer.train()
    assert len(seen) == 3
    errors = []
    for rollout, scores in seen:
        excess_BT = torch.where(rollout.mask_BT, -scores.student_logp_BT - scores.student_entropy_BT, 0.0)
        excess_B = excess_BT.sum(dim=1)[rollout.alive_B]
        errors.append((excess_B.mean() / excess_B.std() * math.sqrt(len(excess_B))).item())
    assert max(map(abs, errors)) < 4, errors
