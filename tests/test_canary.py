"""What fails in silence: sampling from another distribution than the one that trains, a teacher that guesses."""

import dataclasses
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from folders import loaded
from launch.worker import built
from test_trainer import CASE, sampling_trainer
from transformers import AutoModelForCausalLM
from windows import on_ranks

from fire_opd_trl import METHODS, FiReOPDConfig, Rollout
from fire_opd_trl.canary import Canary, Gap, sampling_gap
from fire_opd_trl.refusals import NEUTRAL_SAMPLING, WHOLE, chosen_method
from fire_opd_trl.stages import World


LIMIT = 0.05  # the config's default
NAN = float("nan")


def test_a_gap_by_hand():
    sampled_BT = torch.tensor([[-1.0, -2.0, NAN], [-3.0, -9.0, -9.0]])
    student_BT = torch.tensor([[-1.5, -1.0, -1.0], [-3.0, -1.0, NAN]])
    mask_BT = torch.tensor([[True, True, True], [True, False, True]])
    gap = sampling_gap(sampled_BT, student_BT, mask_BT, World())
    # Differences 0.5, -1 and 0; one is unknown to the engine, one to the student, one is no token.
    assert (gap.tokens, gap.unknown) == (3, 1)
    assert gap.mean == pytest.approx(0.5) and gap.kl == pytest.approx(-1 / 6) and gap.below == pytest.approx(1 / 3)
    assert gap.error == pytest.approx(math.sqrt((1.25 / 3 - 1 / 36) / 3))


def test_a_window_without_tokens_has_no_gap():
    nothing_BT = torch.zeros(2, 3)
    assert sampling_gap(nothing_BT, nothing_BT, nothing_BT.bool(), World()) == Gap(0, 0, 0.0, 0.0, 0.0, 0.0)


def test_ranks_agree_on_the_gap_of_all_tokens():
    draw = torch.Generator().manual_seed(0)
    sampled_BT, student_BT = torch.randn(9, 5, generator=draw), torch.randn(9, 5, generator=draw)
    mask_BT = torch.rand(9, 5, generator=draw) < 0.7
    whole = sampling_gap(sampled_BT, student_BT, mask_BT, World())
    parts = [slice(0, 6), slice(6, 6), slice(6, 9)]

    def of_rank(rank, world):
        own = parts[rank]
        return sampling_gap(sampled_BT[own], student_BT[own], mask_BT[own], world)

    found = on_ranks(3, of_rank)
    assert found[0] == found[1] == found[2] and found[0].tokens == whole.tokens
    assert dataclasses.astuple(found[0]) == pytest.approx(dataclasses.astuple(whole), abs=1e-12)


def samples(logits_NV: torch.Tensor, engine_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn from the engine: its log-probabilities of them and the student's, as two rows of a window."""
    engine_NV = engine_NV.log_softmax(dim=1)
    token_N1 = torch.multinomial(engine_NV.exp(), 1, generator=torch.Generator().manual_seed(1))
    logp_NV = logits_NV.log_softmax(dim=1)
    return engine_NV.gather(1, token_N1).view(2, -1), logp_NV.gather(1, token_N1).view(2, -1)


def cut(logits_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Nucleus sampling: the fewest tokens that hold `top_p` of the probability."""
    prob_NV, order_NV = logits_NV.softmax(dim=1).sort(dim=1, descending=True)
    outside_NV = prob_NV.cumsum(dim=1) - prob_NV >= top_p
    return logits_NV.masked_fill(outside_NV.gather(1, order_NV.argsort(dim=1)), -torch.inf)


def test_noise_of_kernels_is_no_alarm_and_another_distribution_is():
    draw = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(4000, 50, generator=draw, dtype=torch.float64)
    mask_BT = torch.ones(2, 2000, dtype=torch.bool)
    noise = 0.03 * torch.randn(logits_NV.shape, generator=draw, dtype=torch.float64)
    engines = {
        "the same": (logits_NV, False),
        "noise": (logits_NV + noise, False),
        "much noise": (logits_NV + 5 * noise, True),
        "top-p 0.9": (cut(logits_NV, 0.9), True),
        "top-p 0.98": (cut(logits_NV, 0.98), True),
        "temperature 0.9": (logits_NV / 0.9, True),
        "temperature 1.1": (logits_NV / 1.1, True),
    }
    for name, (engine_NV, alarm) in engines.items():
        gap = sampling_gap(*samples(logits_NV, engine_NV), mask_BT, World())
        assert gap.exceeds(LIMIT) == alarm, (name, gap)
        assert (gap.below == 0) == (name == "the same" or name.startswith("top-p")), (name, gap)
    # What the second condition is for: too small a gap for the first one, and yet another distribution.
    small = sampling_gap(*samples(logits_NV, cut(logits_NV, 0.98)), mask_BT, World())
    assert small.mean < LIMIT and small.kl == pytest.approx(small.mean)


def test_normal_noise_stays_below_the_bound_that_is_derived_from_it():
    """mean |d| = s sqrt(2 / pi) and KL = s^2 / 2: noise whose mean gap is the limit has the KL of the bound."""
    sigma = LIMIT * math.sqrt(math.pi / 2)
    assert math.pi / 4 * LIMIT**2 == pytest.approx(sigma**2 / 2)


def watched(canary, sampled_BT, student_BT, rank=0, rows=None, **fields):
    """One look at a window, as from a trainer."""
    args = FiReOPDConfig("output", use_cpu=True, bf16=False, per_device_train_batch_size=8, **fields)
    world = World()
    world.rank = rank
    trainer = SimpleNamespace(
        args=args, world=world, state=SimpleNamespace(global_step=7), window=SimpleNamespace(scored_rows=rows)
    )
    rollout = Rollout(torch.ones(sampled_BT.shape, dtype=torch.bool))
    scores = SimpleNamespace(student_logp_BT=student_BT)
    return canary.look(trainer, {"sampling_per_token_logps": sampled_BT}, rollout, scores)


def texts(said) -> list[str]:
    return [str(warning.message) for warning in said if "differ by" in str(warning.message)]


def test_a_warning_says_figures_and_the_causes_that_can_be():
    student_BT = torch.full((4, 10), -1.0)
    with pytest.warns(UserWarning) as said:
        metrics = watched(Canary(), student_BT + 0.2, student_BT)
        watched(Canary(), student_BT - 0.2, student_BT, use_vllm=True, vllm_enable_sleep_mode=True)
        watched(Canary(), student_BT + 0.2, student_BT, use_vllm=True, vllm_mode="server")
    one_sided, asleep, server = texts(said)
    assert metrics == pytest.approx({"sampling_gap": 0.2, "sampling_kl": 0.2, "sampling_unknown": 0.0})
    for words in (
        "step 7",
        "differ by 0.2 a token",
        "sampling_gap_limit=0.05",
        "top_p, top_k or min_p",
        "temperature",
    ):
        assert words in one_sided
    assert "stale" not in one_sided and "--logprobs-mode" not in one_sided
    assert "stale" in asleep and "vllm_enable_sleep_mode: false" in asleep and "top_p" not in asleep
    assert "--logprobs-mode processed_logprobs" in server and "sleep" not in server


def test_it_warns_again_only_when_the_gap_has_doubled_and_on_one_rank_alone():
    canary, student_BT = Canary(), torch.full((4, 10), -1.0)
    sign_T = torch.tensor([1.0, -1.0]).repeat(5)
    with pytest.warns(UserWarning) as said:
        for gap in (0.01, 0.1, 0.15, 0.25):
            watched(canary, student_BT + gap * sign_T, student_BT)
    assert [text.split("differ by ")[1][:4] for text in texts(said)] == ["0.1 ", "0.25"]
    assert "(0.01 in the first window" in texts(said)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*differ by")
        watched(Canary(), student_BT + 1, student_BT, rank=1)
        assert watched(Canary(), student_BT + 1, student_BT, sampling_gap_limit=None)["sampling_gap"] == 1.0


def test_rows_that_the_student_did_not_score_are_not_compared():
    student_BT = torch.full((4, 10), -1.0)
    student_BT[2:] = 0.0  # as where nothing was computed
    assert watched(Canary(), torch.full((4, 10), -1.0), student_BT, rows=[0, 1])["sampling_gap"] == 0.0


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
    assert (log["fire/sampling_unknown"], log["fire/sampling_gap"]) == (batch["train_mask"].sum(), 0.0)
    for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # the student scored other rows together


def test_some_tokens_without_a_log_probability(tmp_path):
    with pytest.warns(UserWarning, match="differ by"):
        trainer, batch, log = with_reports(tmp_path, lambda place: NAN if place % 3 == 0 else -1000.0)
    ratio_BT, mask_BT = batch["importance_sampling_ratio"], batch["train_mask"]
    unknown_BT = mask_BT & (torch.arange(mask_BT.shape[1]) % 3 == 0)
    assert (ratio_BT[unknown_BT] == 1).all() and (ratio_BT[mask_BT & ~unknown_BT] == 5).all()  # 5: its cap
    assert log["fire/sampling_unknown"] == unknown_BT.sum() > 0
    assert math.isfinite(log["loss"]) and all(value.isfinite().all() for value in trainer.model.parameters())


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
    trainer = sampling_trainer(tmp_path, rows=32, teacher=untrained, canary=False)
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
    from fire_opd_trl.demo import task

    dataset = task.dataset("train", rows, seed=0)
    return dataset.add_column("teacher_id", ["good" if row % 3 == 0 else "lost" for row in range(rows)])


# Sampling that is not the student's


def config(**kwargs):
    return FiReOPDConfig("output", use_cpu=True, bf16=False, per_device_train_batch_size=8, **kwargs)


CUTS = [
    ({"top_p": 0.9}, "top_p=0.9 is refused"),
    ({"top_k": 20}, "top_k=20 is refused"),
    ({"min_p": 0.1}, "min_p=0.1 is refused"),
    ({"repetition_penalty": 1.1}, "repetition_penalty=1.1 is refused"),
    ({"generation_kwargs": {"top_p": 0.9}}, r"generation_kwargs\['top_p'\]=0.9 is refused"),
    ({"generation_kwargs": {"presence_penalty": 0.5}}, r"generation_kwargs\['presence_penalty'\]=0.5 is refused"),
    ({"vllm_structured_outputs_regex": "[0-9]+"}, "vllm_structured_outputs_regex='.*' is refused"),
]


@pytest.mark.parametrize(("cut", "sentence"), CUTS)
def test_truncated_sampling_is_refused_where_sampled_tokens_are_read(cut, sentence):
    with pytest.raises(
        ValueError, match=sentence + r".*'fire'.*Leave it at .*opd_full.*allow_truncated_sampling=True"
    ):
        chosen_method(None, config(**cut), rewarded=False)
    chosen_method(None, config(**cut, allow_truncated_sampling=True), rewarded=False)
    chosen_method(None, config(**cut, method="opd_full"), rewarded=False)
    chosen_method(METHODS["tip"](), config(**cut), rewarded=False)  # the trainer's, not the config's


def test_what_changes_no_distribution_is_not_refused():
    kwargs = {"stop": ["."], "max_tokens": 5, "seed": 1, "top_p": 1.0, "repetition_penalty": 1.0}
    chosen_method(None, config(top_k=-1, min_p=0.0, generation_kwargs=kwargs), rewarded=False)


def test_a_second_temperature_is_refused_always():
    with pytest.raises(ValueError, match="Set `temperature`"):
        chosen_method(None, config(generation_kwargs={"temperature": 0.7}, allow_truncated_sampling=True), False)


def test_refusals_know_every_sampling_field_of_grpo_and_the_methods_over_the_whole_vocabulary():
    fields = {"top_p", "top_k", "min_p", "repetition_penalty", "vllm_structured_outputs_regex"}
    assert fields <= NEUTRAL_SAMPLING.keys() & {field.name for field in dataclasses.fields(FiReOPDConfig)}
    assert "opd_full" in WHOLE and "tip" in WHOLE and "fire" not in WHOLE and "eopd" not in WHOLE
