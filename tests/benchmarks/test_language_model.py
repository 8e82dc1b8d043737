"""What docs/language_model says of a run: means and intervals by hand, on tokens that are known; its page."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from support.recorded import invented_run

import fire_opd_trl
from benchmarks.language_model import findings as found
from benchmarks.language_model.costs import PARTS, costs, timed
from benchmarks.language_model.main import finished, task_of
from benchmarks.language_model.sick import COMMON, SICK, to_be_repeated
from benchmarks.language_model.tables import TABLES, filled_in
from fire_opd_trl.evaluation.inspect.run import Records, read_run
from fire_opd_trl.rollouts.records import NUMBERS
from fire_opd_trl.stages.watchdogs import WATCHDOGS


PAGE = Path(fire_opd_trl.__file__).parents[1] / "docs" / "language_model"


def records(rows: list[list[str]], **numbers) -> Records:
    """Kept answers of one window, by their tokens and what is known of them."""
    texts = [text for row in rows for text in row]
    vocabulary = list(dict.fromkeys(texts))
    row = {
        "step": 1, "kept": True, "dropped_because": None, "finished": True, "truncated": False, "looped": False,
        "reward": 1.0, "prompt": "arithmetic problem",
    }  # fmt: skip
    values = {name: np.array(numbers.get(name, np.zeros(len(texts))), dtype=np.float32) for name in NUMBERS}
    return Records(
        rows=[dict(row) for _ in rows],
        starts=np.cumsum([0, *map(len, rows)]),
        vocabulary=vocabulary,
        tokens=np.array([vocabulary.index(text) for text in texts]),
        trains=np.ones(len(texts), dtype=bool),
        numbers=values,
    )


def test_an_interval_counts_answers_and_not_tokens():
    # Two answers whose tokens are all alike, 1 and 3: n = 4, mean 2, sums of residuals -2 and +2, so that
    # se = sqrt(2 / 1 * (4 + 4)) / 4 = 1, and t(1) = 12.706.
    mean, low, high = found.clustered_mean(np.array([1.0, 1.0, 3.0, 3.0]), np.array([7, 7, 9, 9]))
    assert (mean, low, high) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-3)
    # With a token an answer it is the usual standard error of a mean: sd 2 / sqrt 4 ... sd = 1.1547, se = 0.57735.
    mean, low, _ = found.clustered_mean(np.array([1.0, 1.0, 3.0, 3.0]), np.arange(4))
    assert mean - low == pytest.approx(3.18245 * 0.57735, abs=1e-4)
    assert found.clustered_mean(np.array([1.0, 2.0]), np.array([0, 0])) == [1.5, None, None]


def test_a_share_has_wilsons_interval():
    # 8 of 10 (Agresti and Coull 1998 give it for z = 1.96): 0.490 to 0.943.
    assert found.wilson(8, 10) == pytest.approx([0.8, 0.4902, 0.9433], abs=1e-4)
    assert found.wilson(0, 10)[1] == pytest.approx(0.0, abs=1e-12)


def test_the_top_tenth_is_taken_in_each_window_apart():
    values, step = np.concatenate([np.arange(20.0), 100 + np.arange(10.0)]), np.array([1] * 20 + [2] * 10)
    assert np.flatnonzero(found.in_top_tenth(values, step)).tolist() == [18, 19, 29]  # a tenth of 20, and of 10
    assert np.flatnonzero(found.in_top_tenth(np.ones(10), np.ones(10))).tolist() == [0]


def test_a_sentence_starts_at_the_first_word_after_its_end():
    texts = [["First", ",", " 4", ".", " So", " 3", ".", "5", "\n", "####", " 7"], ["Then", " it", ".\n", "\n", "x"]]
    starts = found.starts_of_sentences(records(texts))
    # `5` after `3.` is taken for a start: the text of one token does not say that a number goes on.
    expected = ["First", " So", "5", "Then", "x"]
    assert [text for text, start in zip(sum(texts, []), starts, strict=True) if start] == expected


def test_the_factors_of_a_weight_are_told_apart():
    """
    Two answers of three tokens. Where the teacher is equally sure of all, confusion makes all of the weight; where the
    student is equally confused everywhere, confidence does.
    """
    student, teacher = np.array([0.0, 1, 2, 0, 2, 1]), np.array([2.0, 0, 1, 1, 0, 2])

    def run(student, teacher):
        c, u = 1 - teacher / max(teacher.max(), 1e-6), student / max(student.max(), 1e-6)
        raw = ((1 + c) * (1 + u)).reshape(2, 3)
        weight = (raw / raw.mean(axis=1, keepdims=True)).ravel()
        some = records([["a", "b", "c"]] * 2, student_entropy=student, teacher_entropy=teacher, weight=weight)
        return found.factors(found.Weighed(some))

    assert run(student, np.zeros(6))["variance from confusion"] == pytest.approx(1)
    assert run(np.ones(6), teacher)["variance from confidence"] == pytest.approx(1)
    both = run(student, teacher)
    assert both["variance from confusion"] + both["variance from confidence"] == pytest.approx(1)
    assert both["largest difference to the recorded weight"] < 1e-6  # it is computed by the equation of the paper
    # c = 0, 1, 1/2, 1/2, 1, 0 and u = 0, 1/2, 1, 0, 1, 1/2: covariance 1/12, variances 1/6 and 1/6.
    assert both["correlation of both"] == pytest.approx(0.5)


def test_a_recorded_run_has_findings_with_their_counts(tmp_path):
    run = read_run(invented_run(tmp_path, steps=3, rows=20, tokens=40))
    result = json.loads(json.dumps(found.findings(run.records, lambda prompt: "task")))
    trained = result["counts"]["trained tokens"]
    assert sum(one["tokens"] for one in result["types"].values()) == trained
    assert sum(one["of heavy"] for one in result["types"].values()) == pytest.approx(1)
    assert sum(one["tokens"] for one in result["sentence_starts"].values()) == 2 * trained  # whole, and in parts
    assert sum(one["tokens"] for one in result["places"]) == trained
    assert all(one["tokens"] >= found.FREQUENT for one in result["tokens"])
    kept = result["filter"]
    assert (
        kept["all"]["answers"] == kept["task"]["answers"] == kept["finished"]["answers"] + kept["truncated"]["answers"]
    )


def test_each_watchdog_that_a_sick_run_is_for_exists():
    assert {dog for sick in SICK.values() for dog in sick.expected} <= set(WATCHDOGS)
    assert {"truncated", "loops_kept", "entropy_collapse", "end_tokens"} <= {
        dog for sick in SICK.values() for dog in sick.expected
    }
    prompts = to_be_repeated(Dataset.from_list([{"prompt": [{"role": "user", "content": "1 + 1"}]}] * 4))["prompt"]
    assert [chat[0]["content"].startswith("Write the word") for chat in prompts] == [False, True, False, True]
    assert COMMON["save_strategy"] == "no"


def test_costs_are_those_of_the_steps_that_were_timed():
    owner, name = PARTS["records"][0]
    with timed() as seconds:
        assert getattr(owner, name).__name__ == name
        seconds["records"] += [0.5, 0.5]
        seconds["metrics of the window"] += [0.1, 0.1, 0.1, 0.1]  # two functions a step
    assert not hasattr(getattr(owner, name), "__wrapped__")  # it is put back
    logs = [{"step_time": 99.0}, {"step_time": 4.0}, {"step_time": 6.0}, {"train_runtime": 1.0}]
    result = costs(seconds, logs)  # of the last two steps, of 5 seconds
    assert result["parts"]["records"] == {"seconds": 0.5, "share": pytest.approx(0.1)}
    assert result["parts"]["metrics of the window"]["share"] == pytest.approx(0.04) and result["steps"] == 2


def test_the_tables_of_the_page_are_those_of_its_results():
    page, results = (PAGE / "README.md").read_text(), json.loads((PAGE / "results.json").read_text())
    assert filled_in(page, results) == page
    assert all(f"<!-- table: {name}" in page for name in TABLES)
    assert all(
        math.isclose(sum(one["of all"] for one in run["types"].values()), 1) for run in results["runs"].values()
    )


def test_a_run_counts_when_it_has_finished(tmp_path):
    assert not finished(tmp_path)
    for status, expected in (("running", False), ("finished", True)):
        (tmp_path / "run.json").write_text(json.dumps({"status": status}))
        assert finished(tmp_path) is expected
    assert task_of("State the final answer to the following arithmetic problem: 1 + 1 =") == "chain_sum"
    assert task_of("Tom has 5 apples.") == "gsm_symbolic"
