"""The learning curves: which there are, in which order, and their points."""

import math

from support.recorded import invented_run

from fire_opd_trl.evaluation.inspect.curves import CURVES, curves_of
from fire_opd_trl.evaluation.inspect.run import read_run


def test_a_curve_has_a_point_for_each_log_that_has_its_metric():
    logs = [
        {"step": 10, "loss": 0.5, "fire/reverse_kl": math.nan, "new": 1.0},
        {"step": 10, "eval_loss": 0.4},
        {"step": 20, "loss": 0.25, "fire/reverse_kl": 0.125},
        {"step": 20, "train_runtime": 3.0, "train_loss": 0.4},
    ]
    loss, kl, evaluated = curves_of(logs)
    assert (loss["key"], loss["steps"], loss["values"]) == ("loss", [10, 20], [0.5, 0.25])
    assert (kl["key"], kl["steps"], kl["values"]) == ("fire/reverse_kl", [10, 20], [None, 0.125])
    assert kl["title"] == "Reverse KL" and kl["unit"] == "nats" and kl["help"].endswith("It should fall.")
    assert (evaluated["key"], evaluated["title"]) == ("eval_loss", "Loss, evaluation")
    assert curves_of([]) == curves_of([{"step": 1, "loss": math.inf}]) == curves_of([{"step": 1, "loss": "0.5"}]) == []


def test_a_share_is_shown_as_percent():
    (kept,) = curves_of([{"step": 1, "fire/keep_ratio": 0.75}, {"step": 2, "fire/keep_ratio": math.nan}])
    assert kept["unit"] == "%" and kept["values"] == [75.0, None]


def test_what_to_watch_first_comes_first_and_every_curve_of_a_run_is_explained(tmp_path):
    curves = curves_of(read_run(invented_run(tmp_path)).logs)
    keys = [curve["key"] for curve in curves]
    assert keys[:4] == ["loss", "fire/reverse_kl", "reward", "completions/mean_length"]
    assert keys == [curve.key for curve in CURVES if curve.key in keys] and len(keys) == 26
    for curve in CURVES:
        assert curve.title and curve.help.endswith(".") and len(curve.title) <= 30 and len(curve.help) < 120
    assert len({curve.key for curve in CURVES}) == len({curve.title for curve in CURVES}) == len(CURVES)


def test_evaluations_and_teachers_have_curves_of_their_own():
    log = {
        "step": 1,
        "eval_math_loss": 1.0,
        "eval_math_completions/mean_length": 2.0,
        "eval_fire/reverse_kl": 3.0,
        "eval_fire/keep_ratio": 4.0,
        "fire/code/reverse_kl": 5.0,
        "fire/code/rows": 6.0,
    }
    assert {curve["key"]: curve["title"] for curve in curves_of([log], ["math", "code"])} == {
        "eval_math_loss": "Loss, evaluation on math",
        "eval_fire/reverse_kl": "Reverse KL, evaluation",
        "eval_math_completions/mean_length": "Length, evaluation on math",
        "fire/code/reverse_kl": "Reverse KL, teacher code",
    }
