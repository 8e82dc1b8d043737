"""The report: what the page is made of, within its bounds."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.recorded import invented_run
from support.small_runs import small_run, trajectory

from fire_opd_trl import __version__
from fire_opd_trl.evaluation.inspect import report as module
from fire_opd_trl.evaluation.inspect.report import names_of, report_of, what_it_holds


def rows_of(run: dict) -> list[tuple[int, int, bool]]:
    return [(one["step"], one["row"], one["kept"]) for one in run["trajectories"]]


def test_a_report_has_what_its_readers_expect(tmp_path):
    report = report_of([invented_run(tmp_path / "first", steps=2)])
    assert (report["title"], report["version"], report["made"][-6:]) == ("first", __version__, "+00:00")
    (run,) = report["runs"]
    assert list(run) == [
        "name", "about", "trained", "facts", "watchdogs", "unwatched", "curves", "figures", "trajectories", "left_out"
    ]  # fmt: skip
    assert run["trained"] and run["about"].startswith("What this run measured")
    assert run["name"] == "first" and len(run["watchdogs"]) == 2 and len(run["trajectories"]) == 20
    numberless = {**run, "trajectories": []}
    json.dumps(numberless, allow_nan=False)


def test_the_numbers_of_a_token_are_those_of_the_file_to_the_bit(tmp_path):
    folder = invented_run(tmp_path, steps=1)
    (run,) = report_of([folder])["runs"]
    (file,) = (folder / "rollouts").iterdir()
    for shown, row in zip(run["trajectories"], pq.read_table(file).to_pylist(), strict=True):
        assert shown["tokens"] == row["tokens"] and shown["trains"] == row["trains"]
        for name in ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "weight", "advantage"):
            np.testing.assert_array_equal(shown[name], row[name])  # NaN and infinities, too
        for name in ("prompt", "teacher", "kept", "dropped_because", "finished", "truncated", "looped", "group"):
            assert shown[name] == row[name]
        assert shown["score"] == (None if row["score"] is None else pytest.approx(row["score"], rel=1e-4))


def test_a_number_that_a_method_does_not_read_is_none(tmp_path):
    (run,) = report_of([invented_run(tmp_path, steps=1, method="opd")])["runs"]
    assert {one["teacher_entropy"] is None for one in run["trajectories"]} == {True}
    assert {one["weight"] is None for one in run["trajectories"]} == {False}


def steps_of_ten(count: int) -> dict:
    """In each step two of ten trajectories were dropped."""
    return {step: [trajectory(["a"], kept=row % 5 != 0) for row in range(10)] for step in range(1, count + 1)}


def test_a_page_shows_200_trajectories_evenly_over_the_steps(tmp_path):
    (run,) = report_of([small_run(tmp_path, steps_of_ten(50))])["runs"]
    shown = rows_of(run)
    assert len(shown) == len(set(shown)) == 200 and run["left_out"] == 300 and shown == sorted(shown)
    assert [sum(step == one for step, _, _ in shown) for one in range(1, 51)] == pytest.approx([4] * 50, abs=1)
    assert sum(not kept for _, _, kept in shown) == 40  # a fifth, as of all


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 2), (5, 4), (10, 8), (500, 400)])
def test_one_may_ask_for_more_or_fewer_and_always_sees_kept_and_dropped_ones(tmp_path, count, kept):
    (run,) = report_of([small_run(tmp_path, steps_of_ten(50))], trajectories=count)["runs"]
    assert len(run["trajectories"]) == count and sum(kept for *_, kept in rows_of(run)) == kept


def test_a_kept_one_is_shown_where_nearly_all_were_dropped(tmp_path):
    folder = small_run(tmp_path, {1: [trajectory(["a"], kept=row == 50) for row in range(100)]})
    (run,) = report_of([folder], trajectories=2)["runs"]
    assert [kept for *_, kept in rows_of(run)].count(True) == 1


def test_one_may_ask_for_steps_and_the_figures_are_over_all_records_all_the_same(tmp_path):
    folder = small_run(tmp_path, steps_of_ten(20))
    (run,) = report_of([folder], trajectories=30, steps=[(3, 3), (18, 25)])["runs"]
    shown = rows_of(run)
    assert {step for step, *_ in shown} == {3, 18, 19, 20} and len(shown) == 30 and run["left_out"] == 170
    by_type = next(one for one in run["figures"] if one["id"] == "advantage_by_type")
    assert sum(by_type["series"][0]["counts"]) == 160  # one token of each of the eight that every step keeps
    with pytest.raises(ValueError, match=r"--steps: nothing was recorded there. .* steps 1, 2, 3, 4, ..., 19, 20\.$"):
        report_of([folder], steps=[(21, 30)])


def test_very_long_trajectories_are_fewer_unless_one_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 100)
    long = [trajectory(["a"] * 20, kept=bool(row)) for row in range(10)]
    folder = small_run(tmp_path, {1: long})
    (run,) = report_of([folder])["runs"]
    assert len(run["trajectories"]) == 5 and run["left_out"] == 5  # of 20 tokens each
    assert {kept for *_, kept in rows_of(run)} == {True, False}
    (run,) = report_of([folder], trajectories=10)["runs"]
    assert len(run["trajectories"]) == 10
    monkeypatch.setattr(module, "TOKENS", 1)
    (run,) = report_of([folder])["runs"]
    assert len(run["trajectories"]) == 1


def test_two_runs_share_the_bound_and_say_how_they_differ(tmp_path):
    folders = [small_run(tmp_path / name / "run", steps_of_ten(30), about={"max_steps": 10}) for name in ("a", "b")]
    report = report_of(folders)
    assert report["title"] == "a/run and b/run"
    assert [len(run["trajectories"]) for run in report["runs"]] == [100, 100]
    few = report_of(folders, trajectories=1)
    assert [len(run["trajectories"]) for run in few["runs"]] == [1, 1]
    assert [run["facts"][0] for run in report["runs"]] == [["differs", "not known: a run.json is missing"]] * 2


def test_folders_have_the_shortest_names_that_tell_them_apart(tmp_path):
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert names_of([tmp_path, tmp_path]) == [tmp_path.name] * 2  # and never where they lie


def test_a_report_does_not_name_the_folders_of_whoever_made_it(tmp_path):
    about = {"student": {"name": f"{tmp_path}/models/student"}, "settings": {"model": f"{tmp_path}/models/student"}}
    folder = small_run(tmp_path / "run", steps_of_ten(1), about=about)
    other = small_run(tmp_path / "other", steps_of_ten(1), about={**about, "settings": {"model": f"{tmp_path}/a/b"}})
    for report in (report_of([folder, other]), report_of([folder, folder])):
        assert tmp_path.parent.name not in json.dumps(report) and "models/student" in json.dumps(report)


def test_a_look_at_a_pair_is_no_training(tmp_path):
    folder = small_run(tmp_path / "pair", steps_of_ten(1), about={"status": "inspected"})
    report = report_of([folder])
    assert not report["runs"][0]["trained"] and "Nothing was trained" in report["runs"][0]["about"]
    assert what_it_holds(report) == "10 trajectories, token by token. Open it in a browser."


def test_the_placeholders_of_an_image_are_folded(tmp_path):
    folder = small_run(tmp_path, {1: [trajectory(["a"], prompt="See <image><image><image><image>Why?")]})
    (run,) = report_of([folder])["runs"]
    assert run["trajectories"][0]["prompt"] == "See <image> (4 of these) Why?"


def test_a_line_says_what_the_page_holds(tmp_path):
    logs = [{"step": step, "loss": 0.5} for step in range(1, 51)]
    report = report_of([small_run(tmp_path / "large", steps_of_ten(50), logs)])
    assert what_it_holds(report) == (
        "200 trajectories of the 500 that were recorded, token by token, and no warning of the watchdogs. Open it in "
        "a browser."
    )
    assert "20 trajectories, token by token, and 2 warnings" in what_it_holds(
        report_of([invented_run(tmp_path / "b", steps=2)])
    )
    unwatched = report_of([small_run(tmp_path / "pair", {0: [trajectory(["a"])]}, about={"asked": {}})])
    assert what_it_holds(unwatched) == "1 trajectory, token by token. Open it in a browser."
    nothing = what_it_holds(report_of([small_run(tmp_path / "none", {})]))
    assert nothing.startswith("1 curve, and no trajectories. log_rollouts=16 in the settings")
