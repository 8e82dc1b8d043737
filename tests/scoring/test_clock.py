"""
Times of phases on a device that works while the program goes on. There is no such device here: a fake one shows in
which order the calls are made, and no more than that.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from support.batches import random_batch
from support.worker import built

from fire_opd_trl.scoring import clock as clock_module
from fire_opd_trl.scoring import token_scores
from fire_opd_trl.scoring.clock import clock
from fire_opd_trl.scoring.forward import ForwardOutput
from fire_opd_trl.scoring.token_scores import ModelScorer
from fire_opd_trl.stages import World
from fire_opd_trl.trainer import callbacks, trainer


def test_a_device_finishes_before_the_clock_is_read_and_a_cpu_is_not_asked_to(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append(device.type))
    monkeypatch.setattr(clock_module, "perf_counter", lambda: calls.append("read") or 7.0)
    assert clock(torch.device("cuda", 1)) == clock(torch.device("cpu")) == 7.0
    assert calls == ["cuda", "read", "read"]


def test_a_scorer_is_charged_from_before_its_first_forward_until_its_last_has_finished(monkeypatch):
    calls, times = [], iter((2.0, 5.0))
    monkeypatch.setattr(token_scores, "clock", lambda device: calls.append("clock") or next(times))
    model = torch.nn.Linear(1, 1)
    base = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=10**9)))

    def forward(model, part, observer, *, compute_entropy):
        calls.append("forward")
        return ForwardOutput(part["completion_ids"].float(), None, {}, None)

    scorer = ModelScorer(
        active=lambda: nullcontext(model), base=lambda: base, forward=forward, world=World(), token_budget=1,
        multiple=1, entropies=False, unknown=frozenset(), on_time=lambda seconds: calls.append(seconds),
    )  # fmt: skip
    scorer.token_scores(random_batch(seed=0, rows=3))
    assert calls == ["clock", "forward", "forward", "forward", "clock", 3.0]  # three forwards and one wait


def test_rollout_scoring_and_update_are_timed_one_after_the_other(tmp_path, monkeypatch):
    calls, tick = [], iter(range(100))
    for module, name in ((token_scores, "scoring"), (trainer, "rollout"), (callbacks, "update")):
        monkeypatch.setattr(module, "clock", lambda device, name=name: calls.append(name) or float(next(tick)))
    monkeypatch.setattr(callbacks, "perf_counter", lambda: calls.append("begin") or float(next(tick)))
    case = {"batch": 8, "accumulation": 4, "max_steps": 2, "method": "opd"}
    run = built(case, str(tmp_path))
    sampled, compute_loss = run.rollout_func, run.compute_loss
    run.rollout_func = lambda *args: calls.append("samples") or sampled(*args)
    run.compute_loss = lambda *args, **kwargs: calls.append("loss") or compute_loss(*args, **kwargs)
    run.train()
    scored = ["scoring"] * 4  # by the teacher and by the student
    step = ["begin", "rollout", "samples", "rollout", *scored, "update", *["loss"] * 4, "update"]
    assert calls == 2 * step
    logs = [log for log in run.state.log_history if "grad_norm" in log]
    for name in ("time/rollout", "time/score_teacher", "time/score_student", "time/update"):
        assert [log[name] for log in logs] == pytest.approx([1.0, 1.0])  # each phase ends one tick after it began
    # The step ends eight ticks after it began.
    shares = {"share/rollout": 1 / 8, "share/score": 2 / 8, "share/update": 1 / 8, "share/other": 4 / 8}
    assert [{name: log[name] for name in shares} for log in logs] == [pytest.approx(shares)] * 2
    assert [log["tokens_per_second"] * 8 for log in logs] == [logs[0]["num_tokens"]] * 2  # of the same rows
