"""One task through inspect-ai: what is in its log, what is missing, and which log counts."""

import dataclasses

import pytest

from fire_opd_trl.evaluation.evaluate import engine
from fire_opd_trl.evaluation.evaluate.problems import Problem, Task
from fire_opd_trl.evaluation.evaluate.samples import seed_of
from fire_opd_trl.evaluation.evaluate.sandbox import SandboxFailed
from fire_opd_trl.evaluation.evaluate.settings import Settings
from fire_opd_trl.evaluation.evaluate.summary import summarize


PROBLEMS = tuple(Problem(f"p{index}", f"{index}+1=", (str(index + 1),)) for index in range(3))
TASK = Task("sums", "exact", "semicolon", "here", "0", PROBLEMS, "none")


@pytest.fixture
def job(tmp_path):
    """In a folder whose name means something else in a URL."""
    prompts = tuple(problem.text for problem in PROBLEMS)
    return engine.Job(TASK, tmp_path / "a#b?c%20d e", {"a": {"b": 1}}, prompts, Settings(n=2, max_new_tokens=9), 4)


def model(answer):
    """A model of inspect-ai that says what `answer(prompt, seed)` returns: a text and a reason to stop."""
    from inspect_ai.model import GenerateConfig, Model, ModelAPI, ModelOutput, ModelUsage, modelapi

    class Said(ModelAPI):
        async def generate(self, input, tools, tool_choice, config):
            assert (config.temperature, config.top_p, config.max_tokens) == (1.0, 1.0, 9)
            text, stop = answer(input[-1].text, config.seed)
            output = ModelOutput.from_content(self.model_name, text, stop_reason=stop)
            output.usage = ModelUsage(output_tokens=len(text))
            return output

    return Model(modelapi(name="said")(lambda: Said)("one"), GenerateConfig())


async def grade(problem, text):
    return engine.Graded(text, "right" if text in problem.gold else "wrong", "looked at")


def run(job, answer, found=None):
    asked = []

    def noted(prompt, seed):
        asked.append((prompt, seed))
        return answer(prompt, seed)

    engine.run(job, model(noted), grade, lambda: None, found)
    return asked


def right(prompt, seed):
    return str(int(prompt[0]) + 1), "stop"


def test_a_log_has_every_sample_and_what_is_missing_is_run_in_order(job, monkeypatch):
    monkeypatch.setenv("INSPECT_EVAL_LOG_BUFFER", "nonsense")  # would change how it is run
    every = [(problem.text, seed_of(42, problem.id, number)) for number in (1, 2) for problem in PROBLEMS]
    assert engine.find(job) is None and engine.missing(job, None) == every

    def answer(prompt, seed):
        if seed == every[4][1]:
            raise RuntimeError("the engine fell over")
        return ("4", "max_tokens") if prompt == "2+1=" else right(prompt, seed)

    assert sorted(run(job, answer)) == sorted(every)
    found = engine.find(job)
    assert found.done == 5 and engine.missing(job, found) == [every[4]]
    assert found.header.eval.metadata == job.facts
    samples = engine.samples(job, found)
    assert [(one.problem, one.sample) for one in samples] == [(p.id, number) for p in PROBLEMS for number in (1, 2)]
    assert [one.verdict for one in samples] == ["right", "right", "right", "wrong", "wrong", "wrong"]
    assert [one.stop for one in samples] == ["stop", "stop", "stop", "error", "length", "length"]
    assert "fell over" in samples[3].text and samples[3].failed and samples[0].tokens == 1

    assert run(job, right, found) == [every[4]]
    again = engine.find(job)
    assert again.done == 6 and not engine.missing(job, again)
    kept = [one for one in engine.samples(job, again) if (one.problem, one.sample) != ("p1", 2)]
    assert kept == [one for one in samples if not one.failed]
    assert len(list(job.folder.glob("*.eval"))) == 2
    engine.tidy(job)
    assert len(list(job.folder.glob("*.eval"))) == 1 and engine.find(job).done == 6
    engine.discard(job)
    assert engine.find(job) is None


def test_an_engine_that_does_not_say_why_it_stopped_makes_an_error(job):
    run(job, lambda prompt, seed: ("1", "unknown" if prompt == "0+1=" else "stop"))
    samples = engine.samples(job, engine.find(job))
    assert [one.failed for one in samples] == [True, True, False, False, False, False]
    assert "reason 'unknown'" in samples[0].text


def test_logs_that_cannot_be_read_and_those_of_other_tasks_do_not_count(job):
    run(job, right)
    (whole,) = job.folder.glob("*.eval")
    (job.folder / "2026-01-01T00-00-00-00-00_sums_cut.eval").write_bytes(whole.read_bytes()[:500])
    (job.folder / "2027-01-01T00-00-00-00-00_sums_empty.eval").write_bytes(b"")
    assert engine.find(job).done == 6
    assert engine.find(dataclasses.replace(job, task=dataclasses.replace(TASK, name="other"))) is None


def test_facts_that_make_numbers_are_compared(job):
    there = {"model": {"hashes": {"weights": "1"}, "path": "a"}, "versions": {"torch": "1"}, "n": 1}
    asked = {"model": {"hashes": {"weights": "2"}, "path": "b"}, "versions": {"torch": "2"}, "n": 1, "new": 0}
    assert list(engine.differing(asked, there)) == [("model.hashes.weights", "2", "1"), ("new", 0, None)]
    there = {"arguments": {"tensor-parallel-size": "2", "quantization": "fp8"}}
    assert list(engine.differing({"arguments": {"dp": "4"}}, there)) == [("arguments.quantization", None, "fp8")]


def test_a_grader_that_fails_makes_a_missing_sample_and_no_wrong_one(job):
    async def broken(problem, text):
        if problem.id == "p1":
            raise SandboxFailed("bubblewrap no longer starts")
        return await grade(problem, text)

    engine.run(job, model(right), broken, lambda: None, None)
    found = engine.find(job)
    samples = engine.samples(job, found)
    assert [one.failed for one in samples] == [False, False, True, True, False, False]
    assert "no longer starts" in samples[2].text
    summary = summarize(samples, job.settings.n, len(PROBLEMS))
    assert summary.missing == 2 == len(engine.missing(job, found)) and summary.avg == 1.0
