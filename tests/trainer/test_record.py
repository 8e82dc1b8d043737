"""run.json and metrics.jsonl: what ran, with what, and how it ended."""

import json

import pytest
from support.trainers import CASE, sampling_trainer
from support.worker import built
from transformers import TrainerCallback

from fire_opd_trl import METHODS
from fire_opd_trl.trainer.record import command_line, keep_lines_until, stages_of


class Watch(TrainerCallback):
    """Reads run.json in the middle of a run, and may stop it."""

    def __init__(self, folder, error=None):
        self.folder, self.error = folder, error

    def on_step_end(self, args, state, control, **kwargs):
        self.seen = json.loads((self.folder / "run.json").read_text())
        if self.error is not None:
            raise self.error


def test_a_run_is_recorded_when_it_starts_and_when_it_ends(tmp_path):
    trainer = sampling_trainer(
        tmp_path, preflight=False, hub_token="hf_abcdefghijklmnop", max_steps=2, model_init_kwargs={"token": "mine"}
    )
    watch = Watch(tmp_path)
    trainer.add_callback(watch)
    trainer.train()
    run = json.loads((tmp_path / "run.json").read_text())
    assert (watch.seen["status"], watch.seen["ended"], watch.seen["metrics"]) == ("running", None, {})
    assert (run["status"], run["steps"], run["max_steps"]) == ("finished", 2, 2) and run["ended"] >= run["started"]
    assert run["metrics"]["last"] == [log for log in trainer.state.log_history if "loss" in log][-1]
    assert run["settings"]["drop_fraction"] == 0.2 and run["versions"]["trl"].startswith("1.16")
    assert run["world"] == {"processes": 1, "distributed": "NO", "device": "cpu"} and run["data"]["rows"] == 64
    assert run["method"]["stages"]["filter"] == "drop_lowest(fraction=0.2, scope='batch')"
    text = (tmp_path / "run.json").read_text()
    assert "hf_abcdefghijklmnop" not in text and "mine" not in text
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("out of memory"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_what_stops_a_run_is_recorded_and_raised(error, status, tmp_path):
    trainer = sampling_trainer(tmp_path, preflight=False)
    trainer.add_callback(Watch(tmp_path, error))
    with pytest.raises(type(error)):
        trainer.train()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == status and run["error"].startswith(type(error).__name__) and run["ended"]


def test_a_resumed_run_goes_on_with_its_metrics(tmp_path):
    case = {**CASE, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    built(case, str(tmp_path)).train()
    built({**case, "max_steps": 2}, str(tmp_path)).train(resume_from_checkpoint=True)
    run = json.loads((tmp_path / "run.json").read_text())
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (run["resumed_at_step"], run["steps"], steps) == (1, 2, [1, 1, 2, 2])
    built({**case, "max_steps": 2}, str(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    again = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert again == [1, 1, 2, 2]  # the second step was made twice, and stands there once
    built(case, str(tmp_path)).train()  # anew
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    (before,) = tmp_path.glob("metrics-before-*.jsonl")
    assert len(before.read_text().splitlines()) == 4  # what the earlier run has said is not lost


def test_lines_that_a_crash_has_broken_do_not_stop_a_run_that_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1}\n', "\0\0\0\n", "[1]\n", '{"loss": 1}\n', '{"step": 2}\n', '{"step": 3}\n', '{"step": 2']
    path.write_text("".join(lines))
    keep_lines_until(2, str(path))
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_command_line_is_recorded_without_its_secrets():
    shown = command_line(["python", "t.py", "--hub_token", "x1", "--lr", "1", "--wandb-api-key=y1", "--hub_token=z1"])
    assert "x1" not in shown and "y1" not in shown and "z1" not in shown and "--lr 1" in shown


@pytest.mark.parametrize("name", METHODS)
def test_the_stages_of_every_method_are_written_as_calls(name):
    text = str(stages_of(METHODS[name]()))
    assert "0x" not in text and "None" not in text and "partial" not in text
