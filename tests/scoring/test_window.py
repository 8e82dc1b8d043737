"""One window under all models: TRL's own requests are not computed again, and nothing outlives its window."""

from types import SimpleNamespace

import pytest
import torch
from support.scorers import change_scores, watch_scorers
from support.worker import built
from trl import GRPOTrainer


CASE = {"batch": 32, "accumulation": 1, "max_steps": 1, "method": "fire"}


def with_engine(folder, **case):
    """
    A trainer whose rollouts come with the log-probabilities of an engine. TRL then asks for those of the student, and
    with `beta` after that for those of a reference.
    """
    trainer = built({**CASE, **case}, str(folder))
    rollout = trainer.rollout_func

    def reported(prompts, trainer):
        output = rollout(prompts, trainer)
        return {**output, "logprobs": [[-1.0] * len(ids) for ids in output["completion_ids"]]}

    trainer.rollout_func = reported
    trainer.use_vllm, trainer.vllm_generation = True, SimpleNamespace(sync_weights=lambda: None)  # as GRPO sees it
    return trainer


def end_of(trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("case", "calls"),
    [
        ({}, ["student", "teacher"]),
        ({"config": {"beta": 0.1}}, ["student", "teacher"]),  # TRL's own reference model is none of the scorers
        # The adapter's reference is the student without it: TRL asks for the student a second time.
        ({"lora": True, "config": {"beta": 0.1}}, ["student", "student", "teacher"]),
        # The whole distributions of the teacher must be there before the student is compared with them.
        ({"method": "tip"}, ["teacher", "student"]),
    ],
)
def test_the_student_is_scored_once_also_when_trl_copies_what_it_asked_for(case, calls, tmp_path, monkeypatch):
    ends, generate = [], GRPOTrainer._generate_and_score_completions

    def copied(self, inputs):
        batch = generate(self, inputs)
        return {**batch, "old_per_token_logps": batch["old_per_token_logps"].clone()}

    for name, function in (("as it is", generate), ("copied", copied)):
        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", function)
        trainer = with_engine(tmp_path / name, **case)
        watched = watch_scorers(trainer)
        ends.append(end_of(trainer))
        assert watched == calls
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_trl_that_hands_on_other_log_probabilities_is_refused(tmp_path, monkeypatch):
    generate = GRPOTrainer._generate_and_score_completions

    def changed(self, inputs):
        batch = generate(self, inputs)
        return {**batch, "old_per_token_logps": batch["old_per_token_logps"] + 1e-3}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", changed)
    with pytest.raises(RuntimeError, match="TRL returned other log-probabilities .* install trl 1.16"):
        with_engine(tmp_path).train()


def test_a_token_that_the_student_does_not_know_is_no_other_log_probability(tmp_path):
    """NaN differs from itself; what TRL returns is still what it asked for."""
    trainer = with_engine(tmp_path)

    def unknown(scores):
        scores.logp_BT[31, 0] = float("nan")
        return scores

    change_scores(trainer, "student", unknown)
    with pytest.raises(FloatingPointError, match="The student's own log-probabilities"):  # and no RuntimeError
        trainer.train()


def test_without_an_engine_the_student_scores_survivors_alone_and_after_the_teacher(tmp_path):
    trainer, rows = built(CASE, str(tmp_path)), []
    calls, original = watch_scorers(trainer), trainer.window_scorer.student.token_scores
    trainer.window_scorer.student.token_scores = lambda batch, asked=None, *observe: (
        rows.append(asked) or original(batch, asked, *observe)
    )
    trainer.train()
    assert calls == ["teacher", "student"]
    assert len(rows[0]) == 22  # 32 rows, 5 empty, 5 dropped
    assert trainer.window_scorer.window is None  # its hidden states went with it
