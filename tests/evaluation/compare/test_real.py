"""A comparison on the real pair. The embedded models take the place of SmolLM2 here: the machinery is the same."""

import json
from statistics import fmean

import pytest
import torch
from support.inspections import with_template
from transformers import AutoModelForCausalLM

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.compare import command, real, runs
from fire_opd_trl.evaluation.compare.presets import ARMS, PRESETS
from fire_opd_trl.real_pair import models, sums


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Student and teacher with a chat template, in the folders where the real pair would be."""
    for name in ("student", "teacher"):
        AutoModelForCausalLM.from_pretrained(model_path(name)).save_pretrained(tmp_path / "models" / name)
        with_template().save_pretrained(tmp_path / "models" / name)
    monkeypatch.setattr(sums, "MAX_COMPLETION_TOKENS", 12)
    monkeypatch.setitem(real.TRAINING, "max_completion_length", 12)
    return tmp_path


@pytest.mark.parametrize("name", ["fire", "opd-n4"])
def test_a_run_has_what_every_run_has_and_what_its_filter_dropped(name, stand_ins):
    settings = runs.shared_settings(2, 6, 3, 1, "real")
    run = runs.run_one(stand_ins, ARMS[name], 3, settings)
    assert run == json.loads((stand_ins / "runs" / f"{name}-seed3.json").read_text())
    assert run["settings"]["task"] == "real" and [entry["step"] for entry in run["history"]] == [1, 2]
    assert {"accuracy", "keep_ratio", "truncated", "looped", "keep_ratio_truncated"} <= set(run["history"][0])
    if name == "fire":
        assert run["history"][0]["keep_ratio"] == pytest.approx(13 / 16)  # a fifth of 16 rows, rounded down
    measured = run["measured"]
    assert len(measured["right"]) == 6 and measured["samples"] == 8
    assert run["after"] == fmean(measured["right"]) / 8
    assert 0 < measured["tokens"] <= 12 and 0 <= measured["truncated"] <= 1
    before = json.loads((stand_ins / "runs" / "before" / "seed0-6-3.json").read_text())
    assert len(before["student_measured"]["right"]) == 6  # the same problems for all seeds


def test_the_copy_that_samples_follows_the_student(stand_ins, monkeypatch):
    student, tokenizer = real.load("student", stand_ins / "models")
    assert student.dtype == torch.float32 and real.load("teacher", stand_ins / "models")[0].dtype == torch.bfloat16
    asked = [sums.chat(numbers) for numbers in sums.problems("train", 4)]
    seen = []
    monkeypatch.setattr(
        real.sums, "sample", lambda model, tokenizer, ids, *_: seen.append(next(model.parameters())) or []
    )
    rollout = real.rollouts(student, tokenizer, seed=0)
    for _ in range(2):
        assert rollout(asked, None)["completion_ids"] == []
        assert seen[-1].dtype == torch.bfloat16 and torch.equal(seen[-1], next(student.parameters()).bfloat16())
        with torch.no_grad():
            next(student.parameters()).add_(1.0)


def test_measuring_changes_neither_the_student_nor_its_training(stand_ins):
    student, tokenizer = real.load("student", stand_ins / "models")
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    state = torch.get_rng_state()
    first = real.measured(student.train(), tokenizer, sums.problems("test", 4), seed=1)
    assert first == real.measured(student, tokenizer, sums.problems("test", 4), seed=1)
    assert student.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_the_preset_and_the_task_choose_each_other(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(command, "prepare", lambda folder, task: asked.append(task))
    monkeypatch.setattr(command, "run_missing", lambda folder, wanted, settings, workers: asked.append(settings) or [])
    for options in (["--preset", "real"], ["--task", "real"], ["--task", "real", "--methods", "opd"]):
        command.main([*options, "--output_dir", str(tmp_path)])
    preset = PRESETS["real"]
    expected = runs.shared_settings(
        preset.steps, preset.problems, preset.curve_problems, preset.curve_every, task="real"
    )
    assert asked == ["real", expected] * 3
    command.main(["--preset", "smoke", "--output_dir", str(tmp_path)])
    assert asked[-2] == "embedded" and "task" not in asked[-1]  # as in the runs that there are


def test_models_are_made_once_before_the_runs(monkeypatch, tmp_path, capsys):
    made = []
    monkeypatch.setattr(models, "pair", made.append)
    real.prepare(tmp_path)
    assert made == [tmp_path] and "making student and teacher once" in capsys.readouterr().out
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.safetensors").touch()
    real.prepare(tmp_path)
    assert made == [tmp_path]
