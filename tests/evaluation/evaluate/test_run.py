"""`evaluate(...)`, from the checks to the page, on the embedded student and problems of our own."""

import asyncio
import errno
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import engine, provider, run
from fire_opd_trl.evaluation.evaluate.problems import Problem, Task
from fire_opd_trl.evaluation.evaluate.run import Interrupted, evaluate
from fire_opd_trl.evaluation.evaluate.settings import Settings


TASK = Task("sums", "exact", "semicolon", "here", "0", (Problem("p", "1+1=", ("2",)),), "none")
SETTINGS = {"n": 2, "limit": 6, "max_new_tokens": 40, "dtype": "float32", "device": "cpu", "graders": 1}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A copy, which tests may change."""
    return shutil.copytree(model_path("student"), tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def first(student, tmp_path_factory):
    """A whole evaluation, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return evaluate(student, "embedded", output_dir=folder, **SETTINGS), folder


def samples_of(folder, label="student", name="embedded"):
    path = folder / "samples" / f"{label}.{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(folder):
    return {**json.loads((folder / "results.json").read_text()), "times": None}


def test_an_evaluation_leaves_numbers_samples_logs_and_a_page(first):
    results, folder = first
    (entry,) = results["entries"]
    assert results["status"] == entry["status"] == "complete"
    assert entry["summary"]["problems"] == 6 and entry["summary"]["n"] == 2 and entry["summary"]["missing"] == 0
    rows = samples_of(folder)
    assert len(rows) == 12 and len({row["seed"] for row in rows}) == 12
    pairs = {task.prompt(a, b): str(a + b) for a, b in task.problems("test", 6)}
    right = sum(row["answer"] in pairs.values() and row["verdict"] == "right" for row in rows)
    assert entry["summary"]["avg"] == pytest.approx(right / 12)
    assert {row["stop"] for row in rows} <= {"stop", "length"} and all(row["tokens"] > 5 for row in rows)
    assert entry["model"]["hashes"]["weights_sha256"] and entry["prompt"]["example"] in pairs
    assert entry["backend"]["dtype"] == "float32" and entry["backend"]["device"] == "cpu"
    assert (folder / "results.html").is_file() and list((folder / "logs" / "student").glob("*.eval"))
    assert results["times"]["student embedded"]["started"]


def test_the_same_model_is_equal_to_itself_sample_by_sample_at_any_batch_size(first, student, tmp_path):
    evaluate(student, "embedded", output_dir=tmp_path, batch_size=5, **SETTINGS)
    assert samples_of(tmp_path) == samples_of(first[1])
    assert without_times(tmp_path) == without_times(first[1])


def test_a_whole_evaluation_is_not_run_again_and_loads_no_model(first, student, monkeypatch):
    monkeypatch.setattr(provider, "load", lambda *arguments: pytest.fail("a model was loaded"))
    before = without_times(first[1])
    evaluate(student, "embedded", output_dir=first[1], **SETTINGS)
    assert without_times(first[1]) == before


def test_an_interrupted_evaluation_is_partial_and_goes_on_with_the_missing_samples(
    first, student, tmp_path, monkeypatch
):
    asked, folder = [], tmp_path / "a#b?c%20d e"  # which means something else in a URL
    grader, seen = run.grader, []

    def counting(task, judge):
        inner = grader(task, judge)

        async def counted(problem, text):
            seen.append(problem.id)
            return await inner(problem, text)

        return counted

    monkeypatch.setattr(run, "grader", counting)
    sample = engine.run

    def stopped(job, model, grade, on_sample, found):
        """A run whose last four samples are lost, as by a kill: those that its log has are all there is."""
        asked.append(len(engine.missing(job, found)))
        if found is None:
            part = replace(job, settings=replace(job.settings, n=1))
            sample(part, model, grade, on_sample, None)
            raise KeyboardInterrupt
        sample(job, model, grade, on_sample, found)

    monkeypatch.setattr(engine, "run", stopped)
    with pytest.raises(Interrupted) as interrupted:
        evaluate(student, "embedded", output_dir=folder, **SETTINGS)
    assert interrupted.value.results["status"] == "partial"
    assert json.loads((folder / "results.json").read_text())["status"] == "partial"
    assert evaluate(student, "embedded", output_dir=folder, **SETTINGS)["status"] == "complete"
    assert asked == [12, 6] and len(seen) == 12  # no sample was graded twice
    assert without_times(folder) == without_times(first[1])
    assert samples_of(folder) == samples_of(first[1])
    assert len(list((folder / "logs" / "student").glob("*.eval"))) == 1  # that of the first call is superseded


def test_an_error_in_one_sample_costs_that_sample_and_is_run_again(first, student, tmp_path, monkeypatch):
    grader, broken = run.grader, [True]

    def breaking(task, judge):
        inner = grader(task, judge)

        async def maybe(problem, text):
            if problem.id == task.problems[2].id and broken:
                broken.pop()
                raise RuntimeError("the grader fell over")
            return await inner(problem, text)

        return maybe

    monkeypatch.setattr(run, "grader", breaking)
    results = evaluate(student, "embedded", output_dir=tmp_path, **SETTINGS)
    assert results["status"] == "partial" and results["entries"][0]["summary"]["missing"] == 1
    rows = samples_of(tmp_path)
    (failed,) = [row for row in rows if row["stop"] == "error"]
    assert "fell over" in failed["text"]
    assert [row for row in rows if row["stop"] != "error"] == [
        row for row in samples_of(first[1]) if row["seed"] != failed["seed"]
    ]
    assert evaluate(student, "embedded", output_dir=tmp_path, **SETTINGS)["status"] == "complete"
    assert samples_of(tmp_path) == samples_of(first[1])


def test_other_settings_data_or_weights_are_not_added_to_a_log(first, student, tmp_path, monkeypatch):
    folder = shutil.copytree(first[1], tmp_path / "out")
    monkeypatch.setattr(provider, "load", lambda *arguments: pytest.fail("a model was loaded"))

    def refused(**changed):
        with pytest.raises(ValueError) as error:
            evaluate(student, "embedded", output_dir=folder, **{**SETTINGS, **changed})
        return str(error.value)

    said = refused(temperature=0.5)
    assert "sampling.temperature is 0.5, and was 1.0" in said and "--overwrite" in said
    assert "sampling.seed is 1, and was 42" in refused(seed=1)
    assert "task.sha256" in refused(limit=5)
    assert "backend.dtype is 'bfloat16', and was 'float32'" in refused(dtype="bfloat16")
    weights = student / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert "model.hashes.weights_sha256" in refused()
        for settings in (SETTINGS, {**SETTINGS, "overwrite": True}):  # another task has numbers of the old weights
            with pytest.raises(ValueError, match="is not the one that is measured now: weights_sha256 was"):
                evaluate(student, "sums", output_dir=folder, **settings)
    finally:
        weights.write_bytes(whole)


def test_a_full_disk_is_one_sentence_and_destroys_nothing(first, student, tmp_path, monkeypatch):
    from inspect_ai.log._recorders import eval as recorder

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    said = "cannot be written: No space left on device. What was there is kept"
    before = (first[1] / "results.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_whole", full)
        with pytest.raises(run.DiskFull, match=f"^{first[1]} {said}"):
            evaluate(student, "embedded", output_dir=first[1], **SETTINGS)
    assert (first[1] / "results.json").read_bytes() == before
    real, left = recorder._copy_temp_to_local, [True, True]

    def filling(*arguments):
        return real(*arguments) if left and left.pop() else full()

    monkeypatch.setattr(recorder, "_copy_temp_to_local", filling)
    with pytest.raises(run.DiskFull, match=f"^{tmp_path / 'logs' / 'student'} {said}"):
        evaluate(student, "embedded", output_dir=tmp_path, **SETTINGS)
    monkeypatch.setattr(recorder, "_copy_temp_to_local", real)
    assert evaluate(student, "embedded", output_dir=tmp_path, **SETTINGS)["status"] == "complete"
    assert samples_of(tmp_path) == samples_of(first[1])


def test_no_two_tasks_write_one_file():
    names = ["a b", "a_b", "a.b", "a:b", "b"]
    files = {f"{label}.{run.task_part(name)}.jsonl" for label in ("m", "m.a") for name in names}
    assert len(files) == 10 and run.task_part("math500") == "math500"


def test_what_is_overwritten_is_run_again(first, student, tmp_path):
    folder = shutil.copytree(first[1], tmp_path / "out")
    results = evaluate(student, "embedded", output_dir=folder, overwrite=True, **{**SETTINGS, "limit": 2, "seed": 1})
    assert [entry["sampling"]["seed"] for entry in results["entries"]] == [1]
    assert len(samples_of(folder)) == 4 and samples_of(folder)[:2] != samples_of(first[1])[:2]


def test_a_second_model_and_a_file_of_ones_own_are_added_and_compared(first, student, tmp_path):
    folder = shutil.copytree(first[1], tmp_path / "out")
    own = tmp_path / "own.jsonl"
    own.write_text(
        "".join(json.dumps({"problem": f"{a}+{b}=", "answer": str(a + b)}) + "\n" for a, b in [(12, 13), (40, 2)])
    )
    teacher = model_path("teacher")
    results = evaluate([student, teacher], ["embedded", str(own)], output_dir=folder, prompt_style="none", **SETTINGS)
    found = {(entry["model"]["label"], entry["task"]["name"]) for entry in results["entries"]}
    assert found == {(model, name) for model in ("student", "teacher") for name in ("embedded", "own")}
    (difference,) = [one for one in results["differences"] if one["task"] == "embedded"]
    assert difference["first"] == "student" and difference["second"] == "teacher" and difference["difference"] > 0.2
    assert {row["verdict"] for row in samples_of(folder, "teacher", "own")} == {"no answer"}  # nothing is in a box
    assert samples_of(folder) == samples_of(first[1])


def test_models_of_one_name_have_labels_of_their_own(student, tmp_path):
    other = shutil.copytree(student, tmp_path / "b" / "student")
    names = [str(student), str(other)]
    labels = [model.label for model in run.models_of(names, tmp_path / "out")]
    assert labels == [f"{student.parent.name}-student", "b-student"]
    run.write_whole(
        tmp_path / "out/logs/student/model.txt", f"{str(other).strip('/')}\n"
    )  # known alone, by an earlier call
    labels = [model.label for model in run.models_of(names, tmp_path / "out")]
    assert labels == [f"{student.parent.name}-student", "student"]
    run.write_whole(tmp_path / "out/logs/b-student/model.txt", "another/b/student\n")
    assert [model.label for model in run.models_of(names[1:], tmp_path / "out")] == ["student"]
    with pytest.raises(ValueError, match="student is named twice"):
        run.models_of([names[0], names[0] + "/"], tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 0}, "--n 0: give at least 1"),
        ({"device": "cudda"}, "--device cudda: "),
        ({"tasks": "embeded"}, "embedded"),
        ({"tasks": ""}, "--tasks: name at least one task"),
        ({"tasks": "embedded,embedded"}, "two tasks are called embedded"),
        ({"models": "no/such/folder"}, "there is no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_model_is_loaded(changed, said, student, tmp_path, monkeypatch):
    monkeypatch.setattr(provider, "load", lambda *arguments: pytest.fail("a model was loaded"))
    arguments = {"models": student, "tasks": "embedded", "output_dir": tmp_path / "out", **SETTINGS, **changed}
    with pytest.raises(ValueError) as error:
        evaluate(**arguments)
    assert said in str(error.value) and not (tmp_path / "out").exists()


def test_an_old_python_and_a_missing_extra_are_one_sentence_each(monkeypatch):
    real = run.importlib.util.find_spec
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "inspect_ai" else real(name))
    with pytest.raises(ImportError, match=r"pip install fire-opd-trl\[eval\]"):
        evaluate("student", "embedded")
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    with pytest.raises(ImportError, match=r"needs Python 3.11 or later, and this is Python 3.10"):
        evaluate("student", "embedded")


def test_prompts_without_room_for_an_answer_are_refused(student, tmp_path, monkeypatch):
    monkeypatch.setattr(provider, "load", lambda *arguments: pytest.fail("a model was loaded"))
    own = tmp_path / "own.jsonl"
    for problem, said in (("1" * 200, "has 200 tokens of 128"), ("words", "has no token")):
        own.write_text(json.dumps({"problem": problem, "answer": "1"}) + "\n")
        with pytest.raises(ValueError, match=said):
            evaluate(student, str(own), output_dir=tmp_path / "out", prompt_style="none", **SETTINGS)


def test_code_is_graded_by_its_tests_and_refused_without_a_sandbox(monkeypatch):
    from fire_opd_trl.evaluation.evaluate import code, sandbox

    class Tests:
        def __init__(self, file, where, python, workers):
            assert (str(file), where, python, workers) == ("Own.jsonl", "a sandbox", "a python", 3)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def facts(self):
            return {"name": "evalplus", "version": "0", "seconds": 10.0}

        def grade(self, name, program):
            return code.CodeGrade("right", "wrong", f"{name}: {program.strip()}")

    problem = Problem("HumanEval/0", "def one(): ...", (), {"entry_point": "one"})
    own = Task("own", "code", "code", "Own.jsonl", "", (problem,), "boxed")
    with pytest.raises(ValueError, match="needs a sandbox"), run.graders_of([own], Settings(graders=3)):
        pass
    monkeypatch.setattr(code, "CodeGraders", Tests)
    monkeypatch.setattr(code, "find_interpreter", lambda path, where: "a python")
    monkeypatch.setattr(sandbox, "make_sandbox", lambda name: "a sandbox")
    with run.graders_of([own], Settings(graders=3, sandbox="bubblewrap")) as graded:
        grade, facts = graded["own"]
        found = asyncio.run(grade(problem, "Here:\n```python\ndef one(): return 1\n```"))
        assert (found.verdict, found.note) == ("wrong", "base: right. HumanEval/0: def one(): return 1")
        assert asyncio.run(grade(problem, "")).verdict == "no answer" and facts["limit"] == 10.0


def test_mathematics_is_graded_by_processes(tmp_path):
    problem = Problem("p", "1/2 as a decimal?", ("\\frac{1}{2}",), {})
    own = Task("own", "math", "boxed", "own.jsonl", "", (problem,), "boxed")
    with run.graders_of([own], Settings(graders=1)) as graded:
        grade, facts = graded["own"]
        texts = ["\\boxed{1} or \\boxed{0.5}", "\\boxed{2}", "0.5"]
        verdicts = [asyncio.run(grade(problem, text)).verdict for text in texts]
    assert verdicts == ["right", "wrong", "no answer"] and facts["name"] == "math-verify"


def test_livecodebench_is_sampled_and_gets_no_number(student, tmp_path, monkeypatch):
    problem = Problem("q1", "1+1=", (), {})
    own = Task("livecodebench", "code", "code", "lcb.jsonl", "0", (problem,), "none")
    monkeypatch.setattr(run, "load_task", lambda *arguments: own)
    results = evaluate(student, "livecodebench", output_dir=tmp_path, **SETTINGS)
    assert results["status"] == "complete" and results["entries"] == []
    assert len(samples_of(tmp_path, name="livecodebench")) == 2


def test_two_evaluations_do_not_run_in_one_folder(first, student):
    with run.alone(first[1]), pytest.raises(ValueError, match="another evaluation is running there"):
        evaluate(student, "embedded", output_dir=first[1], **SETTINGS)
    evaluate(student, "embedded", output_dir=first[1], **SETTINGS)


def test_a_folder_that_takes_no_files_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match="--output_dir .*/file: no files can be made there"),
        run.alone(tmp_path / "file"),
    ):
        pass


def test_a_log_that_is_not_whole_is_not_gone_on_with_by_another_engine(monkeypatch, tmp_path):
    def facts(version):
        return {"backend": {"name": "transformers", "versions": {"torch": version}}}

    asked = engine.Job(TASK, tmp_path, facts("2.1"), ("1+1=",), Settings(n=1), 1)
    model = run.Model("a", tmp_path, "a", "a")

    def found(*whole):
        header = SimpleNamespace(eval=SimpleNamespace(metadata=facts("2.0")))
        monkeypatch.setattr(engine, "find", lambda job: engine.Found(header, None, frozenset(whole)))

    found(("p", 1))
    run.check_log(model, asked)  # it is whole, and keeps the version that it was made with
    found()
    with pytest.raises(ValueError, match=r"backend.versions.torch is '2.1', and was '2.0'"):
        run.check_log(model, asked)
