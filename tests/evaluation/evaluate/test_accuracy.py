"""The student is measured while it trains: the same training, the right numbers, and the best model on disk."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from support.trainers import furthest, loaded, parameters, sampling_trainer
from support.worker import built, result, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

from fire_opd_trl import FiReOPDConfig
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import accuracy
from fire_opd_trl.evaluation.evaluate.accuracy import AccuracyCallback
from fire_opd_trl.evaluation.evaluate.tasks import load_task
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


KEYS = {"avg@2", "stderr", "truncated", "no_answer", "ungraded", "tokens", "seconds"}
QUIET = {"preflight": False, "print_metrics": "none", "save_strategy": "no"}


def run(folder, *callbacks, steps=3, resume=None, **config):
    """A run that really samples, with these callbacks."""
    trainer = sampling_trainer(folder, max_steps=steps, **{**QUIET, **config})
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def of_measurements(logs: list[dict]) -> list[dict]:
    return [log for log in logs if any(key.startswith("accuracy/") for key in log)]


def measured(trainer) -> dict[int, dict[str, float]]:
    """What was logged of each measurement of one task, by step, without the time that it took."""
    logs = of_measurements(trainer.state.log_history)
    assert len({log["step"] for log in logs}) == len(logs)
    named = {log["step"]: {key.rpartition("/")[2]: value for key, value in log.items() if "/" in key} for log in logs}
    assert all(values.pop("seconds") > 0 for values in named.values())
    return named


def steps_on_disk(folder) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in of_measurements(lines)]


def without_times(logs: list[dict]) -> list[dict]:
    times = ("time/", "share/", "step_time", "tokens_per_second", "train_")
    return [{key: value for key, value in log.items() if not key.startswith(times)} for log in logs]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run without a callback."""
    return run(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The same run with one."""
    return run(tmp_path_factory.mktemp("watched"), AccuracyCallback("embedded", every=2, n=2, limit=7))


def test_a_run_that_is_measured_trains_as_one_that_is_not_to_the_bit(plain, watched):
    assert furthest(parameters(plain), parameters(watched)) == 0.0
    extra = of_measurements(watched.state.log_history)
    logs = [log for log in watched.state.log_history if log not in extra]
    assert without_times(logs) == without_times(plain.state.log_history)
    assert [log["step"] for log in logs if "loss" in log] == [1, 2, 3]  # also those steps that were measured
    assert watched.state.num_input_tokens_seen == plain.state.num_input_tokens_seen
    assert all(module.training for module in watched.model.modules())


def test_it_measures_before_the_first_step_every_so_many_and_after_the_last(watched):
    found = measured(watched)
    assert list(found) == [0, 2, 3]
    for values in found.values():
        assert set(values) == KEYS - {"seconds"}
        assert 0 <= values["avg@2"] <= 1 and values["avg@2"] * 14 == pytest.approx(round(values["avg@2"] * 14))
        assert 20 < values["tokens"] <= 33
    assert len({values["tokens"] for values in found.values()}) > 1  # other answers each time
    assert steps_on_disk(Path(watched.args.output_dir)) == [0, 2, 3]


def test_what_it_measures_is_what_the_model_does(tmp_path, capsys):
    """The likeliest answers, which transformers alone finds too."""
    task = load_task("embedded", limit=12)
    callback = AccuracyCallback(task, every=5, n=1, temperature=0.0, keep_best=False)
    trainer = run(tmp_path, callback, steps=1, print_metrics="line")
    model, tokenizer = loaded("student").eval(), AutoTokenizer.from_pretrained(model_path("student"))
    right = []
    for problem in task.problems:
        ids = tokenizer(problem.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            answer = model.generate(ids, do_sample=False, max_new_tokens=33, eos_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        right.append(text.rpartition(";")[2] in problem.gold)
    assert 0 < sum(right) < 12
    assert measured(trainer)[0]["avg@1"] == pytest.approx(sum(right) / 12)
    said = [line for line in capsys.readouterr().out.splitlines() if "embedded" in line]
    assert len(said) == 2 and said[0].startswith(f"step 0/1  embedded: avg@1 {sum(right) / 12:.3f} [0.")


def test_the_best_model_is_kept_whole_and_only_a_better_one_takes_its_place(tmp_path, monkeypatch):
    told, summarize = iter([0.1, 0.3, 0.3, 0.2]), accuracy.summarize
    monkeypatch.setattr(accuracy, "summarize", lambda *of: replace(summarize(*of), avg=next(told)))
    at_step = {}

    class Notes(AccuracyCallback):
        def measure(self, args, state):
            at_step[state.global_step] = parameters(trainer)
            super().measure(args, state)

    trainer = sampling_trainer(tmp_path, max_steps=3, **QUIET)
    trainer.add_callback(Notes("embedded", every=1, n=1, limit=4))
    trainer.train()
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert (best["step"], best["value"], best["metric"]) == (1, 0.3, "accuracy/embedded/avg@1")
    assert best["max_new_tokens"] == trainer.max_completion_length == 33  # the number that was used
    assert best["problems"] == 4 and "fire-opd evaluate" in best["note"] and "stderr" in best
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "best", dtype=torch.float32).state_dict()
    assert furthest(at_step[1], kept) == 0.0 < furthest(at_step[2], kept)
    assert AutoTokenizer.from_pretrained(tmp_path / "best")("1+2=")["input_ids"]
    assert {path.name for path in tmp_path.iterdir()} == {"best", "metrics.jsonl", "run.json"}


def test_a_run_that_goes_on_measures_no_step_twice_and_knows_the_best(tmp_path):
    def callback(**other):
        return AccuracyCallback("embedded", **{"every": 1, "n": 2, "limit": 7, **other})

    def bar(resumed=True, longest=33, **other):
        one = callback(**other)
        one.sampler = SimpleNamespace(longest=lambda given: given or longest)
        return one.bar_of(folder, resumed)

    config = {"save_strategy": "steps", "save_steps": 2}
    whole = run(tmp_path, callback(), steps=4, **config)
    best = (tmp_path / "best" / "best.json").read_text()
    again = run(tmp_path, callback(), steps=4, resume=str(tmp_path / "checkpoint-2"), **config)
    assert steps_on_disk(tmp_path) == [0, 1, 2, 3, 4]
    assert measured(again) == measured(whole)
    assert (tmp_path / "best" / "best.json").read_text() == best

    def ended_at(step: int) -> list[int]:
        seen, one, state = [], callback(), SimpleNamespace(global_step=step, stateful_callbacks=kept)
        one.measure = lambda args, state: seen.append(state.global_step)
        one.on_train_end(whole.args, state, None)
        return seen

    kept = again.state.stateful_callbacks
    assert (ended_at(4), ended_at(5), ended_at(0)) == ([], [5], [])  # 5: a stream has ended before max_steps

    folder, value = tmp_path / "best", json.loads(best)["value"]
    assert bar() == value
    folder.rename(tmp_path / "best.old")
    assert bar() == value  # a crash came between two renames
    shutil.copytree(folder, tmp_path / "best.old")
    assert bar() == value
    for otherwise in ({"n": 3}, {"longest": 34}):
        assert bar(**otherwise) is None  # measured otherwise: moved aside
        (aside,) = tmp_path.glob("best-before-*")
        assert not folder.exists()
        aside.rename(folder)
    assert bar(resumed=False) is None  # that of an earlier run
    assert len(list(tmp_path.glob("best-before-*"))) == 1 and not folder.exists()


def test_a_grader_that_fails_costs_one_measurement_and_not_the_run(plain, tmp_path, monkeypatch):
    found, calls = accuracy.found_answer, []

    def breaks_once(text, task):
        calls.append(text)
        if len(calls) == 9:
            raise TypeError("out of order")
        return found(text, task)

    monkeypatch.setattr(accuracy, "found_answer", breaks_once)
    with pytest.warns(UserWarning, match="step 1: the accuracy on embedded could not be measured .*out of order"):
        trainer = run(tmp_path, AccuracyCallback("embedded", every=1, n=2, limit=4, keep_best=False))
    assert list(measured(trainer)) == [0, 2, 3]
    assert furthest(parameters(plain), parameters(trainer)) == 0.0


def test_a_disk_that_is_full_costs_the_best_model_and_not_the_run(plain, tmp_path, monkeypatch):
    def full(self, folder):
        (tmp_path / "best.part" / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(accuracy.Sampler, "save", full)
    with pytest.warns(UserWarning, match="step 0: the best model could not be kept .*No space left"):
        trainer = run(tmp_path, AccuracyCallback("embedded", every=9, n=1, limit=4))
    assert list(measured(trainer)) == [0, 3] and furthest(parameters(plain), parameters(trainer)) == 0.0
    assert not list(tmp_path.glob("best*"))


def test_mathematics_is_graded_by_workers_that_end_with_the_measurement(tmp_path, monkeypatch):
    (tmp_path / "my_file.jsonl").write_text('{"problem": "12+34=", "answer": "46"}\n')
    task = load_task("embedded", limit=4)
    seen = []

    class Counts(accuracy.Graders):
        def grade(self, gold, answer):
            found = super().grade((f"{gold[0]}.0",), answer)  # equal, but not as a text
            seen.append(len(psutil.Process().children(recursive=True)))
            return found

    monkeypatch.setattr(accuracy, "Graders", Counts)
    before = len(psutil.Process().children(recursive=True))
    once = {"every": 9, "keep_best": False}
    greedy = {**once, "n": 1, "temperature": 0.0}
    trainer = run(
        tmp_path,
        AccuracyCallback(tmp_path / "my_file.jsonl", n=2, **once),
        AccuracyCallback(replace(task, kind="math"), **greedy),
        AccuracyCallback(replace(task, name="same"), **greedy),
        steps=1,
        learning_rate=1e-6,
    )
    logs = {key: value for log in trainer.state.log_history for key, value in log.items()}
    assert logs["accuracy/my_file/no_answer"] == 1.0 and logs["accuracy/my_file/avg@2"] == 0.0
    assert 0 < logs["accuracy/embedded/avg@1"] == logs["accuracy/same/avg@1"]
    assert len(seen) == 8 and max(seen) == before + 2  # those two, which the first answers start
    assert len(psutil.Process().children(recursive=True)) == before


@pytest.mark.launch
@pytest.mark.parametrize(
    "launcher",
    ["zero3", pytest.param("ddp", marks=pytest.mark.nightly), pytest.param("fsdp2", marks=pytest.mark.nightly)],
)
def test_two_ranks_measure_together_and_train_as_one_process(launcher, on_two_ranks, tmp_path):
    measure = {"task": "embedded", "every": 2, "n": 1, "limit": 7, "temperature": 0.0}  # 4 rows and 3, and no dice
    case = {"method": "fire", "accumulation": 1, "max_steps": 2, "accuracy": measure}
    one = result(trained({**case, "batch": 32}, str(tmp_path / "one")))
    two = on_two_ranks(launcher, {**case, "batch": 16})
    plain = built({**case, "batch": 32, "accuracy": None}, str(tmp_path / "plain"))
    start = parameters(plain)
    plain.train()
    assert furthest(parameters(plain), one["parameters"]) == 0.0
    assert furthest(one["parameters"], two["parameters"]) < 1e-6
    assert [log["step"] for log in two["accuracy"]] == [0, 2]
    for ours, theirs in zip(one["accuracy"], two["accuracy"], strict=True):
        same = ours.keys() - {"accuracy/embedded/seconds"}
        assert {key: theirs[key] for key in same} == {key: ours[key] for key in same}
    (best,) = tmp_path.glob(f"{launcher}-*/best")
    assert json.loads((best / "best.json").read_text())["step"] == 0
    kept = AutoModelForCausalLM.from_pretrained(best, dtype=torch.float32).state_dict()
    assert furthest(start, kept) == 0.0


# From the command line


def arguments_of(*argv: str) -> dict:
    """What the trainer is built with, by `fire-opd train *argv`."""
    script = load_module(packaged_folder("examples") / "train_fire.py")
    common = ("--model_name_or_path", model_path("student"), "--teacher_model_name_or_path", model_path("teacher"))
    arguments = script.make_parser().parse_args_and_config([*map(str, common), *argv, "--use_cpu", "--bf16", "false"])
    return script.trainer_arguments(*arguments)


def test_the_command_makes_the_callback_of_its_arguments(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "12+34="}\n')
    given = ("--dataset_name", str(prompts), "--accuracy_task", "embedded", "--accuracy_steps", "7", "--accuracy_n")
    more = ("--accuracy_limit", "5", "--accuracy_max_new_tokens", "9", "--keep_best", "false")
    (callback,) = arguments_of(*given, "3", *more)["callbacks"]
    assert (callback.every, callback.n, len(callback.prompts), callback.keeps_best) == (7, 3, 5, False)
    assert callback.max_new_tokens == 9 and callback.temperature == 1.0
    assert callback.described().startswith("embedded: 5 problems from fire_opd_trl.demo.task, 3 answers each")
    assert arguments_of("--dataset_name", str(prompts))["callbacks"] == []
    with pytest.raises(ValueError, match="math50"):
        arguments_of("--dataset_name", str(prompts), "--accuracy_task", "math50", "--accuracy_data_dir", str(tmp_path))


def test_problems_that_leave_no_room_for_an_answer_are_refused_before_the_first_step(tmp_path):
    sentence = "A problem of 8 tokens and an answer of up to 121 do not fit into a context of 128. Lower max_new"
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, AccuracyCallback("embedded", every=9, limit=7, max_new_tokens=121))


def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(tmp_path):
    for wrong in (
        {"every": 0},
        {"every": 2.5},
        {"n": 0},
        {"n": 2.5},
        {"n": math.nan},
        {"limit": 0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": 0, "n": 2},
    ):
        ((name, value), *_) = wrong.items()
        with pytest.raises(ValueError, match=rf"{name}[= ]{value}\b.*[Gg]ive "):
            AccuracyCallback("embedded", **wrong)
    task = load_task("embedded", limit=2)
    with pytest.raises(ValueError, match="needs a sandbox"):
        AccuracyCallback(replace(task, kind="code"))
    with pytest.raises(ValueError, match="limit=1 cuts a task that is loaded by its name"):
        AccuracyCallback(task, limit=1)
    with pytest.warns(UserWarning, match="accuracy_n=8 has no effect, because accuracy_task=None"):
        FiReOPDConfig(str(tmp_path), use_cpu=True, bf16=False, accuracy_n=8)
