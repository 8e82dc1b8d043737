"""What the trainer promises beside layouts: identities, the teacher's part, resume, evaluation, rewards, files."""

import inspect
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from support.scorers import watch_scorers
from support.trainers import CASE, furthest, loaded, parameters, sampling_trainer
from support.worker import built, trained
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

import fire_opd_trl.trainer.trainer as trainer_module
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.teachers.placement import from_pretrained_kwargs
from fire_opd_trl.teachers.sources import teacher_source


@pytest.mark.parametrize("method", ["fire", "random", "fire_released"])
def test_neutral_settings_are_opd_to_the_bit(method, tmp_path):
    neutral = {"drop_fraction": 0.0, "confidence": 0.0, "confusion": 0.0}
    opd = trained({**CASE, "method": "opd"}, str(tmp_path / "opd"))
    other = trained({**CASE, "method": method, "config": neutral}, str(tmp_path / "other"))
    assert furthest(parameters(opd), parameters(other)) == 0.0


def test_another_teacher_gives_another_gradient_and_the_student_as_teacher_gives_none(tmp_path):
    start = parameters(built(CASE, str(tmp_path / "start")))
    teacher = trained(CASE, str(tmp_path / "teacher"))
    # Nothing is dropped: student and teacher score the same rows together, and agree to the last bit.
    myself = trained({**CASE, "demo_teacher": "student", "config": {"drop_fraction": 0.0}}, str(tmp_path / "student"))
    assert furthest(start, parameters(teacher)) > 1e-3
    assert furthest(start, parameters(myself)) == 0.0
    assert [log["loss"] for log in myself.state.log_history if "grad_norm" in log] == [0.0, 0.0]


def test_the_teacher_is_frozen_unchanged_and_has_no_optimizer_state(tmp_path):
    trainer = trained({**CASE, "optim": "adamw_torch"}, str(tmp_path))
    (teacher,) = (placed.module for placed in trainer.teachers.values())
    fresh = loaded("teacher").state_dict()
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert furthest(fresh, teacher.state_dict()) == 0.0
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.model.parameters()}


def test_four_steps_are_two_and_resume_and_two_bit_for_bit(tmp_path):
    case = {**CASE, "method": "random", "optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 4}  # draws go on
    whole = trained(case, str(tmp_path / "whole"))
    trained({**case, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}, str(tmp_path / "half"))
    checkpoint = tmp_path / "half" / "checkpoint-2"
    assert (checkpoint / "model.safetensors").exists() and not (checkpoint / "teacher").exists()
    again = trained({**case, "resume": str(checkpoint)}, str(tmp_path / "rest"))
    assert furthest(parameters(whole), parameters(again)) == 0.0
    logs = [[log["loss"] for log in t.state.log_history if "grad_norm" in log] for t in (whole, again)]
    assert logs[0] == logs[1]


def test_a_resume_inside_a_window_continues_inside_it(tmp_path):
    case = {**CASE, "steps_per_generation": 4, "rows": 64, "batch": 16, "accumulation": 2, "max_steps": 3}
    trained({**case, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}, str(tmp_path))
    trainer = trained({**case, "resume": str(tmp_path / "checkpoint-1")}, str(tmp_path / "rest"))
    assert trainer._step == 6  # two micro-batches of the first window's second half, then a whole new window


@pytest.fixture
def teacher_folder(tmp_path):
    """A copy of the demo teacher that a test may change."""
    folder = tmp_path / "a_teacher"
    shutil.copytree(model_path("teacher"), folder)
    return folder


def test_a_padded_teacher_gives_the_same_result(teacher_folder, tmp_path):
    padded = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    padded.resize_token_embeddings(64, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[16:] = 10.0  # rows that would take probability if they could
    padded.save_pretrained(teacher_folder)
    plain = trained(CASE, str(tmp_path / "plain"))
    other = trained({**CASE, "teacher": str(teacher_folder)}, str(tmp_path / "other"))
    assert furthest(parameters(plain), parameters(other)) == 0.0


def test_another_tokenizer_of_the_same_size_is_refused_with_its_first_differing_token(teacher_folder, tmp_path):
    path = teacher_folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["3"], vocabulary["7"] = vocabulary["7"], vocabulary["3"]
    path.write_text(json.dumps(tokenizer))
    three = AutoTokenizer.from_pretrained(model_path("student")).convert_tokens_to_ids("3")
    with pytest.raises(ValueError, match=f"id {three} is '3' to the student and '7' to the teacher"):
        built({**CASE, "teacher": str(teacher_folder)}, str(tmp_path))


def test_a_teacher_with_too_few_rows_is_refused(teacher_folder, tmp_path):
    small = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    small.resize_token_embeddings(12)
    small.save_pretrained(teacher_folder)
    with pytest.raises(ValueError, match="12 token rows, too few"):
        built({**CASE, "teacher": str(teacher_folder)}, str(tmp_path))


def test_evaluation_sees_all_rows_and_reports_the_reverse_kl_and_avg_at_k(tmp_path):
    trainer = sampling_trainer(
        tmp_path, evaluates=True, reward_funcs=[task.exact_match], num_generations_eval=4, per_device_eval_batch_size=8
    )
    metrics = trainer.evaluate()
    assert metrics["eval_fire/keep_ratio"] == 1.0 and metrics["eval_fire/rows"] == 8.0
    assert metrics["eval_fire/reverse_kl"] == metrics["eval_fire/reverse_kl_kept"]  # an evaluation drops nothing
    # The same estimate, averaged over rows rather than tokens; completions of this task differ by two tokens at most.
    assert (
        metrics["eval_loss"] == pytest.approx(metrics["eval_fire/reverse_kl"], rel=0.05) and metrics["eval_loss"] > 0
    )
    assert 0.0 <= metrics["eval_reward"] <= 1.0  # exact match is 0 or 1: its mean over 4 samples of a prompt is Avg@4
    assert metrics["eval_rewards/exact_match/mean"] == metrics["eval_reward"]
    assert round(metrics["eval_reward"] * 64) == pytest.approx(metrics["eval_reward"] * 64)  # 16 prompts x 4


def test_an_evaluation_in_the_middle_of_a_window_changes_nothing(tmp_path):
    case = {**CASE, "steps_per_generation": 4, "rows": 64, "max_steps": 4, "optim": "adamw_torch"}
    plain = trained(case, str(tmp_path / "plain"))
    evaluates = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    rows = plain.train_dataset.select(range(16))
    other = built({**case, "config": evaluates}, str(tmp_path / "other"), eval_dataset=rows)
    other.train()
    assert len([log for log in other.state.log_history if "eval_loss" in log]) == 4
    assert furthest(parameters(plain), parameters(other)) == 0.0


def test_bf16_trains(tmp_path):
    trainer = sampling_trainer(tmp_path, bf16=True)
    start = parameters(trainer)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16" and furthest(start, parameters(trainer)) > 0


def test_mixing_rewards_without_a_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reward_coef=0.5 has no reward to read. Pass reward_funcs, or set it to 0"):
        sampling_trainer(tmp_path, num_generations=2, reward_coef=0.5)


def test_two_teachers_that_are_equal_are_one_teacher(tmp_path):
    dataset = task.dataset("train", 64, seed=0)
    routed = dataset.add_column("teacher_id", ["left" if row % 3 else "right" for row in range(len(dataset))])
    plain = {"optim": "sgd", "learning_rate": 0.01}
    one = sampling_trainer(tmp_path / "one", dataset=dataset, **plain)
    one.train()  # before the next is built: building seeds the sampling
    both = {"left": loaded("teacher"), "right": loaded("teacher")}
    two = sampling_trainer(tmp_path / "two", dataset=routed, teacher=both, **plain)
    two.train()
    assert furthest(parameters(one), parameters(two)) < 1e-6
    other = {"left": loaded("teacher"), "right": loaded("student")}
    three = sampling_trainer(tmp_path / "three", dataset=routed, teacher=other, **plain)
    three.train()
    assert furthest(parameters(one), parameters(three)) > 1e-4


@pytest.mark.parametrize("name", ["left", "right"])
def test_a_row_is_scored_by_the_teacher_that_it_names(tmp_path, name):
    dataset = task.dataset("train", 64, seed=0)
    routed = dataset.add_column("teacher_id", [name] * len(dataset))
    plain = {"optim": "sgd", "learning_rate": 0.01}
    trainer = sampling_trainer(
        tmp_path, dataset=routed, teacher={"left": loaded("teacher"), "right": loaded("student")}, **plain
    )
    start = parameters(trainer)
    trainer.train()
    assert (furthest(start, parameters(trainer)) == 0.0) == (name == "right")  # the student teaches itself nothing


def test_removing_columns_with_several_teachers_is_refused(tmp_path):
    routed = task.dataset("train", 64, seed=0).add_column("teacher_id", ["left"] * 64)
    teachers = {"left": loaded("teacher"), "right": loaded("teacher")}
    with pytest.raises(ValueError, match="remove_unused_columns=True would remove 'teacher_id'"):
        sampling_trainer(tmp_path, dataset=routed, teacher=teachers, remove_unused_columns=True)


def frozen_trainer(tmp_path, rollout=None, **case):
    """A trainer on frozen rollouts, whose output `rollout` may change."""
    trainer = built({**CASE, "max_steps": 1, **case}, str(tmp_path))
    original = trainer.rollout_func
    if rollout is not None:
        trainer.rollout_func = lambda prompts, trainer: rollout(original(prompts, trainer))
    return trainer


@pytest.mark.parametrize("method", ["opd", "fire", "random", "fire_released"])
def test_the_rollout_correction_applies_in_every_method_but_the_released_one(method, tmp_path):
    """As with vLLM: the engine reports log-probabilities so low that the ratio is cut at its cap of 5."""

    def reported(output):
        return {**output, "logprobs": [[-1000.0] * len(ids) for ids in output["completion_ids"]]}

    plain = frozen_trainer(tmp_path / "plain", method=method)
    plain.train()
    engine = frozen_trainer(tmp_path / "engine", reported, method=method)
    engine.use_vllm, engine.vllm_generation = True, SimpleNamespace(sync_weights=lambda: None)  # as GRPO sees it
    calls = watch_scorers(engine)
    engine.train()
    losses = [next(log["loss"] for log in t.state.log_history if "grad_norm" in log) for t in (plain, engine)]
    assert losses[1] == pytest.approx(losses[0] * (1 if method == "fire_released" else 5), rel=1e-5)
    assert calls == ["student", "teacher"]  # old log-probabilities and entropies: one forward
    assert ("entropy" in engine.state.log_history[0]) and engine.state.log_history[0]["fire/kept_rows"] > 0


def test_tokens_that_a_tool_wrote_do_not_train(tmp_path):
    def masked(output):
        masks = [[int(place % 3 > 0) for place in range(len(ids))] for ids in output["completion_ids"]]
        return {**output, "env_mask": masks}

    trainer = frozen_trainer(tmp_path, masked, method="opd")
    trainer.train()
    for part in trainer._buffered_inputs:
        place_T = torch.arange(part["completion_ids"].shape[1])
        assert torch.equal(part["train_mask"], part["completion_mask"].bool() & (place_T % 3 > 0))


def test_rewards_are_mixed_in_with_their_sign_and_on_survivors_only(tmp_path):
    batches = []
    for coefficient in (0.0, 0.5):
        trainer = sampling_trainer(
            tmp_path, reward_funcs=[lambda prompts, **_: [1.0, 0.0] * (len(prompts) // 2)], num_generations=2,
            reward_coef=coefficient, rows=16,
        )  # fmt: skip
        trainer.model.train()
        rows = [trainer.train_dataset[row // 2] for row in range(16)]
        batches.append(trainer._generate_and_score_completions(rows))
    plain, mixed = batches
    kept_BT = plain["train_mask"] & plain["keep"].unsqueeze(1)
    group_B = torch.tensor([0.5, -0.5] * 8) / (0.5**0.5 + 1e-4)  # GRPO's: centred, divided by the sample std + 1e-4
    expected_BT = torch.where(kept_BT, 0.5 * group_B.unsqueeze(1), 0.0)
    torch.testing.assert_close(mixed["advantages"] - plain["advantages"], expected_BT, atol=1e-5, rtol=0)
    assert plain["keep"].sum() == 13


def test_each_window_draws_anew_and_knows_the_progress(tmp_path):
    contexts, distil = [], trainer_module.distil
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "distil", lambda *args: contexts.append(args[-1]) or distil(*args))
        trainer = trained({**CASE, "method": "random", "max_steps": 4}, str(tmp_path))
    assert [context.progress for context in contexts] == [0.0, 0.25, 0.5, 0.75]
    assert len({context.seed for context in contexts}) == 4
    thresholds = [log["fire/threshold"] for log in trainer.state.log_history if "grad_norm" in log]
    assert len(set(thresholds)) == 4


def test_both_clipping_bounds_reach_the_surrogate(tmp_path):
    bounds, surrogate = [], trainer_module.clipped_surrogate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "clipped_surrogate", lambda *a: bounds.append(a[-2:]) or surrogate(*a))
        trained({**CASE, "config": {"epsilon": 0.1, "epsilon_high": 0.3}}, str(tmp_path))
    assert set(bounds) == {(0.1, 0.3)}


def test_a_teacher_in_training_mode_is_put_in_evaluation_mode(tmp_path):
    trainer = sampling_trainer(tmp_path, teacher=loaded("teacher").train())
    assert not trainer.teachers["teacher"].module.training


def test_a_teacher_is_loaded_as_its_config_says():
    args = FiReOPDConfig(
        "output", use_cpu=True, bf16=False, teacher_model_name_or_path="a/b", teacher_model_revision="v2",
        teacher_model_init_kwargs={"attn_implementation": "eager"},
    )  # fmt: skip
    expected = {"dtype": "auto", "trust_remote_code": False, "revision": "v2", "attn_implementation": "eager"}
    source = teacher_source("teacher", args.teacher_model_name_or_path, args, ["teacher"])
    assert from_pretrained_kwargs(args, source) == expected


def with_dropout():
    model = loaded("student")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    return model


def test_dropout_is_no_advantage(tmp_path):
    """Scored in evaluation mode, the student is exactly its own copy, dropout or not."""
    args = FiReOPDConfig(
        str(tmp_path), use_cpu=True, bf16=False, max_completion_length=33, per_device_train_batch_size=8, max_steps=1,
        logging_steps=1, disable_tqdm=True, method="opd", learning_rate=0.1, optim="sgd",
    )  # fmt: skip
    trainer = FiReOPDTrainer(with_dropout(), loaded("student"), args, task.dataset("train", 16, seed=0))
    start = parameters(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["fire/advantage_abs"] == 0.0
    assert furthest(start, parameters(trainer)) == 0.0 and trainer.model.training


def test_the_evaluation_loss_does_not_depend_on_the_evaluation_batch(tmp_path):
    losses = []
    for size in (1, 4, 32):
        trainer = frozen_trainer(tmp_path, config={"per_device_eval_batch_size": size})
        losses.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def test_a_student_padded_to_more_rows_than_its_teacher_loses_the_rows_that_use_them(tmp_path):
    student = loaded("student")
    student.resize_token_embeddings(64, mean_resizing=False)
    with torch.no_grad():
        student.get_output_embeddings().weight[16:] *= 3  # often sampled
    args = FiReOPDConfig(
        str(tmp_path), use_cpu=True, bf16=False, max_completion_length=33, per_device_train_batch_size=32, max_steps=1,
        logging_steps=1, disable_tqdm=True, teacher_nonfinite_limit=1.0,
    )  # fmt: skip
    trainer = FiReOPDTrainer(
        student, loaded("teacher"), args, task.dataset("train", 64, seed=0),
        processing_class=AutoTokenizer.from_pretrained(model_path("student")),
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["fire/nonfinite_teacher"] + log["fire/empty"] > 0
    assert all((part["completion_ids"][part["scale"] > 0] < 16).all() for part in trainer._buffered_inputs)


def test_evaluation_with_continuous_batching_stays_evaluation(tmp_path):
    trainer = sampling_trainer(
        tmp_path, evaluates=True, use_transformers_continuous_batching=True, per_device_eval_batch_size=8,
        transformers_continuous_batching_config={"num_blocks": 64},
    )  # fmt: skip
    trainer.model.eval()
    metrics = trainer.evaluate()
    assert metrics["eval_fire/rows"] == 8.0 and metrics["eval_fire/keep_ratio"] == 1.0


def test_a_second_call_of_train_samples_anew(tmp_path):
    trainer = frozen_trainer(tmp_path)
    calls, original = [], trainer.rollout_func
    trainer.rollout_func = lambda *args: calls.append(1) or original(*args)
    trainer.train()
    trainer.train()
    assert len(calls) == 2


def test_what_is_saved_loads_and_the_card_names_the_method(tmp_path):
    trainer = sampling_trainer(tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert furthest(parameters(trainer), again.state_dict()) == 0.0
    card = (tmp_path / "README.md").read_text()
    assert "FiRe-OPD" in card and "2606.02684" in card and "fire-opd" in card


def test_a_new_trl_fails_here():
    """The names and keys of GRPOTrainer that this trainer stands on."""
    from trl import GRPOTrainer

    def takes(name: str) -> list[str]:
        return list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters)

    assert takes("_generate_and_score_completions") == ["self", "inputs"]
    assert takes("_prepare_inputs") == ["self", "generation_batch"]
    assert takes("compute_loss") == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert takes("_get_per_token_logps_and_entropies")[:7] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
    ]  # fmt: skip
    assert takes("_generate_single_turn")[1:5] == ["prompt_ids", "images", "multimodal_fields", "num_generations"]
    source = inspect.getsource(inspect.unwrap(GRPOTrainer._generate_and_score_completions))
    for key in (
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_per_token_logps",
        "importance_sampling_ratio", "ref_per_token_logps", "tool_mask",
    ):  # fmt: skip
        assert f'"{key}"' in source
    assert GRPOTrainer.loss_is_scaled_for_ga is True


def test_a_reference_penalty_pulls_back(tmp_path):
    free = trained({**CASE, "max_steps": 4, "learning_rate": 1e-3}, str(tmp_path / "free"))
    held = trained({**CASE, "max_steps": 4, "learning_rate": 1e-3, "config": {"beta": 0.5}}, str(tmp_path / "held"))
    start = parameters(built(CASE, str(tmp_path / "start")))
    moved = [sum((parameters(t)[n] - start[n]).square().sum() for n in start) for t in (free, held)]
    assert moved[1] < 0.9 * moved[0]
    assert any(log.get("kl", 0) > 0 for log in held.state.log_history)


def test_a_reference_that_follows_the_student_is_the_student_after_each_step(tmp_path):
    follows = {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    trainer = trained({**CASE, "config": follows}, str(tmp_path))
    assert furthest(parameters(trainer), trainer.ref_model.state_dict()) == 0.0
    assert furthest(parameters(trainer), loaded("student").state_dict()) > 1e-3


def test_trl_is_asked_for_nothing_over_the_network(tmp_path, monkeypatch):
    import trl.trainer.base_trainer as base

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base, "send_telemetry", lambda *_, **__: pytest.fail("telemetry was sent"))
    sampling_trainer(tmp_path)


def test_wrong_kinds_of_arguments_are_refused(tmp_path):
    from trl import GRPOConfig

    model, dataset = loaded("student"), Dataset.from_list([{"prompt": "1+1="}])
    with pytest.raises(TypeError, match="Pass a FiReOPDConfig"):
        FiReOPDTrainer(model, loaded("teacher"), GRPOConfig(str(tmp_path), bf16=False, use_cpu=True), dataset)
    args = FiReOPDConfig(str(tmp_path), bf16=False, use_cpu=True)
    with pytest.raises(ValueError, match="very module that is trained"):
        FiReOPDTrainer(model, model, args, dataset)
    with pytest.raises(ValueError, match="teacher_model is missing"):
        FiReOPDTrainer(model, None, args, dataset)


def test_the_docstring_names_every_method_of_grpo_that_is_overridden():
    overridden = {
        name
        for name, value in vars(FiReOPDTrainer).items()
        if callable(value) and hasattr(GRPOTrainer, name) and getattr(GRPOTrainer, name) is not value
    }
    assert set(re.findall(r"^- `(\w+)`: \w+", inspect.getdoc(FiReOPDTrainer), re.MULTILINE)) == overridden
