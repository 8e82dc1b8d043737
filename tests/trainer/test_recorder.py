"""Which windows are recorded, what stands in the files, and that a run never fails for them."""

import json
import math
import warnings
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from support.scorers import change_scores
from support.trainers import furthest, parameters, report_as_an_engine
from support.worker import built, frozen_rows, recorded, trained_rows
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import DefaultFlowCallback

from fire_opd_trl.demo import task
from fire_opd_trl.rollouts.records import recorded_steps, records_folder
from fire_opd_trl.trainer.recorder import RolloutRecorder, is_logged


CASE = {"batch": 16, "accumulation": 1, "method": "fire", "log_rollouts": 4, "config": {"preflight": False}}
LOGGING = {
    "each": {"logging_steps": 1},
    "each third": {"logging_steps": 3, "logging_first_step": False},
    "each third and the first": {"logging_steps": 3},
    "a share": {"logging_steps": 0.25},
    "epochs": {"logging_strategy": "epoch", "logging_first_step": False},
    "epochs and the first": {"logging_strategy": "epoch"},
    "the first": {"logging_strategy": "no"},
    "none": {"logging_strategy": "no", "logging_first_step": False},
}


@pytest.mark.parametrize("name", LOGGING)
@pytest.mark.parametrize(("max_steps", "steps_an_epoch"), [(20, 6), (21, 7), (5, 8)])
def test_steps_are_foreseen_as_transformers_decides_them(name, max_steps, steps_an_epoch):
    settings = {"logging_strategy": "steps", "logging_first_step": True, "logging_steps": 500, **LOGGING[name]}
    args = SimpleNamespace(**settings, eval_strategy="no", save_strategy="no", eval_steps=None, save_steps=500)
    state, flow, logged = TrainerState(max_steps=max_steps), DefaultFlowCallback(), []
    state.compute_steps(args, max_steps)
    for step in range(1, max_steps + 1):
        state.global_step, control = step, TrainerControl()
        flow.on_step_end(args, state, control)
        if step % steps_an_epoch == 0 or step == max_steps:
            flow.on_epoch_end(args, state, control)
        logged += [step] * control.should_log
    assert [step for step in range(1, max_steps + 1) if is_logged(step, args, state, steps_an_epoch)] == logged
    if name.startswith("epochs"):  # of a stream nobody knows where it ends
        known = [1] * ("first" in name) + [max_steps]
        assert [step for step in range(1, max_steps + 1) if is_logged(step, args, state, None)] == known


def test_a_window_is_recorded_under_the_first_of_its_logged_steps():
    def foreseen(step: int, **settings) -> int | None:
        window = {"steps_per_generation": 8, "gradient_accumulation_steps": 4, "num_iterations": 2}
        logging = {"log_rollouts": 4, "logging_first_step": True, "logging_strategy": "steps"}
        args = SimpleNamespace(**{**window, **logging, **settings})
        state = SimpleNamespace(global_step=step, max_steps=20, logging_steps=3)
        recorder = RolloutRecorder(args, task.build_tokenizer(), ["teacher"], {})
        return recorder.step_of_window(state)

    # Two optimizer steps of 4 micro-batches, each made twice: windows of 4 steps, 1-4, 5-8, 9-12, 13-16, 17-20.
    assert [foreseen(step) for step in (0, 4, 8, 12, 16)] == [1, 6, 9, 15, 18]
    assert [foreseen(step) for step in (1, 2, 3, 6, 11)] == [3, 3, None, None, 12]  # resumed inside a window
    assert foreseen(0, log_rollouts=0) is None


def test_the_last_steps_of_epochs_are_recorded_where_those_are_logged(tmp_path):
    case = {**CASE, "max_steps": 5, "config": {"preflight": False, "logging_strategy": "epoch"}}
    trainer = built(case, str(tmp_path))  # 32 prompts: two windows an epoch
    trainer.train()
    logged = [log["step"] for log in trainer.state.log_history if "loss" in log]
    assert list(recorded_steps(tmp_path)) == logged == [1, 2, 4, 5]


def reward(completion_ids, **kwargs) -> list[float | None]:
    """None for a part of the rows."""
    return [None if len(ids) % 3 == 0 else float(len(ids)) for ids in completion_ids]


class Evaluates(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = True


def test_windows_whose_steps_are_logged_are_recorded_and_evaluations_are_not(tmp_path):
    case = {**CASE, "max_steps": 5, "logging_steps": 2, "steps_per_generation": 2, "generations": 2}
    known = Dataset.from_list([{"prompt": text} for text in list(frozen_rows(32))[:8]])
    trainer = built(case, str(tmp_path), reward_funcs=[reward], eval_dataset=known)
    trainer.add_callback(Evaluates())
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logs = {line["step"]: line for line in lines if "loss" in line}
    assert list(logs) == [1, 2, 4] and any("eval_loss" in line for line in lines)
    assert list(recorded_steps(tmp_path)) == [1, 4]  # the windows 1-2 and 3-4; 5-6 has no logged step
    rows = recorded(tmp_path)
    for step in (1, 4):
        (threshold,) = {row["threshold"] for row in rows if row["step"] == step}
        assert threshold == pytest.approx(logs[step]["fire/threshold"])
    about = json.loads(pq.read_schema(recorded_steps(tmp_path)[4]).metadata[b"fire_opd"])
    assert about == {
        "format": 1,
        "method": "fire",
        "temperature": 1.0,
        "reads": ["teacher_logp_BT", "student_logp_BT", "teacher_entropy_BT", "student_entropy_BT"],
    }
    for row in rows:
        assert row["teacher"] == "teacher" and row["group"] == row["row"] // 2
        assert row["prompt"].endswith("=") and "".join(row["tokens"]) == row["completion"]
        assert row["reward"] == (None if len(row["token_ids"]) % 3 == 0 else len(row["token_ids"]))


def test_advantages_are_recorded_with_the_share_of_the_reward_and_the_ratio_of_the_engines(tmp_path):
    case = {**CASE, "generations": 2, "rewards": True, "max_steps": 1, "log_rollouts": 16}
    case["config"] = {"preflight": False, "reward_coef": 0.5, "sampling_gap_limit": None}
    trainer = built(case, str(tmp_path))
    report_as_an_engine(trainer)
    trainer.train()
    trained = trained_rows(trainer)
    kept = [row for row in recorded(tmp_path) if row["kept"]]
    assert len(kept) >= 8 and {row["reward"] for row in kept} == {0.0, 1.0}
    plain = []
    for row in kept:
        assert [row["advantage"]] == trained[tuple(row["token_ids"])]
        both = zip(row["weight"], row["teacher_logp"], row["student_logp"], strict=True)
        plain.append([weight * (teacher - student) for weight, teacher, student in both])
    assert all(row["advantage"] != pytest.approx(without, rel=1e-3) for row, without in zip(kept, plain, strict=True))


def test_recording_changes_no_weight_and_asks_the_teacher_for_entropies_that_the_method_does_not_read(tmp_path):
    ends = {}
    for count in (0, 4):
        case = {**CASE, "method": "opd", "max_steps": 2, "log_rollouts": count}
        trainer = built(case, str(tmp_path / str(count)))
        trainer.train()
        ends[count] = parameters(trainer)
        assert not any("teacher_entropy" in name for log in trainer.state.log_history for name in log)
    assert furthest(ends[0], ends[4]) == 0
    assert not records_folder(tmp_path / "0").exists()
    rows = recorded(tmp_path / "4")
    assert len(rows) == 8 and all(min(row["teacher_entropy"]) > 0 < min(row["student_entropy"]) for row in rows)


def test_the_record_is_there_also_where_the_step_then_fails(tmp_path):
    trainer = built({**CASE, "max_steps": 2, "log_rollouts": 16}, str(tmp_path))
    unreadable = torch.tensor([1, 2, 3])

    def broken(scores):
        return scores._replace(logp_BT=scores.logp_BT.index_fill(0, unreadable, math.nan))

    change_scores(trainer, "teacher", broken)
    with pytest.raises((FloatingPointError, ValueError, RuntimeError), match="NaN|infinite|finite"):
        trainer.train()
    rows = recorded(tmp_path)
    assert [row["row"] for row in rows if row["dropped_because"] == "nonfinite_teacher"] == [1, 2, 3]
    assert all(math.isnan(rows[1]["teacher_logp"][0]) and row["score"] is None for row in rows[1:4])


def test_a_folder_that_cannot_be_written_is_said_once_and_training_goes_on(tmp_path):
    (tmp_path / "rollouts").write_text("a file where the folder should be")
    trainer = built({**CASE, "max_steps": 3}, str(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    (said,) = [str(warning.message) for warning in caught if "log_rollouts" in str(warning.message)]
    assert "log_rollouts=4: trajectories could not be recorded" in said and "Training goes on" in said
    assert trainer.state.global_step == 3


def test_a_tokenizer_that_cannot_decode_costs_the_record_and_not_the_run(tmp_path):
    trainer = built({**CASE, "max_steps": 2}, str(tmp_path))

    def fails(rows):
        raise IndexError("id 17")

    trainer._recorder.texts.decoded = fails
    with pytest.warns(UserWarning, match=r"step 1: log_rollouts=4: .* \(IndexError: id 17\). Training goes on"):
        trainer.train()
    assert trainer.state.global_step == 2 and recorded_steps(tmp_path) == {}


def test_a_window_that_is_too_large_keeps_fewer_rows_and_says_so_once(tmp_path):
    args = SimpleNamespace(output_dir=str(tmp_path), log_rollouts=64, log_rollouts_megabytes=1)
    recorder = RolloutRecorder(args, task.build_tokenizer(), ["teacher"], {})
    noise = torch.rand(64, 3000, generator=torch.Generator().manual_seed(0)).numpy()
    ids = torch.full((3000,), 2).numpy()
    row = {"prompt_ids": ids[:4], "token_ids": ids, "trains": ids > 0, "teacher": 0, "fate": 0, "score": 1.0}
    rows = [{**row, "row": n, "weight": noise[n], "advantage": noise[n], "teacher_logp": noise[n]} for n in range(64)]
    with pytest.warns(UserWarning, match=r"step 1: 64 trajectories take more than half of log_rollouts_megabytes=1, "):
        recorder.write(1, rows, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.write(2, rows, None)
    assert [0 < pq.read_metadata(path).num_rows < 64 for path in recorded_steps(tmp_path).values()] == [True, True]


def test_a_resumed_run_replaces_the_records_of_later_steps(tmp_path):
    case = {**CASE, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    built(case, str(tmp_path)).train()
    first = recorded(tmp_path)
    recorded_steps(tmp_path)[3].write_text("of a step that is made again")
    built({**case, "max_steps": 2}, str(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert list(recorded_steps(tmp_path)) == [1, 2]
    again = recorded(tmp_path)
    assert [(row["step"], row["row"], row["tokens"]) for row in again] == [
        (row["step"], row["row"], row["tokens"]) for row in first if row["step"] < 3
    ]
    built({**case, "max_steps": 1}, str(tmp_path)).train()  # anew
    assert list(recorded_steps(tmp_path)) == [1]
    (before,) = tmp_path.glob("rollouts-before-*")
    assert len(list(before.iterdir())) == 2
