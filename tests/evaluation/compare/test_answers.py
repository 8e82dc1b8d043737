"""What the filter dropped, and differences over problems, with numbers that can be counted by hand."""

import pytest
from support.runs import invented

from fire_opd_trl.evaluation.compare import runs
from fire_opd_trl.evaluation.compare.answers import over_problems, what_filters_dropped
from fire_opd_trl.evaluation.compare.presets import ARMS
from fire_opd_trl.evaluation.compare.report import write_report


SETTINGS = runs.shared_settings(2, 3, 3, 1, "real")


def window(**changes):
    same = {name: None for name in ("accuracy", "reverse_kl", "kept_token_ratio", "advantage_abs", "entropy", "loss")}
    return {"step": 1, **same, "response_length": 40.0, "looped": 0.0, "keep_ratio_looped": None, **changes}


# Of two windows of 16: 4 and 12 truncated, of which 1 and 6 are kept; 12 and 4 finished, all kept. Two looped ones in
# the second window, of which one is kept.
WINDOWS = [
    window(truncated=4 / 16, keep_ratio=13 / 16, keep_ratio_finished=1.0, keep_ratio_truncated=1 / 4),
    window(
        truncated=12 / 16,
        keep_ratio=10 / 16,
        keep_ratio_finished=1.0,
        keep_ratio_truncated=6 / 12,
        looped=2 / 16,
        keep_ratio_looped=1 / 2,
    ),
]


def run(name: str, seed: int, right: list[int], history: list[dict]) -> dict:
    measured = {"samples": 8, "right": right, "truncated": 0.25, "no_answer": 0.5, "tokens": 40.0}
    after = sum(right) / 8 / len(right)
    return invented(name, seed, after, settings=SETTINGS, history=history, measured=measured)


def all_runs():
    unfiltered = [window(truncated=0.5, keep_ratio=1.0, keep_ratio_finished=1.0, keep_ratio_truncated=1.0)]
    return [
        *(run("opd", seed, [8, 4, 0], unfiltered) for seed in (0, 1)),
        *(run("fire", seed, [8, 4 + 2 * seed, 2], WINDOWS) for seed in (0, 1)),
        run("random", 0, [8, 4, 0], WINDOWS[:1]),
    ]


def test_the_filter_is_counted_over_windows_by_how_answers_ended():
    found = what_filters_dropped(all_runs(), [ARMS["opd"], ARMS["fire"]])
    assert [row.arm for row in found] == ["fire"]  # opd drops nothing
    assert found[0].share == pytest.approx({"finished": 0.5, "truncated": 0.5, "looped": 1 / 16})
    assert found[0].dropped == pytest.approx({"finished": 0.0, "truncated": 1 - 7 / 16, "looped": 0.5})


def test_no_answer_of_a_kind_is_no_share_of_it():
    never = [window(truncated=0.0, keep_ratio=0.8, keep_ratio_finished=0.8, keep_ratio_truncated=None)]
    (row,) = what_filters_dropped([run("fire", 0, [0, 0, 0], never)], [ARMS["fire"]])
    assert row.dropped == {"finished": pytest.approx(0.2), "truncated": None, "looped": None}


def test_differences_over_problems_are_paired_by_seed_and_by_problem():
    found = {(one.first, one.second): one for one in over_problems(all_runs(), [ARMS["opd"], ARMS["fire"]])}
    assert set(found) == {("fire", "opd"), ("fire", "random")}
    # Over two seeds: 0, (0 + 2) / 2 / 8 and 2 / 8; to `random`, which has one seed: 0, 0 and 2 / 8.
    assert found["fire", "opd"].difference == pytest.approx((0 + 1 / 8 + 2 / 8) / 3)
    assert found["fire", "random"].difference == pytest.approx(2 / 8 / 3)
    for one in found.values():
        assert one.interval[0] < one.difference < one.interval[1]


def test_the_report_of_a_real_model_says_what_its_numbers_are(tmp_path):
    arms = [ARMS["opd"], ARMS["fire"], ARMS["random"]]
    write_report(all_runs(), arms, tmp_path, "Real", expected=5)
    text = (tmp_path / "report.md").read_text()
    assert "Avg@8" in text and "tiny models" not in text
    assert "| `fire` | 50% | 0% | 50% | 56% | 6% | 50% |" in text
    assert "| `fire` | `opd` | +12.5 [" in text
    assert "| `opd` | 25% | 50% | 40.0 |" in text
