"""One window under all models: TRL's own requests are not computed again, and nothing outlives its window."""

import pytest
import torch
from support.scorers import change_scores, watch_scorers
from support.trainers import report_as_an_engine
from support.worker import built
from trl import GRPOTrainer


CASE = {"batch": 32, "accumulation": 1, "max_steps": 1, "method": "fire"}


def with_engine(folder, **case):
    """
    A trainer whose rollouts come with the log-probabilities of an engine. TRL then asks for those of the student, and
    with `beta` after that for those of a reference.
    """
    trainer = built({**CASE, **case}, str(folder))
    report_as_an_engine(trainer)
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


def test_the_distance_to_the_teacher_is_logged_over_all_rows_and_over_survivors(tmp_path):
    """The filter drops what the teacher finds unlikely: of survivors alone, the distance would look too small."""
    trainer = built(CASE, str(tmp_path))
    calls, windows, report = watch_scorers(trainer), [], trainer._report
    trainer._report = lambda *window: windows.append(window) or report(*window)
    trainer.train()
    assert calls == ["teacher", "student"]
    assert trainer.window_scorer.window is None  # its hidden states went with it
    (log,), ((rollout, scores, *_),) = [log for log in trainer.state.log_history if "grad_norm" in log], windows
    mask_BT = rollout.mask_BT
    likely_B = torch.where(mask_BT, scores.teacher_logp_BT, 0).sum(dim=1) / mask_BT.sum(dim=1)  # NaN: an empty row
    order = likely_B.nan_to_num(torch.inf).argsort()  # of 27 rows with tokens floor(0.2 x 27) = 5 are dropped
    difference_BT = scores.student_logp_BT - scores.teacher_logp_BT
    for name, rows in (("fire/reverse_kl", order), ("fire/reverse_kl_kept", order[5:])):
        assert log[name] == pytest.approx(difference_BT[rows][mask_BT[rows]].mean().item(), rel=1e-5)
    assert log["fire/reverse_kl"] > 1.1 * log["fire/reverse_kl_kept"] > 0  # what is dropped lies far off
