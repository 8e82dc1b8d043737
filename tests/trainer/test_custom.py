"""A recipe of one's own: the README's example as it stands there, and what is said when something in it is wrong."""

import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.scorers import change_scores
from support.trainers import loaded, sampling_trainer
from support.worker import built

import fire_opd_trl
from fire_opd_trl import METHODS, Context, Divergence, FiReOPDConfig, FiReOPDTrainer, Method, Rollout, Scores, distil
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.teachers.placement import loading_arguments
from fire_opd_trl.trainer import trainer as trainer_module


README = (Path(fire_opd_trl.__file__).parent.parent / "README.md").read_text()
SMALL = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 1,
    "logging_steps": 1,
    "max_completion_length": 33,
    "per_device_train_batch_size": 16,
}


def example(heading: str) -> str:
    """The first block of Python below a heading of the README."""
    return re.search(rf"^## {heading}$.*?^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1]


def test_the_readmes_example_trains_with_a_stage_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = example("Your own method")
    assert len([line for line in source.splitlines() if line.strip()]) <= 12
    names = {
        "student": loaded("student"),
        "teacher": model_path("teacher"),
        "dataset": task.dataset("train", 64, seed=0),
        "args": FiReOPDConfig("output", **SMALL),
    }
    exec(source, names)
    trainer = names["trainer"]
    assert trainer.method.name == "sure" and trainer.state.global_step == 1
    (log,) = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert log["fire/kept_rows"] == 15 and 0 < log["fire/active_token_ratio"] < 1  # floor(0.1 * 16) is dropped


@pytest.mark.parametrize("stage", ["score", "filter", "reweight", "row_weight", "advantage", "divergence"])
def test_a_function_of_ones_own_stands_at_any_stage(stage, tmp_path):
    seen = []

    def row_stage(rollout, scores, context):
        seen.append(stage)
        return rollout.mask_BT.sum(dim=1).float()

    def own_filter(score_B, rollout, context):
        seen.append(stage)
        return torch.arange(len(score_B)) % 2 == 0

    def token_stage(rollout, scores, context):
        seen.append(stage)
        return rollout.mask_BT.float()

    change = {
        "score": row_stage,
        "row_weight": row_stage,
        "filter": own_filter,
        "reweight": token_stage,
        "advantage": token_stage,
    }
    value = change.get(stage, Divergence(top_k=3, weight=token_stage))
    method = replace(METHODS["opd"](), name="mine", **{stage: value})
    trainer = built({"batch": 16, "accumulation": 2, "max_steps": 1}, str(tmp_path), method=method)
    start = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    trainer.train()
    assert set(seen) == {stage}
    assert max((p - start[name]).abs().max() for name, p in trainer.model.state_dict().items()) > 0


def test_a_method_in_the_trainer_is_the_method_of_that_name_in_the_config(tmp_path):
    ends = []
    for kwargs, config in (({"method": METHODS["tip"](keep=0.25)}, {}), ({}, {"method_kwargs": {"keep": 0.25}})):
        case = {
            "batch": 16,
            "accumulation": 2,
            "max_steps": 2,
            "method": "fire" if kwargs else "tip",
            "config": config,
        }
        trainer = built(case, str(tmp_path), **kwargs)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    "config", [{"method": "opd"}, {"drop_fraction": 0.4}, {"control": "both"}, {"method_kwargs": {"rows": "soft"}}]
)
def test_a_method_named_twice_is_refused(config, tmp_path):
    with pytest.raises(
        ValueError, match=f"method='mine' is given to the trainer, so that {next(iter(config))} of the"
    ):
        built({"batch": 16, "accumulation": 2, "config": config} if "method" not in config else {
            "batch": 16, "accumulation": 2, **config}, str(tmp_path), method=Method("mine"))  # fmt: skip


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name]().needs])
def test_a_method_of_rewards_is_refused_without_them(name, tmp_path):
    with pytest.raises(ValueError, match=f"method='{name}' has no reward to read. Pass reward_funcs, or use a method"):
        sampling_trainer(tmp_path, rows=8, method=name, num_generations=2)


def test_a_custom_method_of_groups_is_refused_with_one_generation(tmp_path):
    with pytest.raises(ValueError, match="^num_generations=1 is refused. method='uni_opd' compares .* at least 2"):
        FiReOPDTrainer(
            loaded("student"),
            loaded("teacher"),
            FiReOPDConfig(str(tmp_path), **SMALL),
            train_dataset=task.dataset("train", 64, seed=0),
            reward_funcs=[task.exact_match],
            method=METHODS["uni_opd"](),
        )


@pytest.mark.parametrize(
    ("stage", "shape", "words"),
    [
        ("score", (4, 3), "score returned .* (4, 3). It must be (4,): one value for each trajectory"),
        ("filter", (4, 3), "filter returned .* It must be (4,)"),
        ("filter", (1,), "filter returned .* It must be (4,)"),
        ("reweight", (4,), "reweight returned .* It must be (4, 3): one value for each token of each trajectory"),
        ("reweight", (4, 1), "reweight returned .* (4, 1). It must be (4, 3)"),
        ("advantage", (2, 4, 3), "advantage returned .* (2, 4, 3). It must be (4, 3)"),
        ("divergence", (4, 1), "divergence returned .* (4, 1). It must be (4, 3)"),
    ],
)
def test_a_stage_that_returns_another_shape_is_named(stage, shape, words):
    def own(*_):
        return torch.ones(shape)

    value = Divergence(weight=own) if stage == "divergence" else own
    method = replace(Method("mine"), **{stage: value})
    logp_BT = -torch.rand(4, 3)
    with pytest.raises(ValueError, match="method='mine': " + re.sub(r"([()])", r"\\\1", words)):
        distil(Rollout(torch.ones(4, 3)), Scores(logp_BT, logp_BT), method, Context())


def test_a_weight_of_trajectories_weighs_tokens_and_divergence_alike():
    logp_BT = -torch.rand(4, 3)
    weight_B = torch.tensor([0.0, 0.5, 1.0, 2.0])
    method = Method("mine", row_weight=lambda *_: weight_B, divergence=Divergence())
    signal = distil(Rollout(torch.ones(4, 3)), Scores(logp_BT, 2 * logp_BT), method, Context())
    wanted_BT = weight_B.unsqueeze(1).expand(4, 3)
    assert torch.equal(signal.weight_BT, wanted_BT) and torch.equal(signal.divergence_BT, wanted_BT)
    assert torch.equal(signal.advantage_BT, wanted_BT * -logp_BT)


def test_a_signal_that_does_not_exist_is_named():
    logp_BT = -torch.rand(4, 3)
    with pytest.raises(ValueError, match="method='mine' reads teacher_surprise_BT, which `scores` lacks"):
        signals = ("teacher_logp_BT", "student_logp_BT", "teacher_surprise_BT")
        distil(Rollout(torch.ones(4, 3)), Scores(logp_BT, logp_BT), Method("mine", signals=signals))


def test_a_method_without_the_two_log_probabilities_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="method='mine': signals lacks teacher_logp_BT, which every method reads"):
        method = Method("mine", signals=("student_logp_BT",))
        built({"batch": 16, "accumulation": 2}, str(tmp_path), method=method)


def test_a_stage_that_ignores_the_mask_is_contained(tmp_path):
    def everywhere(rollout, *_):
        return torch.ones_like(rollout.mask_BT, dtype=torch.float32)

    for top_k in (0, 3):
        divergence = Divergence(top_k=top_k, weight=everywhere)
        method = Method("mine", reweight=everywhere, divergence=divergence)
        plain = Method("mine", divergence=replace(divergence, weight=METHODS["opd"]().reweight))
        ends = []
        for one in (method, plain):
            trainer = built({"batch": 16, "accumulation": 2, "max_steps": 1}, str(tmp_path), method=one)
            trainer.train()
            ends.append(trainer.model.state_dict())
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# Rewards and references


def test_a_completion_without_a_reward_does_not_train_where_rewards_are_read(tmp_path):
    def sometimes(prompts, **_):
        return [None if row == 3 else float(row % 2) for row in range(len(prompts))]

    empties = {}
    for name in ("opdvr", "opd"):
        trainer = sampling_trainer(tmp_path / name, rows=8, method=name, num_generations=2, reward_funcs=[sometimes])
        trainer.train()
        (log,) = [log for log in trainer.state.log_history if "grad_norm" in log]
        empties[name] = log["fire/empty"]
    assert empties == {"opdvr": 1.0, "opd": 0.0}


def test_rewards_are_weighed_before_a_method_reads_them(tmp_path):
    rewards = {}
    seen = Method("seen", needs=("reward_B",), score=lambda rollout, *_: rewards.setdefault("B", rollout.reward_B))
    args = FiReOPDConfig(str(tmp_path), **SMALL, reward_weights=[2.0, -1.0])
    trainer = FiReOPDTrainer(
        loaded("student"),
        loaded("teacher"),
        args,
        train_dataset=task.dataset("train", 64, seed=0),
        reward_funcs=[lambda prompts, **_: [1.0] * len(prompts), lambda prompts, **_: list(range(len(prompts)))],
        method=seen,
    )
    trainer.train()
    assert rewards["B"].tolist() == [2.0 - row for row in range(16)]


def test_exopd_refers_to_the_student_as_it_was_or_to_the_model_named(tmp_path):
    """With the teacher as the reference lambda has no effect, A = a; with the student it has."""
    losses = {}
    for name, config in {
        "opd": {"method": "opd"},
        "student": {"method": "exopd"},
        "teacher": {"method": "exopd", "config": {"reference_model_name_or_path": model_path("teacher")}},
    }.items():
        trainer = built({"batch": 16, "accumulation": 2, "max_steps": 3, **config}, str(tmp_path / name))
        trainer.train()
        losses[name] = [log["loss"] for log in trainer.state.log_history if "grad_norm" in log]
        if trainer.reference is not None:
            assert not any(p.requires_grad for p in trainer.reference.parameters())
    assert losses["teacher"] == pytest.approx(losses["opd"], abs=1e-6)
    # On policy at the first step the reference is the student itself: A = lambda (lp_T - lp_S), that of opd by 1.25.
    assert losses["student"][0] == pytest.approx(1.25 * losses["opd"][0], rel=1e-5)
    assert losses["student"][2] != pytest.approx(1.25 * losses["opd"][2], rel=1e-3)


def test_the_reference_of_a_module_is_a_copy_from_before_training(tmp_path):
    student = loaded("student")
    before = {name: p.clone() for name, p in student.state_dict().items()}
    trainer = FiReOPDTrainer(
        student,
        loaded("teacher"),
        FiReOPDConfig(str(tmp_path), method="exopd", learning_rate=1e-2, **SMALL),
        train_dataset=task.dataset("train", 64, seed=0),
    )
    trainer.train()
    after = trainer.reference.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.state_dict().items())


def test_a_reference_that_no_one_reads_is_refused(tmp_path):
    config = {"reference_model_name_or_path": model_path("teacher")}
    with pytest.raises(ValueError, match="reference_model_name_or_path=.* has no effect on method='fire'"):
        built({"batch": 16, "accumulation": 2, "config": config}, str(tmp_path))


@pytest.mark.parametrize("method", ["opd_full", "tip"])
def test_a_teacher_of_fewer_token_rows_cannot_be_compared_whole(method, tmp_path):
    student = loaded("student")
    student.resize_token_embeddings(24, mean_resizing=False)
    args = FiReOPDConfig(str(tmp_path), method=method, **SMALL)
    with pytest.raises(ValueError, match="'teacher' has 16 token rows and the student 24: .*resize_token_embeddings"):
        FiReOPDTrainer(student, loaded("teacher"), args, train_dataset=task.dataset("train", 64, seed=0))


def test_evaluation_of_a_full_divergence_reports_the_reverse_kl(tmp_path):
    for method in ("tip", "opd_full", "eopd"):
        trainer = sampling_trainer(tmp_path / method, evaluates=True, method=method, per_device_eval_batch_size=8)
        trainer.train()
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] > 0 and metrics["eval_fire/keep_ratio"] == 1.0
        assert trainer.window_scorer.window is None  # no hidden state outlives its window


@pytest.mark.parametrize("fp32_head", [False, True])
@pytest.mark.parametrize("method", ["tip", "opd_full", "eopd"])
def test_divergences_in_bfloat16_are_near_those_in_float32(method, fp32_head, tmp_path):
    kwargs = {"threshold": 0.0, "top_k": 4} if method == "eopd" else {}
    losses = {}
    for name in ("float32", "bfloat16"):
        case = {"batch": 16, "accumulation": 2, "max_steps": 1, "method": method, "bf16": name == "bfloat16"}
        config = {"method_kwargs": kwargs, "cast_lm_head_to_fp32": fp32_head}
        trainer = built({**case, "config": config}, str(tmp_path / name))
        trainer.train()
        (losses[name],) = [log["fire/divergence"] for log in trainer.state.log_history if "grad_norm" in log]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05) and losses["float32"] > 0.05


@pytest.mark.parametrize("name", ["student", "reference"])
def test_a_teacher_with_the_name_of_another_model_is_refused(name, tmp_path):
    args = FiReOPDConfig(str(tmp_path), **SMALL)
    with pytest.raises(ValueError, match=f"a teacher may not be called '{name}'"):
        FiReOPDTrainer(loaded("student"), {name: loaded("teacher")}, args, train_dataset=task.dataset("train", 64))


@pytest.mark.parametrize("kind", ["MULTI_GPU", "DEEPSPEED", "FSDP", "NO"])
def test_frozen_models_are_not_spread_over_the_cards_of_other_ranks(kind, tmp_path, monkeypatch):
    args = FiReOPDConfig(str(tmp_path), **SMALL)
    monkeypatch.setattr(args.distributed_state, "distributed_type", kind)
    kwargs = loading_arguments(args, {"dtype": "float32"})
    assert kwargs.pop("device_map", "absent") == ("absent" if kind == "NO" else None)
    assert kwargs == {"dtype": "float32", "trust_remote_code": False}


def test_a_padded_reference_loses_its_phantom_rows_and_one_of_other_tokens_is_refused(tmp_path):
    padded, losses = loaded("student"), []
    padded.resize_token_embeddings(64, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[16:] = 10.0
    padded.save_pretrained(tmp_path / "padded")
    narrow = loaded("student")
    narrow.resize_token_embeddings(12)
    narrow.save_pretrained(tmp_path / "narrow")
    for folder in (tmp_path / "padded", tmp_path / "narrow"):
        for file in Path(model_path("student")).glob("tokenizer*"):
            (folder / file.name).write_bytes(file.read_bytes())
    for path in (model_path("student"), str(tmp_path / "padded")):
        config = {"reference_model_name_or_path": path}
        trainer = built(
            {"batch": 16, "accumulation": 2, "max_steps": 2, "method": "exopd", "config": config},
            str(tmp_path / "out"),
        )
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "grad_norm" in log])
    assert losses[0] == losses[1]
    config = {"reference_model_name_or_path": str(tmp_path / "narrow")}
    with pytest.raises(ValueError, match="reference_model_name_or_path=.* has 12 token rows, too few"):
        built({"batch": 16, "accumulation": 2, "method": "exopd", "config": config}, str(tmp_path))


def test_hidden_states_of_a_window_are_gone_before_the_next_one_is_sampled(tmp_path):
    trainer = built({"batch": 16, "accumulation": 2, "max_steps": 2, "method": "opd_full"}, str(tmp_path))
    held, alive = [], []
    cut, generate = trainer._micro_batches, trainer._generate_single_turn

    def watched(batch):
        held.extend(weakref.ref(states) for states in batch["teacher_hidden"])
        return cut(batch)

    rollout = trainer.rollout_func
    trainer._micro_batches, trainer._generate_single_turn = watched, generate
    trainer.rollout_func = lambda *args: alive.append(sum(ref() is not None for ref in held)) or rollout(*args)
    trainer.train()
    assert len(held) == 64 and alive == [0, 0]


def test_hidden_states_of_dropped_rows_are_gone_when_the_filter_has_decided(tmp_path):
    trainer = built({"batch": 32, "accumulation": 1, "max_steps": 1, "method": "fire_full"}, str(tmp_path))
    held = []

    def noted(scores):
        held.extend(weakref.ref(states) for states in scores.observed["teacher_hidden"])
        return scores

    change_scores(trainer, "teacher", noted)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[row] for row in range(32)])
    kept, mask_BT = batch["keep"].tolist(), batch["completion_mask"]
    assert sum(kept) == 22 and [ref() is not None for ref in held] == kept
    assert [len(states) for states in batch["teacher_hidden"]] == (mask_BT.sum(dim=1) * batch["keep"]).tolist()


@pytest.mark.parametrize("method", ["fire_full", "tip", "eopd"])
def test_what_teachers_said_may_wait_on_the_host_and_nothing_changes(method, tmp_path, monkeypatch):
    """On a CPU host and device are one: this shows that rows take the way there, not that a device has more room."""
    case, ends, moved = {"batch": 16, "accumulation": 2, "max_steps": 2, "method": method}, [], []
    on_host = trainer_module.on_host
    monkeypatch.setattr(trainer_module, "on_host", lambda value: moved.append(value.shape) or on_host(value))
    for offload in (False, True):
        trainer = built({**case, "config": {"offload_teacher_states": offload}}, str(tmp_path / str(offload)))
        trainer.train()
        ends.append(dict(trainer.model.named_parameters()))
        # two windows of 32 rows: hidden states, or ids and log-probabilities of the top k
        assert len(moved) == offload * 2 * 32 * (2 if method == "eopd" else 1)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_an_infinite_reward_is_no_reward(tmp_path):
    def sometimes(prompts, **_):
        return [float("inf") if row == 3 else float(row % 2) for row in range(len(prompts))]

    trainer = sampling_trainer(tmp_path, rows=8, method="gc_opd", num_generations=4, reward_funcs=[sometimes])
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert log["fire/empty"] == 1.0 and 0 < abs(log["loss"]) < 100
