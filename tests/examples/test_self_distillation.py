"""A model teaches its own adapter with a hint: teacher and student differ in what they read, and in nothing else."""

import sys

import pytest
import torch
from support.commands import script_refusal
from support.trainers import logs_of
from support.worker import recorded

from fire_opd_trl.demo import task
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


QUICK = ["--steps", "2", "--updates", "1", "--problems", "4"]


@pytest.fixture(scope="module")
def example():
    module = load_module(packaged_folder("examples") / "self_distillation.py")
    module.ROWS = 8
    return module


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("self")
    return example.main([*QUICK, "--output_dir", str(folder)]), folder


def test_the_teacher_reads_the_hint_and_the_student_does_not(example, trained):
    trainer, folder = trained
    for row in trainer.train_dataset:
        working, _, problem = row["teacher_prompt"].rpartition(";")
        a, _, b = problem.rstrip("=").partition("+")
        assert problem == row["prompt"] and working == task.working(int(a), int(b))
    first = [record for record in recorded(folder) if record["step"] == 1]
    assert first and all(";" not in record["prompt"] for record in first)
    # At the first step the adapter is zero: the weights are the same, so that what differs is the hint alone.
    assert all(max(abs(t - s) for t, s in zip(r["teacher_logp"], r["student_logp"], strict=True)) > 0.1 for r in first)
    assert logs_of(trainer)[0]["fire/reverse_kl"] > 0.1


def test_the_adapter_alone_is_trained(example, trained):
    trainer, _ = trained
    trained_names = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained_names and all("lora_" in name for name in trained_names)
    moved = [value.abs().max() > 0 for name, value in trainer.model.named_parameters() if "lora_B" in name]
    assert any(moved)
    ids = trainer.processing_class(["11+22="], return_tensors="pt")["input_ids"]
    base = trainer.model.get_base_model()
    with torch.no_grad(), trainer.model.disable_adapter():
        teacher = base(ids).logits
    with torch.no_grad():
        student = trainer.model(ids).logits
    assert not torch.allclose(teacher, student, atol=1e-4)


def test_without_a_hint_there_is_nothing_to_learn(example, tmp_path, monkeypatch):
    """Teacher and student are then one model that reads one prompt."""
    monkeypatch.setattr(example, "hinted", lambda problem, solved: task.prompt(*problem))
    trainer = example.main([*QUICK, "--steps", "1", "--output_dir", str(tmp_path)])
    (log,) = logs_of(trainer)
    assert abs(log["fire/reverse_kl"]) < 1e-5 and log["grad_norm"] < 1e-4


def test_the_control_has_the_solution_of_another_problem(example, tmp_path, capsys):
    trainer = example.main([*QUICK, "--steps", "1", "--hint", "other", "--output_dir", str(tmp_path)])
    for row in trainer.train_dataset:
        working, _, problem = row["teacher_prompt"].rpartition(";")
        a, _, b = problem.rstrip("=").partition("+")
        assert problem == row["prompt"] and working != task.working(int(a), int(b))
    assert "the student after 1 steps, without the hint" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["steps", "updates", "problems"])
def test_a_wrong_number_is_refused_before_a_model_is_loaded(example, capsys, monkeypatch, name):
    monkeypatch.setattr(example, "model_path", pytest.fail)
    assert script_refusal(example.main, [f"--{name}", "0"], capsys).endswith(f"--{name} 0: give at least 1")


def test_without_peft_it_says_what_to_install(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "model_path", pytest.fail)
    monkeypatch.setitem(sys.modules, "peft", None)  # Python then finds none
    text = script_refusal(example.main, ["--output_dir", str(tmp_path)], capsys)
    assert text.endswith("needs the package peft, which is not installed. Run: pip install -e '.[peft]'")
