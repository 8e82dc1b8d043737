"""Watchdogs on real runs: each sees one that was made sick on purpose, and none sees anything in the demo."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from support.trainers import loaded, sampling_trainer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.stages.watchdogs import WATCHDOGS, examine


TOKENIZER = task.build_tokenizer()
LOOP = TOKENIZER("1+1+0=02,")["input_ids"] * 9
ROWS = 8
QUIET = {"preflight": False, "print_metrics": "none", "save_strategy": "no"}


def numbers(prompt: str) -> tuple[int, ...]:
    return tuple(map(int, prompt.rstrip("=").split("+")))


def whole(prompt: str) -> list[int]:
    """The right answer, with its end token."""
    return [*TOKENIZER(task.working(*numbers(prompt)))["input_ids"], TOKENIZER.eos_token_id]


def run_on(answer, folder, steps: int, teacher=None, resume=None, **config) -> FiReOPDTrainer:
    """A run in which the student's answers are given: `answer(window, row, prompt)` are token ids."""
    window = iter(range(1, 1000))

    def rollout(prompts, trainer):
        number = next(window)
        completions = [answer(number, row, prompt) for row, prompt in enumerate(prompts)]
        prompt_ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    args = {"learning_rate": 1e-6, "max_completion_length": len(LOOP), "logging_steps": 1, **QUIET, **config}
    trainer = FiReOPDTrainer(
        model=loaded("student"),
        teacher_model=teacher or loaded("teacher"),
        args=FiReOPDConfig(
            str(folder),
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            **args,
        ),
        train_dataset=task.dataset("train", ROWS * 40, seed=0),
        rollout_func=rollout,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def lines(folder) -> list[dict]:
    path = Path(folder) / "watchdogs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(folder) -> dict[str, list[int]]:
    seen: dict[str, list[int]] = {}
    for line in lines(folder):
        seen.setdefault(line["watchdog"], []).append(line["step"])
    return seen


def teacher_of_ends(size: float, at_the_end: bool):
    """A copy of the teacher whose end token is by some nats likelier, everywhere or only where an answer is whole."""
    teacher = loaded("teacher")
    texts = [task.prompt(*pair) + task.working(*pair) for pair in task.problems("train", 32, seed=5)]
    batch = TOKENIZER(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden_BTH = teacher.model(**batch).last_hidden_state
    mean_H = (hidden_BTH[:, -1] if at_the_end else hidden_BTH[batch["attention_mask"].bool()]).mean(dim=0)
    teacher.config.tie_word_embeddings = False
    teacher.lm_head.weight = torch.nn.Parameter(teacher.lm_head.weight.detach().clone())
    with torch.no_grad():
        teacher.lm_head.weight[TOKENIZER.eos_token_id] += size * mean_H / mean_H.square().sum()
    return teacher


def taught_to_loop(teacher):
    """The same teacher after some steps on nothing but a loop."""
    optimizer = torch.optim.AdamW(teacher.model.parameters(), 2e-3)
    prompts = [TOKENIZER(task.prompt(*pair))["input_ids"] for pair in task.problems("train", 8, seed=9)]
    prompts = [ids for ids in prompts if len(ids) == len(prompts[0])]
    ids = torch.tensor([ids + LOOP for ids in prompts])
    for _ in range(12):
        teacher(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher


# Each on a run that was made sick on purpose


def test_a_teacher_that_likes_loops_and_no_ends(tmp_path):
    """From the sixth window on half of the answers loop, and the filter keeps those."""
    teacher = taught_to_loop(teacher_of_ends(-20, at_the_end=True))

    def answer(window, row, prompt):
        return LOOP if row % 2 and window > 5 else whole(prompt)

    run_on(answer, tmp_path, steps=26, teacher=teacher, drop_fraction=0.4)
    seen = steps_of(tmp_path)
    assert set(seen) == {"loops_kept", "end_tokens", "length_inflation", "truncated"}
    assert seen["loops_kept"] == [15]  # ten windows with loops


def test_answers_are_cut_and_few_tokens_carry_the_update(tmp_path, capsys):
    def answer(window, row, prompt):
        return whole(prompt)[: 12 if row % 2 else None]

    trainer = run_on(answer, tmp_path, steps=12, confusion=1e4, confidence=0.0)
    assert steps_of(tmp_path) == {"truncated": [10], "weights": [10]}
    printed = capsys.readouterr().out
    assert "step 10: watchdog truncated: 50% of the answers were cut at max_completion_length (limit 30%)." in printed
    assert printed.count("watchdog") == 4  # each with the setting that switches it off, and no more
    assert json.loads((tmp_path / "run.json").read_text())["watchdogs"] == {"truncated": [10], "weights": [10]}
    logged = [log.get("sick/truncated") for log in trainer.state.log_history if "loss" in log]
    assert logged == [None] * 9 + [1.0] * 3


def test_a_teacher_that_ends_at_once(tmp_path):
    teacher = teacher_of_ends(12, at_the_end=False)
    data, config = task.dataset("train", 16 * 30, seed=0), {"method": "opd_full", "learning_rate": 2e-3}
    sampling_trainer(tmp_path, rows=16, teacher=teacher, dataset=data, max_steps=30, **QUIET, **config).train()
    assert list(steps_of(tmp_path)) == ["length_collapse"]


def test_a_learning_rate_that_is_far_too_high(tmp_path):
    data, config = task.dataset("train", 8 * 21, seed=0), {"max_completion_length": 12, "watchdogs": {"truncated": 1}}
    config |= {"method": "opd", "learning_rate": 3e-2, "max_steps": 21}
    sampling_trainer(tmp_path, rows=8, dataset=data, **QUIET, **config).train()
    assert list(steps_of(tmp_path)) == ["kl_rising"]


def test_answers_that_the_student_hesitates_over_and_then_only_those_it_is_sure_of(tmp_path):
    """Random characters for five windows; then the beginning of what it was taught, which copies the question."""
    draw = random.Random(0)

    def answer(window, row, prompt):
        noise = "".join(draw.choice(task.CHARACTERS) for _ in range(30))
        return TOKENIZER(noise)["input_ids"] if window <= 5 else whole(prompt)[:6]

    run_on(answer, tmp_path, steps=26, method="opd", watchdogs={"truncated": None})
    assert list(steps_of(tmp_path)) == ["entropy_collapse"]


# What is done about it


def half_cut(window, row, prompt):
    return whole(prompt)[: 12 if row % 2 else None]


def test_a_sick_run_stops_with_a_checkpoint_and_is_judged_anew_when_it_goes_on(tmp_path, capsys):
    settings = {"on_sick": "stop", "save_strategy": "steps", "save_steps": 100, "method": "opd"}
    trainer = run_on(half_cut, tmp_path, steps=40, **settings)
    assert trainer.state.global_step == 10 and (tmp_path / "checkpoint-10").is_dir()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("stopped", 10)
    assert record["stopped_because"].startswith("step 10: watchdog truncated: 50% of the answers were cut")
    assert "Training stops here (on_sick)." in capsys.readouterr().out
    # It goes on: still sick after ten windows more, it stops again; the beginning is that of the first run.
    again = run_on(half_cut, tmp_path, steps=40, resume=str(tmp_path / "checkpoint-10"), **settings)
    assert again.state.global_step == 20 and steps_of(tmp_path) == {"truncated": [10, 20]}
    assert json.loads((tmp_path / "run.json").read_text())["watchdogs"] == {"truncated": [10, 20]}
    state = json.loads((tmp_path / "checkpoint-20" / "trainer_state.json").read_text())
    lengths = [log["completions/mean_length"] for log in state["log_history"][:5]]
    assert state["stateful_callbacks"]["fire_watchdogs"]["first"]["completions/mean_length"] == lengths
    # From the checkpoint once more, allowed now: the line of step 20 is undone, and there is no other.
    mended = {**settings, "watchdogs": {"truncated": 0.9}, "save_strategy": "no"}
    run_on(half_cut, tmp_path, steps=22, resume=str(tmp_path / "checkpoint-10"), **mended)
    assert steps_of(tmp_path) == {"truncated": [10]}
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"


def test_who_ignores_sickness_sees_none(tmp_path, capsys):
    trainer = run_on(half_cut, tmp_path, steps=11, on_sick="ignore")
    assert lines(tmp_path) == [] and not (tmp_path / "watchdogs.jsonl").exists()
    assert "watchdog" not in capsys.readouterr().out and "sick/truncated" not in trainer.state.log_history[-2]


@pytest.mark.launch
def test_two_ranks_stop_at_the_same_step(on_two_ranks):
    """The second rank's answers are mostly cut; over both ranks it is more than a third."""
    case = {"batch": 16, "accumulation": 1, "method": "opd", "max_steps": 14, "holes": False}
    two = on_two_ranks("ddp", {**case, "config": {"on_sick": "stop", "watchdogs": {"truncated": 0.3}}})
    assert [log["step"] for log in two["metrics"]] == list(range(1, 11))
    assert two["steps_of_ranks"] == [10, 10]
    assert two["metrics"][-1]["sick/truncated"] == 1.0 and "sick/truncated" not in two["metrics"][-2]


# Runs in health


def recorded() -> list[dict]:
    """What the watchdogs read of the demo's 100 steps, as it was logged: `fire-opd demo`, seed 0."""
    with (Path(__file__).parents[1] / "support" / "demo_windows.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_they_are_silent_on_the_demo():
    history = recorded()
    assert len(history) == 100 and history[-1]["fire/reverse_kl"] < history[0]["fire/reverse_kl"]
    assert examine(history) == []
    limits = {"truncated": 0.001, "kl_rising": 0.0, "entropy_collapse": 1.0}  # as a check of the record itself
    assert {alarm.watchdog for alarm in examine(history, limits)} >= {"truncated"}


def test_there_is_a_sick_run_for_each():
    source = Path(__file__).read_text()
    assert [name for name in WATCHDOGS if f'"{name}"' not in source] == []
