"""TRL's trainers as baselines."""

import json

import pytest
from support.commands import script_refusal
from support.runs import invented

from fire_opd_trl.demo import task
from fire_opd_trl.evaluation.compare import baselines, embedded, runs
from fire_opd_trl.evaluation.compare.presets import ARMS, BASELINES, Arm
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_train_and_are_written_like_all_others(name, tmp_path):
    run = runs.run_one(tmp_path, ARMS[name], 0, runs.shared_settings(2, 16, 16, 1))
    assert run == json.loads((tmp_path / "runs" / f"{name}-seed0.json").read_text())
    assert [entry["step"] for entry in run["history"]] == [1, 2] and len(run["curve"]) == 3
    assert set(run) == {*invented(name, 0, 0.5), "seconds"}
    assert run["history"][0]["entropy"] > 0 and run["history"][0]["reverse_kl"] is None
    assert (run["response_length"] is None) == (name == "sft")


def test_sft_learns_the_completion_with_its_end_and_not_the_prompt(tmp_path):
    student, tokenizer = embedded.load("student")
    teacher, _ = embedded.load("teacher")
    observer, settings = runs.make_observer(embedded, tokenizer, [], 1, 0), runs.shared_settings(1, 8, 8, 1)
    models = student, teacher, tokenizer
    trainer = runs.build_trainer(ARMS["sft"], 0, settings, models, str(tmp_path), observer)
    assert observer.writing > 0
    (batch,) = list(trainer.get_train_dataloader())
    prompts = list(baselines.prompts(embedded, 1, 0)["prompt"])
    written = task.sampled_completions(teacher, tokenizer, prompts, seed=0)
    assert batch["labels"].shape[0] == 128
    for row, (prompt, completion) in enumerate(zip(prompts, written, strict=True)):
        learned = batch["labels"][row][batch["labels"][row] != -100]
        assert tokenizer.decode(learned) == completion + task.EOS
        read = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert tokenizer.decode(read) == prompt + completion + task.EOS


def test_an_arm_of_trl_takes_no_recipe_arguments(tmp_path):
    arm = Arm("sft: wrong", "sft", {"keep": 0.5})
    with pytest.raises(ValueError, match="takes no method_kwargs"):
        observer = runs.make_observer(embedded, None, [], 1, 0)
        runs.build_trainer(arm, 0, runs.shared_settings(1, 8, 8, 1), (None, None, None), str(tmp_path), observer)


@pytest.mark.parametrize("name", BASELINES)
def test_the_baselines_run_as_an_example(name, tmp_path, capsys):
    script = load_module(packaged_folder("examples") / "trl_baselines.py")
    share = script.main([name, "--steps", "1", "--problems", "16"])
    assert 0 <= share <= 1 and "of 16 held-out problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"), [(["--steps", "0"], "at least 1"), (["--generations", "3"], "give a divisor of 128")]
)
def test_the_example_refuses_wrong_numbers_before_a_model_is_loaded(monkeypatch, capsys, argv, said):
    script = load_module(packaged_folder("examples") / "trl_baselines.py")
    monkeypatch.setattr(embedded, "load", pytest.fail)
    text = script_refusal(script.main, ["grpo", *argv], capsys)
    assert f"{' '.join(argv)}: " in text and said in text
