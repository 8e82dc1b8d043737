"""An optimizer step without a token to train on moves nothing; the phases of a step and their shares."""

from collections import defaultdict

import pytest
import torch
from support.trainers import CASE, furthest, logs_of, parameters
from support.worker import built
from transformers import TrainerState

from fire_opd_trl.trainer import callbacks
from fire_opd_trl.trainer.callbacks import StepTimer


def test_f6_an_empty_window_moves_nothing_and_five_in_a_row_stop(tmp_path):
    case = {**CASE, "holes": "all", "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 8}
    trainer = built(case, str(tmp_path))
    before = parameters(trainer)
    with pytest.raises(RuntimeError, match="step 4: nothing was left to train on in 5 windows in a row"):
        trainer.train()
    assert furthest(before, parameters(trainer)) == 0.0
    assert [log["loss"] for log in logs_of(trainer)] == [0.0] * 4
    assert all(log["fire/empty_steps"] == 1.0 and log["fire/empty"] == 32 for log in logs_of(trainer))


def test_f6_momentum_does_not_move_the_weights_in_an_empty_step_and_training_goes_on(tmp_path):
    case = {**CASE, "optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 3, "config": {"weight_decay": 0.1}}
    trainer = built(case, str(tmp_path))
    rollout, ends = trainer.rollout_func, []

    def empty_in_the_second_window(prompts, trainer):
        ends.append(parameters(trainer))
        output = rollout(prompts, trainer)
        empty = len(ends) == 2
        return {**output, "completion_ids": [[0]] * len(prompts) if empty else output["completion_ids"]}

    trainer.rollout_func = empty_in_the_second_window
    trainer.train()
    ends.append(parameters(trainer))
    assert [furthest(a, b) > 0 for a, b in zip(ends, ends[1:], strict=False)] == [True, False, True]
    assert [log["learning_rate"] for log in logs_of(trainer)][-1] == 1e-3


@pytest.mark.parametrize("scheduler", ["recursive cosine", "lambda"])
def test_f6_an_empty_step_leaves_the_learning_rates_to_their_schedule(scheduler, tmp_path):
    def rates(empty_window: int) -> list[float]:
        trainer = built({**CASE, "max_steps": 4, "learning_rate": 1e-3}, str(tmp_path / f"{scheduler}{empty_window}"))
        trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
        trainer.lr_scheduler = (
            torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizer, T_max=6, eta_min=1e-5)
            if scheduler == "recursive cosine"
            else torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1 - step / 8)
        )
        rollout, windows = trainer.rollout_func, []

        def one_empty(prompts, trainer):
            windows.append(1)
            output = rollout(prompts, trainer)
            empty = len(windows) == empty_window
            return {**output, "completion_ids": [[0]] * len(prompts) if empty else output["completion_ids"]}

        trainer.rollout_func = one_empty
        trainer.train()
        return [log["learning_rate"] for log in logs_of(trainer)]

    assert rates(empty_window=2) == pytest.approx(rates(empty_window=99))


@pytest.mark.launch
def test_f6_an_empty_window_moves_nothing_under_zero3(on_two_ranks, tmp_path):
    case = {
        "method": "tip",  # gathers tokens of the window, and keeps hidden states of rows: here none on any rank
        "batch": 4,
        "accumulation": 4,
        "holes": "all",
        "optim": "adamw_torch",
        "learning_rate": 0.1,
        "max_steps": 3,
    }
    two = on_two_ranks("zero3", {**case, "config": {"weight_decay": 0.1}})
    start = parameters(built({**CASE, "holes": "all"}, str(tmp_path / "start")))
    assert furthest({name: start[name] for name in two["parameters"]}, two["parameters"]) == 0.0
    assert two["loss"] == [0.0] * 3 and two["survivors_of_ranks"] == [0, 0]


def test_windows_of_two_steps_are_reported_whole_and_those_since_the_last_log_together(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks, "clock", lambda device: now[0])
    monkeypatch.setattr(callbacks, "perf_counter", lambda: now[0])
    metrics, state = defaultdict(list), TrainerState(num_input_tokens_seen=500)  # a resumed run
    timer = StepTimer(torch.device("cpu"), metrics, steps=2)
    timer.on_train_begin(None, state, None)

    def step(update: float, sampled: tuple[int, float] | None = None):
        timer.begin()
        if sampled:
            state.num_input_tokens_seen += sampled[0]
            timer.took("rollout", sampled[1])
            now[0] += sampled[1] + 1.0  # and a second of rewards
        timer.start()
        now[0] += update
        state.global_step += 1
        timer.on_step_end(None, state, None)
        now[0] += 100.0  # an evaluation

    step(2.0, sampled=(60, 3.0))
    assert dict(metrics) == {"time/update": [2.0]}  # the window has another step, without sampling
    step(4.0)
    # 60 tokens in the 10 s of its two steps: 3 s of sampling, 6 of update, 1 of anything else
    assert metrics.pop("time/update") == [2.0, 4.0]
    of_one = {"share/rollout": [0.3], "share/score": [0.0], "share/update": [0.6], "tokens_per_second": [6.0]}
    assert metrics.pop("share/other") == [pytest.approx(0.1)] and metrics == of_one
    step(10.0, sampled=(120, 9.0))
    step(10.0)
    # two windows without a log between: 180 tokens in 40 s, and not the mean of 6 and 4
    assert metrics["tokens_per_second"] == [4.5] and metrics["share/rollout"] == [0.3]
    metrics.clear()  # TRL has logged
    step(0.5)
    step(0.5, sampled=(8, 2.0))
    assert metrics["tokens_per_second"] == [2.0]  # 8 tokens in 4 s
