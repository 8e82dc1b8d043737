"""What goes wrong, caused for real wherever it can be, and what must happen then."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from support.launches import SUPPORT
from support.scorers import change_scores
from support.trainers import CASE, GOOD, furthest, logs_of, parameters, sample_trainer
from support.worker import built, trained
from transformers import AutoModelForCausalLM

import fire_opd_trl.trainer.trainer as trainer_module
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path


def poison_scores(trainer, name: str, rows: list[int], value: float = float("nan")):
    """Let the scores that one model gives to some rows of each window be `value` at one token."""

    def poisoned(scores):
        scores.logp_BT[rows, 0] = value
        return scores

    change_scores(trainer, name, poisoned)


# F1, F2, F3, F4: values that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_f1_one_broken_teacher_value_costs_one_trajectory(monkeypatch, tmp_path, value):
    row = 3
    trainer = built({**CASE, "method": "opd", "max_steps": 1}, str(tmp_path / "broken"))
    poison_scores(trainer, "teacher", [row], value)
    trainer.train()
    (log,) = logs_of(trainer)
    assert (log["fire/nonfinite_teacher"], log["fire/kept_rows"]) == (1, 26)  # 32 rows, 5 empty
    monkeypatch.undo()
    whole = built({**CASE, "method": "opd", "max_steps": 1}, str(tmp_path / "whole"))
    whole.train()
    # The same window with that row emptied instead: the same model but for the order of sums in other shapes.
    without = built({**CASE, "method": "opd", "max_steps": 1}, str(tmp_path / "without"))
    rollout = without.rollout_func

    def holed(prompts, trainer):
        output = rollout(prompts, trainer)
        ids = output["completion_ids"]
        ids = [[0] if place == row else row_ids for place, row_ids in enumerate(ids)]
        return {**output, "completion_ids": ids}

    without.rollout_func = holed
    without.train()
    assert furthest(parameters(trainer), parameters(without)) < 1e-6
    assert furthest(parameters(trainer), parameters(whole)) > 1e-4  # the row would have mattered


def test_f1_too_many_broken_teacher_values_stop_the_run_and_name_the_prompts(tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(model_path("teacher"), dtype=torch.float32)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    folder = tmp_path / "broken_teacher"
    shutil.copytree(model_path("teacher"), folder)
    broken.save_pretrained(folder)
    trainer = built({**CASE, "teacher": str(folder)}, str(tmp_path))
    first_prompt = trainer.train_dataset[0]["prompt"]
    with pytest.raises(FloatingPointError, match="84% of the window") as error:  # 27 of 32; the other 5 are empty
        trainer.train()
    assert "step 0" in str(error.value) and first_prompt in str(error.value)


def test_f3_a_broken_student_stops_before_anything_changes_and_nothing_is_saved(tmp_path):
    trainer = built({**CASE, "save_strategy": "steps", "save_steps": 1}, str(tmp_path))
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    before = parameters(trainer)
    with pytest.raises(FloatingPointError, match="step 0: The student's own log-probabilities .* 27 trajectories"):
        trainer.train()
    assert all(torch.equal(before[n].nan_to_num(9.0), v.nan_to_num(9.0)) for n, v in parameters(trainer).items())
    assert not list(tmp_path.glob("checkpoint-*"))


def test_f4_a_nan_loss_is_an_error_before_the_step(monkeypatch, tmp_path):
    trainer = built({**CASE, "save_strategy": "steps", "save_steps": 1}, str(tmp_path))
    before = parameters(trainer)
    original = trainer_module.aggregate
    monkeypatch.setattr(trainer_module, "aggregate", lambda *args: original(*args) * float("nan"))
    with pytest.raises(FloatingPointError, match="step 0: the loss is NaN or infinite"):
        trainer.train()
    assert furthest(before, parameters(trainer)) == 0.0
    assert trainer.args.logging_nan_inf_filter is False


# F5, F6: nothing to learn from


def test_f1_the_limit_of_broken_teacher_values_is_the_configured_one(monkeypatch, tmp_path):
    trainer = built({**CASE, "max_steps": 1, "config": {"teacher_nonfinite_limit": 0.02}}, str(tmp_path))
    poison_scores(trainer, "teacher", [3])
    with pytest.raises(FloatingPointError, match="3% of the window"):
        trainer.train()


# F7, F11, F45: small windows, truncation, EOS


def test_f7_a_window_too_small_to_drop_anything_warns(tmp_path):
    with pytest.warns(UserWarning, match="drop_fraction=0.2 of a window of 4 rows drops none.* 5 or more"):
        FiReOPDConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4)


@pytest.mark.parametrize("masked", [False, True])
def test_f11_truncated_completions_train_or_are_empty_as_asked(masked, tmp_path):
    trainer = built({**CASE, "max_steps": 1, "config": {"mask_truncated_completions": masked}}, str(tmp_path))
    ids = trainer.rollout_func([row["prompt"] for row in trainer.train_dataset], trainer)["completion_ids"]
    truncated = sum(row[-1] != 1 and row != [0] for row in ids)
    assert 0 < truncated < 27
    trainer.train()
    (log,) = logs_of(trainer)
    assert log["completions/clipped_ratio"] == pytest.approx(truncated / 32)
    assert log["fire/empty"] == 5 + masked * truncated
    trains = 27 - masked * truncated
    assert log["fire/kept_rows"] == trains - int(0.2 * trains)
    assert ("fire/keep_ratio_truncated" in log) == (not masked)
    per_row = torch.cat([part["train_mask"].sum(1) * part["scale"] for part in trainer._buffered_inputs])
    assert per_row.tolist() == pytest.approx([1 / log["fire/kept_rows"]] * len(per_row))  # one mask above and below


def test_f45_pad_equal_to_eos_is_masked_from_the_first_eos(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    tokenizer.pad_token = tokenizer.eos_token
    trainer = FiReOPDTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path("student"), dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(model_path("teacher"), dtype=torch.float32),
        args=FiReOPDConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_completion_length=40,
            per_device_train_batch_size=8,
            max_steps=1,
            logging_steps=1,
            disable_tqdm=True,
        ),  # fmt: skip
        train_dataset=task.dataset("train", 16, seed=0),
        processing_class=tokenizer,
    )
    trainer.train()
    for part in trainer._buffered_inputs:
        eos_BT = (part["completion_ids"] == tokenizer.eos_token_id) & part["train_mask"]
        finished_B = eos_BT.any(dim=1)
        assert finished_B.any() and (eos_BT.sum(dim=1) <= 1).all()  # the EOS itself trains, the padding after it not
        last_B = part["train_mask"].sum(dim=1) - 1
        assert eos_BT.gather(1, last_B.unsqueeze(1)).squeeze(1)[finished_B].all()


# F12, F16, F47: the dataset


def test_f20_a_dataset_smaller_than_a_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has 2 rows, and one window takes 4 prompts"):
        sample_trainer(tmp_path, [GOOD, GOOD], gradient_accumulation_steps=4)


# F13: see test_trainer.py. F18, F19, F21: see tests/rollouts/test_ranks.py. F20: two ranks


@pytest.mark.launch
def test_f20_a_last_partial_window_does_not_hang(on_two_ranks):
    result = on_two_ranks(
        "ddp", {"batch": 2, "accumulation": 1, "rows": 5, "max_steps": -1, "config": {"num_train_epochs": 2}}
    )
    assert len(result["loss"]) == 2  # one window of four in each epoch; the fifth row is left


# F46: no network


def test_f46_a_model_that_is_not_here_gives_a_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match="'nobody/nothing' could not be loaded.*HF_HUB_OFFLINE is set"):
        sample_trainer(tmp_path, [GOOD], teacher_model="nobody/nothing")


def test_f46_local_folders_train_with_every_socket_closed(tmp_path):
    """Only sockets to other machines are closed."""
    program = f"""
import socket
def refuse(self, address, *rest):
    raise AssertionError(f"a connection to {{address}}")
socket.socket.connect = socket.socket.connect_ex = refuse
import sys; sys.path.insert(0, {str(SUPPORT.parent)!r})
from support.worker import trained
trained({json.dumps({**CASE, "max_steps": 1})}, {str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_worker_is_deterministic(tmp_path):
    one, other = trained(CASE, str(tmp_path / "one")), trained(CASE, str(tmp_path / "other"))
    assert furthest(parameters(one), parameters(other)) == 0.0
