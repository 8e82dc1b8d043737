"""The figures, against numbers that were computed by hand."""

import json

import numpy as np
import pytest
from support.recorded import invented_run
from support.small_runs import small_run, trajectory

from fire_opd_trl.evaluation.inspect import figures
from fire_opd_trl.evaluation.inspect.figures import CELLS, figures_of, plain
from fire_opd_trl.evaluation.inspect.run import read_run
from fire_opd_trl.stages.reweight import SMALLEST_MAX


def figure(folder, id, score=""):
    (found,) = [one for one in figures_of(read_run(folder).records, score) if one["id"] == id]
    return found


def of_steps(tmp_path, steps, id, score=""):
    return figure(small_run(tmp_path, steps), id, score)


# Scores


def scored(*scores, threshold=-1.0):
    return [trajectory(["a"], kept=score > threshold, score=score, threshold=threshold) for score in scores]


def test_the_scores_of_one_step_have_the_step_s_cut(tmp_path):
    found = of_steps(tmp_path, {5: scored(-3.0, -1.0, 0.0, 1.0)}, "scores", "mean_teacher_logp")
    assert found["x"] == "teacher's mean log-probability, nats a token" and found["y"] == "trajectories"
    assert found["marks"] == [{"x": -1.0, "label": "cut"}]
    # The cut is an edge, and no bin has both: dropped are -3 and the cut itself, kept are 0 and 1.
    edges, (kept, dropped) = found["edges"], found["series"]
    assert (kept["name"], dropped["name"]) == ("kept", "dropped") and len(edges) == len(kept["values"]) + 1
    cut = edges.index(-1.0)
    for value, counts in ((-3.0, dropped), (-1.0, dropped), (0.0, kept), (1.0, kept)):
        bin = next(b for b in range(len(edges) - 1) if edges[b] < value <= edges[b + 1] + 1e-9)
        assert counts["values"][bin] == 1, value
    assert sum(dropped["values"][:cut]) == sum(kept["values"][cut:]) == 2
    assert sum(dropped["values"]) == sum(kept["values"]) == 2


def test_scores_of_several_steps_are_less_the_cut_of_their_step(tmp_path):
    steps = {1: scored(-3.0, -2.0, threshold=-3.0), 2: scored(-1.0, 1.0), 3: scored(-9.0, threshold=-99.0)}
    steps[3][0]["threshold"] = None
    found = of_steps(tmp_path, steps, "scores")
    assert found["x"] == "score, less the cut of its step" and found["marks"] == [{"x": 0.0, "label": "cut"}]
    # 0 and 1 in the first step, 0 and 2 in the second one: dropped are both zeros, left of the cut.
    cut, (kept, dropped) = found["edges"].index(0.0), found["series"]
    assert dropped["values"][cut - 1] == sum(dropped["values"]) == 2
    assert sum(kept["values"][cut:]) == sum(kept["values"]) == 2
    assert "Left out: 1 of steps without a cut." in found["note"]


def test_scores_without_a_cut_or_without_scores_say_so(tmp_path):
    uncut = [trajectory(["a"], score=-0.5, threshold=None), trajectory(["a"], score=None, threshold=None)]
    found = of_steps(tmp_path / "uncut", {1: uncut}, "scores")
    assert found["marks"] == [] and found["note"].startswith("Nothing was dropped by score: there is no cut.")
    assert "Left out: 1 without a score, " in found["note"]
    none = of_steps(tmp_path / "none", {1: uncut[1:]}, "scores")
    assert none["kind"] == "none" and none["note"] == "This method ranks no trajectories: there are no scores."
    apart = [*scored(-3.0, 0.0), trajectory(["a"], score=-2.0)]
    assert "each teacher's answers apart" in of_steps(tmp_path / "apart", {1: apart}, "scores")["note"]


# Weights


def weighed(tokens, weights, **others):
    return trajectory(tokens, weight=weights, **others)


def test_the_weights_are_those_of_trained_tokens_of_kept_trajectories(tmp_path):
    rows = [
        weighed(["a", "b", "c"], [0.0, 2.0, 9.0], trains=[True, True, False]),
        weighed(["a"], [9.0], kept=False),
    ]
    found = of_steps(tmp_path, {1: rows}, "weights")
    # 40 bins over [0, 2].
    assert found["edges"][0] == 0.0 and found["edges"][-1] == 2.0 and sum(found["series"][0]["values"]) == 2
    assert found["series"][0]["values"][0] == found["series"][0]["values"][-1] == 1
    assert found["note"].startswith("The tenth of the tokens with the largest weights has 100% of all weight.")


def test_weight_over_the_course_of_an_answer_is_in_tenths_of_its_length(tmp_path):
    # Twenty tokens: two in each tenth. Two tokens: their middles lie at 25 and 75 %, in the third and eighth tenth.
    rows = [weighed(["a"] * 20, [float(n) for n in range(20)]), weighed(["a", "b"], [1.0, 3.0])]
    found = of_steps(tmp_path, {1: rows}, "weight_by_position")
    assert found["x_values"] == [5.0, 15.0, 25.0, 35.0, 45.0, 55.0, 65.0, 75.0, 85.0, 95.0]
    by_name = {series["name"]: series for series in found["series"]}
    assert by_name["mean"]["counts"] == [2, 2, 3, 2, 2, 2, 2, 3, 2, 2]
    assert by_name["mean"]["values"][:2] == [0.5, 2.5]  # of 0 and 1, and of 2 and 3
    # In the third tenth 4, 5 and 1: mean 10 / 3, median 4, quartiles half way to the neighbours.
    assert [by_name[name]["values"][2] for name in by_name] == [3.33333, 4.0, 2.5, 4.5]
    assert list(by_name) == ["mean", "median", "lower quartile", "upper quartile"]


def test_weight_by_place_counts_from_the_beginning_and_bins_long_answers(tmp_path):
    rows = [weighed(["a", "b", "c"], [0.0, 1.0, 2.0]), weighed(["a"], [4.0])]
    found = of_steps(tmp_path / "short", {1: rows}, "weight_by_place")
    assert found["x_values"] == [1.0, 2.0, 3.0]
    assert found["series"][0]["values"] == [2.0, 1.0, 2.0] and found["series"][0]["counts"] == [2, 1, 1]

    long = weighed(["a"] * 130, [1.0] * 65 + [0.0] * 65)  # 130 places in at most 60 bins: three in each
    found = of_steps(tmp_path / "long", {1: [long]}, "weight_by_place")
    assert found["x_values"][:2] == [2.0, 5.0] and found["series"][0]["counts"][-2:] == [3, 1]
    assert len(found["x_values"]) == 44 and "Each point stands for 3 places." in found["note"]


def test_weight_by_type_is_the_mean_over_all_records_with_counts(tmp_path):
    rows = [weighed([" so", " 1", " 2"], [3.0, 0.5, 1.0]), weighed([" wait", " 3"], [2.0, 0.0])]
    found = of_steps(tmp_path, {1: rows, 2: rows[:1]}, "weight_by_type")
    assert found["labels"] == ["connective or decision word", "number"]
    # Connectives 3, 2 and 3; numbers 0.5, 1, 0, 0.5 and 1.
    assert found["series"] == [{"name": "mean weight", "values": [2.66667, 0.6], "counts": [3, 5]}]


def test_the_heaviest_tokens_are_those_that_occur_often_enough(tmp_path):
    rows = [weighed([" so", " a", " rare"], [2.0, 1.0, 9.0]), weighed([" so", " a"], [1.0, 0.5])]
    found = of_steps(tmp_path / "often", {1: [*rows, *rows, rows[1]], 2: [*rows, *rows, rows[1]]}, "heaviest_tokens")
    # " so" ten times with 2, 1, 2, 1 and 1, twice; " a" with 1, 0.5, 1, 0.5 and 0.5, twice; " rare" four times.
    assert found["labels"] == ["␣so", "␣a"]
    assert found["series"] == [{"name": "mean weight", "values": [1.4, 0.7], "counts": [10, 10]}]
    assert of_steps(tmp_path / "rare", {1: rows}, "heaviest_tokens")["kind"] == "none"


def test_the_training_signal_of_a_type_is_its_share_of_all_advantage(tmp_path):
    row = trajectory([" so", " 1", " 2", " 3"], advantage=[-3.0, 0.5, 0.5, 0.0])
    found = of_steps(tmp_path, {1: [row]}, "advantage_by_type")
    assert found["labels"] == ["connective or decision word", "number"]
    assert [series["values"] for series in found["series"]] == [[0.25, 0.75], [0.75, 0.25]]
    assert found["series"][0]["counts"] == [1, 3]
    nothing = of_steps(tmp_path / "none", {1: [trajectory(["a"], advantage=[0.0])]}, "advantage_by_type")
    assert nothing["kind"] == "none"


def test_the_density_is_relative_to_the_largest_entropies_of_a_step_s_survivors(tmp_path):
    first = [
        trajectory(["a", "b"], teacher_entropy=[0.0, 2.0], student_entropy=[4.0, 1.0]),
        trajectory(["c"], kept=False, teacher_entropy=[99.0], student_entropy=[99.0]),
    ]
    second = [trajectory(["d"], teacher_entropy=[0.5], student_entropy=[0.0])]
    found = of_steps(tmp_path, {1: first, 2: second}, "density")
    counts = np.array(found["counts"])  # [confusion, confidence]
    expected = np.zeros((CELLS, CELLS), int)
    expected[-1, -1] = 1  # "a": confidence 1 - 0/2, confusion 4/4
    expected[CELLS // 4, 0] = 1  # "b": confidence 1 - 2/2, confusion 1/4
    expected[0, 0] = 1  # "d": confidence 1 - 0.5/0.5, confusion 0, since there is none in its step
    np.testing.assert_array_equal(counts, expected)
    assert len(found["x_edges"]) == len(found["y_edges"]) == CELLS + 1


def test_the_least_maximum_is_that_of_the_mathematics():
    assert figures.SMALLEST_MAX == SMALLEST_MAX


# All of them


def test_a_method_without_weights_says_so(tmp_path):
    found = {one["id"]: one for one in figures_of(read_run(invented_run(tmp_path, method="opd", steps=1)).records)}
    assert found["density"]["note"] == "Nothing to show: this method does not read both entropies."
    small = small_run(tmp_path / "opd", {1: [trajectory([" so", "."])]})
    for id in ("weights", "weight_by_position", "weight_by_place", "weight_by_type", "heaviest_tokens"):
        one = figure(small, id)
        assert one["kind"] == "none" and one["note"] == "Every token has the weight 1: this method does not reweight."
        assert set(one) == {"id", "title", "note", "kind"}


@pytest.mark.parametrize("method", ["fire", "opd"])
def test_all_figures_are_plain_json_and_explained(tmp_path, method):
    found = figures_of(read_run(invented_run(tmp_path, method=method)).records, "mean_teacher_logp")
    json.dumps(found, allow_nan=False)
    assert [one["id"] for one in found] == [
        "scores", "weights", "weight_by_position", "weight_by_place", "weight_by_type", "heaviest_tokens",
        "advantage_by_type", "density",
    ]  # fmt: skip
    for one in found:
        assert (
            one["title"]
            and one["note"].endswith(".")
            and one["kind"] in ("histogram", "line", "bars", "density", "none")
        )


def test_nothing_recorded_or_nothing_kept_has_no_figures_of_tokens(tmp_path):
    assert figures_of(read_run(small_run(tmp_path / "none", {})).records) == []
    dropped = small_run(tmp_path / "dropped", {1: [trajectory(["a"], kept=False)]})
    kinds = {one["id"]: one["kind"] for one in figures_of(read_run(dropped).records)}
    assert kinds.pop("scores") == "histogram" and set(kinds.values()) == {"none"}
    empty = small_run(tmp_path / "empty", {1: [trajectory([], kept=False, score=None)]})
    assert {one["kind"] for one in figures_of(read_run(empty).records)} == {"none"}


def test_a_survivor_s_number_that_is_not_finite_spoils_no_figure(tmp_path):
    row = weighed([" so", " 1"], [2.0, float("nan")])
    assert of_steps(tmp_path, {1: [row]}, "weight_by_type")["series"][0]["values"] == [2.0]


def test_plain_numbers_keep_their_first_digits_and_json_can_have_them():
    assert plain([0.0, 1 / 3, -12345.678, 1e-9 / 3, np.inf, np.nan]) == [
        0.0,
        0.333333,
        -12345.7,
        3.33333e-10,
        None,
        None,
    ]
    assert plain([1e300, 1e-300, 5e-324]) == pytest.approx([1e300, 1e-300, 5e-324], rel=1e-12, abs=0)
