"""What a person reads while it trains."""

import json
import sys
import warnings

import pytest
from support.trainers import sampling_trainer
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fire_opd_trl.demo import task
from fire_opd_trl.trainer.progress import ProgressLine, QuietBar, TimeLeft, notebook_table


LOG = {
    "loss": 0.12345,
    "fire/reverse_kl": -0.01,
    "fire/keep_ratio": 0.875,
    "completions/mean_length": 31.5,
    "completions/clipped_ratio": None,  # TRL's mean of nothing
    "fire/padding": 0.5,
    "tokens_per_second": 2100.4,
}


def state(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=120)


def test_a_line_holds_what_a_person_looks_for(monkeypatch):
    seconds = iter([100.0, 110.0])
    monkeypatch.setattr("fire_opd_trl.trainer.progress.time.perf_counter", lambda: next(seconds))
    line = ProgressLine()
    line.time_left = TimeLeft(state(20))
    assert line.lines(state(30), LOG) == [  # 10 steps in 10 s: 90 steps left of a second each
        "step  30/120  loss  0.1235  KL -0.0100  kept  88%  length    32  tokens/s   2,100  left 0:01:30"
    ]


def test_evaluations_and_the_end_have_lines_and_no_dict_is_left():
    logs = {"eval_math_loss": 0.5, "eval_fire/reverse_kl": 0.4, "eval_runtime": 3.0}
    assert ProgressLine().lines(state(30), logs) == ["step  30/120  eval_math:  loss  0.5000  KL  0.4000"]
    assert ProgressLine().lines(state(120), {"train_runtime": 3723.4, "train_loss": 0.25}) == [
        "120 steps in 1:02:03, mean loss 0.2500"
    ]
    assert ProgressLine().lines(state(30), {"mine": 1}) == []


def test_a_line_reaches_a_file_at_once(tmp_path, monkeypatch):
    log = tmp_path / "log"
    with log.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        ProgressLine().write("step 1/2", "step 2/2")
        monkeypatch.undo()
        assert log.read_text() == "step 1/2\nstep 2/2\n"


@pytest.mark.parametrize("bar", [False, True])
def test_training_prints_lines_and_keeps_every_metric(bar, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trainer = sampling_trainer(
            tmp_path,
            disable_tqdm=not bar,
            max_steps=2,
            preflight=False,
            gradient_checkpointing=True,
            reward_funcs=[task.exact_match],
        )
        trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("\nstep ") == 2 and "reward" in printed and "2 steps in 0:00:0" in printed
    assert "fire/padding" not in printed and "{" not in printed
    assert [isinstance(c, QuietBar) for c in trainer.callback_handler.callbacks].count(True) == bar
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [log["step"] for log in logged] == [1, 2, 2]  # the last one is of the run
    assert [log["fire/padding"] for log in logged[:2]] == [
        log["fire/padding"] for log in trainer.state.log_history[:2]
    ]


def test_all_metrics_are_printed_on_request_and_none_too(tmp_path, capsys):
    kinds = {
        printed: {type(c) for c in sampling_trainer(tmp_path, print_metrics=printed).callback_handler.callbacks}
        for printed in ("line", "all", "none")
    }
    assert PrinterCallback in kinds["all"] and ProgressLine not in kinds["all"]
    assert PrinterCallback not in kinds["line"] and ProgressLine in kinds["line"]
    assert not kinds["none"] & {PrinterCallback, ProgressLine, ProgressCallback}


def test_who_removes_the_printer_of_transformers_removes_the_line(tmp_path):
    trainer = sampling_trainer(tmp_path, preflight=False)
    trainer.remove_callback(PrinterCallback)
    assert not any(isinstance(callback, ProgressLine) for callback in trainer.callback_handler.callbacks)


def test_a_notebook_shows_the_columns_of_the_line(tmp_path, capsys):
    base = pytest.importorskip("transformers.utils.notebook").NotebookProgressCallback
    table, args = notebook_table(base), sampling_trainer(tmp_path, preflight=False, max_steps=2).args
    table.on_train_begin(args, state(0), None)
    table.on_log(args, state(1), None, logs=dict(LOG))
    names, row = table.training_tracker.inner_table
    assert names == ["Step", "Training Loss", "KL", "kept", "length", "tokens/s", "left"]
    assert row[:4] == [1, " 0.1235", "-0.0100", " 88%"]
    table.on_evaluate(args, state(1), None, metrics={"eval_loss": 0.5, "eval_fire/padding": 0.1})
    assert "Fire/padding" not in table.training_tracker.inner_table[0]
