"""Watchdogs on invented runs: what each of them sees, what noise looks like, and how often it says so."""

import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from fire_opd_trl.stages.watchdogs import AGAIN, FEWEST, RECENT, WATCHDOGS, Alarm, Past, Watchdogs, examine, kept_loops


WELL = {  # a window in health
    "fire/rows": 16.0,
    "fire/empty": 0.0,
    "fire/nonfinite_teacher": 0.0,
    "fire/kept_rows": 13.0,
    "fire/keep_ratio": 0.8,
    "fire/kept_token_ratio": 0.8,
    "fire/active_token_ratio": 0.8,
    "fire/keep_ratio_finished": 0.85,
    "fire/weight_ess": 0.9,
    "fire/reverse_kl": 0.1,
    "fire/terminal_gap": -0.5,
    "fire/looped_ratio": 0.0,
    "entropy": 0.3,
    "completions/clipped_ratio": 0.125,
    "completions/mean_length": 100.0,
    "completions/mean_terminated_length": 80.0,
}
HALF = (0.9, 1.1)  # two windows in turn, 10 % around their mean


def windows(count: int, first: int = 1, **changes) -> list[dict]:
    """Windows in health but for some metrics, whose values take turns."""
    named = {name.replace("__", "/"): values for name, values in changes.items()}
    turns = {name: values if isinstance(values, tuple) else (values,) for name, values in named.items()}
    return [
        {**WELL, **{name: values[step % len(values)] for name, values in turns.items()}, "step": step}
        for step in range(first, first + count)
    ]


def alarms(*parts: list[dict], **limits) -> list[tuple[str, int]]:
    return [(alarm.watchdog, alarm.step) for alarm in examine([w for part in parts for w in part], limits)]


def test_a_run_in_health_is_left_alone():
    assert alarms(windows(1000)) == []


# What each sees, and when


def around(value: float) -> tuple[float, float]:
    return 1.1 * value, 0.9 * value  # the odd steps are lower, so that no mean of windows from the first one on falls


# Where a mean over the last 20 windows moves from `a` to `b`, after n windows of b it is a + (b - a) n / 20, and the
# spread of these two values is up to (b - a) / 2: it is beyond a limit by 4 errors some windows after it is beyond it.
SICK = {
    "truncated": ([windows(FEWEST, completions__clipped_ratio=around(0.5))], FEWEST),
    "length_collapse": (
        [windows(30), windows(30, 31, completions__mean_terminated_length=around(8))],
        None,  # 10 % of the length: below a third, by 4 errors, when nearly all 20 windows are short
    ),
    "length_inflation": (
        [windows(30), windows(30, 31, completions__mean_length=around(200), completions__clipped_ratio=around(0.25))],
        None,
    ),
    "loops_kept": (
        [windows(30, fire__looped_ratio=0.25, fire__keep_ratio_looped=(1.0, 0.75), fire__keep_ratio_finished=0.6)],
        26,  # 4 of 16 rows in 26 windows are 104; 7/8 - 0.6 = 0.275 > 0.05 + 4 * 0.054
    ),
    "weights": ([windows(FEWEST, fire__weight_ess=around(0.1))], FEWEST),
    "kl_rising": ([windows(40), windows(30, 41, fire__reverse_kl=around(0.3))], None),
    "entropy_collapse": ([windows(30), windows(30, 31, entropy=around(0.01))], None),
    "end_tokens": ([windows(RECENT, fire__terminal_gap=(-9.0, -11.0))], RECENT),
}


@pytest.mark.parametrize("name", WATCHDOGS)
def test_each_sees_its_sickness_and_no_other(name):
    parts, step = SICK[name]
    seen = alarms(*parts)
    assert [dog for dog, _ in seen] == [name]
    began = 30 if len(parts) > 1 else 0
    assert seen[0][1] == step if step else began + 4 < seen[0][1] <= began + RECENT + 12


@pytest.mark.parametrize("name", WATCHDOGS)
def test_what_it_says_has_the_numbers_and_the_remedy(name):
    (alarm,) = examine([w for part in SICK[name][0] for w in part])
    assert alarm.watchdog == name and alarm.limit == WATCHDOGS[name].limit
    assert json.loads(json.dumps(asdict(alarm))) == asdict(alarm)
    assert set(asdict(alarm)) == {"step", "watchdog", "metric", "value", "limit", "says", "remedy"}
    assert any(character.isdigit() for character in alarm.says) and "{" not in alarm.says + alarm.remedy
    assert alarm.says.endswith(".") and alarm.remedy.endswith(".") and len(alarm.says) < 250
    assert alarm.metric in {name.replace("__", "/") for name in WELL} | {"fire/keep_ratio_looped"}


def test_a_run_that_falls_ill_with_its_first_update_is_seen_by_its_first_window():
    for name, metric, well, ill in (
        ("kl_rising", "fire__reverse_kl", 0.1, 3.0),
        ("length_collapse", "completions__mean_terminated_length", 80.0, 2.0),
        ("entropy_collapse", "entropy", 0.3, 0.002),
    ):
        assert [dog for dog, _ in alarms(windows(1, **{metric: well}), windows(30, 2, **{metric: around(ill)}))] == [
            name
        ]


def test_a_first_window_that_was_low_by_chance_is_no_beginning_to_rise_from():
    # Windows of few tokens spread by two thirds of their mean: it begins at a sixth of that.
    lucky = windows(1, fire__reverse_kl=0.02)
    assert alarms(lucky, windows(60, 2, fire__reverse_kl=(0.05, 0.21))) == []


# What is no sickness


@pytest.mark.parametrize("low, then, fires", [(0.02, 0.22, True), (0.02, 0.04, False), (0.25, 0.4, False)])
def test_a_kl_that_has_fallen_far_is_measured_by_where_it_fell_to(low, then, fires):
    """From 0.5: to 0.22 by 0.2 / sqrt(0.5 x 0.02) = 2.0; to 0.04 by 0.2; other prompts, 0.25 to 0.4, by 0.42."""
    kl = {"begun": 0.5, "low": low, "then": then}
    parts = [
        windows(40, first, fire__reverse_kl=around(kl[part]))
        for part, first in (("begun", 1), ("low", 41), ("then", 81))
    ]
    assert [name for name, _ in alarms(*parts)] == ["kl_rising"] * fires


def test_a_student_that_learns_to_end_gets_shorter_in_health():
    rambling = windows(20, completions__clipped_ratio=0.25, completions__mean_length=(400.0, 500.0))
    assert alarms(rambling, windows(60, 21, completions__clipped_ratio=0.0, completions__mean_length=80.0)) == []


def test_a_student_that_learns_to_think_gets_longer_in_health():
    assert alarms(windows(20), windows(60, 21, completions__mean_length=(900.0, 1000.0))) == []


def test_a_student_that_becomes_as_sure_as_its_teacher_is_no_collapse():
    sure = {"entropy": (0.009, 0.011)}  # 20 such windows after the first 20
    assert alarms(windows(20), windows(60, 21, **sure)) == [("entropy_collapse", 40)]
    assert alarms(windows(20), windows(60, 21, **sure, fire__teacher_entropy=0.02)) == []


def test_a_method_that_takes_few_tokens_and_weighs_them_evenly_is_no_concentration():
    # of the survivors' tokens (0.8 of all) a tenth has a weight: ess 0.1, and 0.1 * 0.8 / 0.08 = 1
    assert alarms(windows(60, fire__weight_ess=0.1, fire__active_token_ratio=0.08)) == []


def test_weights_that_are_all_zero_say_nothing():
    assert alarms(windows(60, fire__weight_ess=0.0)) == []


def test_an_estimate_of_the_kl_below_zero_does_not_rise():
    assert alarms(windows(40, fire__reverse_kl=around(-0.5)), windows(40, 41, fire__reverse_kl=around(-0.2))) == []


def test_windows_without_survivors_count_for_answers_alone():
    empty = {**WELL, "fire/kept_rows": 0.0, "entropy": 0.0, "fire/reverse_kl": 0.0, "completions/clipped_ratio": 1.0}
    assert alarms([{**empty, "step": step} for step in range(1, 60)]) == [("truncated", FEWEST)]


def test_what_is_no_number_is_passed_over():
    broken = {"fire/reverse_kl": math.nan, "entropy": None, "completions/clipped_ratio": "x", "fire/rows": True}
    assert alarms([{**WELL, **broken, "step": step} for step in range(1, 60)]) == []
    assert examine([{"step": 1, "train_runtime": 1.0}, {"step": 1, "eval_loss": 1.0}]) == []


def test_a_student_that_is_learning_to_end_is_not_told_that_it_does_not():
    """As SmolLM2, which begins with most of its answers cut, and with a gap of 5 to 14 nats."""

    def falling(cut: float, gap: float) -> list[dict]:
        shares = {step: math.exp(-step / 15) for step in range(1, 61)}
        return [
            {**WELL, "step": n, "completions/clipped_ratio": cut + 0.7 * e, "fire/terminal_gap": -gap - 13 * e}
            for n, e in shares.items()
        ]

    assert alarms(falling(0.1, 1.0)) == []
    stuck = falling(0.4, 4.0) + windows(
        30, 61, completions__clipped_ratio=(0.4, 0.45), fire__terminal_gap=(-4.1, -4.2)
    )
    # The fall is over at 60. Its last windows are still somewhat higher: until 67, and until 80 where none is left.
    assert sorted(alarms(stuck)) == [("end_tokens", 80), ("truncated", 67)]


# The filter and loops, by counts


def filtered(cut: list[int], kept_cut: list[int], kept_finished: list[int], kind="truncated") -> Past:
    """Windows of 16 rows: how many are cut, how many of those are kept, and how many of the others."""
    past = Past()
    for n, k, f in zip(cut, kept_cut, kept_finished, strict=True):
        share = "completions/clipped_ratio" if kind == "truncated" else "fire/looped_ratio"
        ratios = {"completions/clipped_ratio": n / 16, share: n / 16}
        ratios |= {f"fire/keep_ratio_{kind}": k / n, "fire/keep_ratio_finished": f / (16 - n)}
        past.add({**WELL, **ratios, "fire/keep_ratio": (k + f) / 16})
    return past


def test_the_excess_is_counted_inside_windows_and_summed_over_them():
    # Twelve windows: 4 of 16 are cut. In half of them 4 are kept and 9 of 12 others, in half 2 and 11 of 12.
    # k - f: 1 - 9/12 = 1/4 and 1/2 - 11/12 = -5/12, in the mean -1/12, with equal weights 4 * 12 / 16 = 3.
    # Both lie 1/3 from that: error sqrt(12 * (3 / 3)^2 * 12/11) / 36.
    (sight,) = kept_loops(filtered([4] * 12, [4, 2] * 6, [9, 11] * 6))
    assert sight.number.value == pytest.approx(-1 / 12)
    assert sight.number.error == pytest.approx(math.sqrt(12 * 12 / 11) / 36)
    assert sight.facts == pytest.approx({"kept": 36 / 48, "kept_finished": 36 / 48 + 1 / 12, "rows": 48, "looped": 0})
    assert sight.metric == "fire/keep_ratio_truncated"


def test_a_single_window_says_nothing_and_many_windows_do():
    # As SmolLM2: over 24 windows of 16 rows 86 % of those that ended are kept and 67 % of those that were cut, though
    # in single windows it is 70 % and 100 %. Of 10 that end 8.6 are kept, of 6 that are cut 4.
    ended = [7, 9, 9, 9, 9, 8] * 4  # in mean 8.5
    cut = [6, 3, 4, 3, 4, 4] * 4  # in mean 4
    seen = kept_loops(filtered([6] * 24, cut, ended))
    assert seen[0].number.value == pytest.approx(4 / 6 - 8.5 / 10)  # -0.18
    assert kept_loops(filtered([6], [6], [7])) == []  # 100 % and 70 %, in one window
    (turned,) = kept_loops(filtered([6] * 24, [6, 5, 6, 6, 5, 6] * 4, [7, 8, 6, 7, 8, 7] * 4))
    assert turned.number.value - 4 * turned.number.error > 0.05


def test_few_loops_are_too_few_and_a_random_filter_likes_none():
    assert kept_loops(filtered([1] * 20, [1] * 20, [9] * 20, "looped")) == []  # 20 rows
    draw, seen = random.Random(0), []
    for _ in range(200):
        cut, kept_cut, kept_finished = [], [], []
        for _ in range(30):
            kept = draw.sample(range(16), 12)
            cut.append(4)
            kept_cut.append(sum(row < 4 for row in kept))
            kept_finished.append(12 - kept_cut[-1])
        seen.append(kept_loops(filtered(cut, kept_cut, kept_finished))[0].number)
    z = [number.value / number.error for number in seen]
    mean = sum(z) / len(z)
    # the test is honest: the mean of 200 is within 3 / sqrt(200), and their spread is about 1
    assert abs(mean) < 0.22 and 0.85 < math.sqrt(sum((one - mean) ** 2 for one in z) / 199) < 1.2
    assert max(z) < 4


def test_windows_with_one_cut_answer_that_are_all_alike_are_not_certain():
    # Thirty windows keep their only cut answer and 12 of 15 others: they differ by nothing. A filter by chance keeps
    # 13 of 16, so that k - f has the variance 13/16 * 3/16 * 16^2 / 15^2 in a window; it does this in 0.2 % of cases.
    (sight,) = kept_loops(filtered([1] * 30, [1] * 30, [12] * 30))
    assert sight.number.value == pytest.approx(0.2)
    assert sight.number.error == pytest.approx(math.sqrt(13 / 16 * 3 / 16 / 30) * 16 / 15)


def test_a_random_filter_over_few_cut_answers_gives_no_alarm():
    """8 rows, one in twenty of them cut: before the variance had its floor, a quarter of such runs gave alarm."""
    for seed in range(10):
        draw, dogs = random.Random(seed), Watchdogs(dict.fromkeys(WATCHDOGS.keys() - {"loops_kept"}))
        for step in range(600):
            cut = [draw.random() < 0.05 for _ in range(8)]
            dropped = draw.randrange(8)
            finished = 8 - sum(cut)
            window = {**WELL, "fire/rows": 8.0, "fire/keep_ratio": 7 / 8, "completions/clipped_ratio": sum(cut) / 8}
            window["fire/keep_ratio_finished"] = 1 - (not cut[dropped]) / finished if finished else 0.0
            if any(cut):
                window["fire/keep_ratio_truncated"] = 1 - cut[dropped] / sum(cut)
            assert dogs.observe(step, window) == [], seed


def test_a_window_counts_by_both_of_its_kinds():
    # Ten windows: 8 of 16 are cut, 6 of them kept and 6 of the others. Ten more: 15 are cut and kept, the last is not.
    # The excess is 0 with weight 8 * 8 / 16 = 4, and 1 with weight 15 / 16.
    (sight,) = kept_loops(filtered([8, 15] * 10, [6, 15] * 10, [6, 0] * 10))
    assert sight.number.value == pytest.approx((15 / 16) / (4 + 15 / 16))


def test_without_a_filter_nothing_is_kept_beyond_anything():
    past = Past()
    for _ in range(40):
        past.add({**WELL, "fire/keep_ratio": 1.0, "fire/keep_ratio_looped": 1.0, "fire/looped_ratio": 0.5})
    assert kept_loops(past) == []


# How often it says so


def test_it_says_so_once_again_when_it_falls_ill_again_and_after_a_long_while():
    ill = dict(completions__clipped_ratio=around(0.6))
    assert alarms(windows(AGAIN, **ill)) == [("truncated", 10)]
    assert alarms(windows(2 * AGAIN + 40, **ill)) == [("truncated", 10), ("truncated", 510), ("truncated", 1010)]
    again = alarms(windows(30, **ill), windows(60, 31), windows(60, 91, **ill))
    # the mean is back in order (0.125 for most of 20 windows), and above 0.3 by 4 errors some windows after 91
    assert [name for name, _ in again] == ["truncated"] * 2 and 100 < again[1][1] < 115


def test_between_the_limit_and_its_noise_a_sick_run_stays_sick_and_a_well_one_well():
    dogs = Watchdogs()

    def state(*values: float) -> dict:
        for value in values:
            dogs.observe(1, {**WELL, "completions/clipped_ratio": value})
        return dict(dogs.sick)

    near = (0.1, 0.52) * 20  # mean 0.31, error 0.05
    assert state(*near) == {}
    assert state(*[0.5, 0.6] * 20) == {"truncated": True}
    assert state(*near) == {"truncated": True}
    assert state(*[0.25] * 20) == {"truncated": False}


def test_other_limits_and_none():
    ill = windows(40, completions__clipped_ratio=around(0.4), fire__weight_ess=around(0.1))
    assert alarms(ill, truncated=0.5, weights=None) == []
    assert alarms(ill, truncated=0.5) == [("weights", 10)]


def test_noise_is_no_sickness():
    """Runs in health with windows of few rows. 120 runs of 1000 windows, once, gave no alarm either."""
    for seed in range(8):
        assert examine(noisy(random.Random(seed), steps=200)) == []


def test_a_first_window_in_which_by_chance_none_was_cut_is_not_the_measure():
    """Answers grow threefold, since the teacher's are long; as ever one in ten of 16 is cut, but none in the first."""
    for seed in range(10):
        draw = random.Random(seed)
        cut = [0, *(sum(draw.random() < 0.1 for _ in range(16)) for _ in range(300))]
        run = [
            {**WELL, "step": step, "completions/clipped_ratio": n / 16, "completions/mean_length": 100.0 + step}
            for step, n in enumerate(cut)
        ]
        assert examine(run, {"loops_kept": None}) == [], seed


def noisy(draw: random.Random, steps: int):
    """
    A run in health, with windows of 8 to 64 rows: its KL and entropy fall, answers vary in length by a factor of two,
    up to a fifth are cut, half of those loop, and the filter pays no heed to either, or drops rather those.
    """
    rows, drop = draw.choice([8, 16, 32, 64]), draw.choice([0.0, 0.2, 0.5])
    share, loops, dislikes, spread = (draw.choice(of) for of in ((0, 0.05, 0.2), (0, 0.5), (0, 0.5), (0.1, 0.3, 0.6)))

    def sure(level: float, by: float) -> float:
        return level * draw.lognormvariate(-by * by / 2, by)

    for step in range(1, steps + 1):
        fall = math.exp(-3 * step / steps)
        cut = [draw.random() < share for _ in range(rows)]
        looped = [is_cut and draw.random() < loops for is_cut in cut]
        scores = [draw.gauss(0, 1) - dislikes * is_cut for is_cut in cut]
        kept = [score >= sorted(scores)[int(drop * rows)] for score in scores]
        lengths = [100.0 if is_cut else min(100.0, draw.lognormvariate(3.5, 0.6)) for is_cut in cut]
        ended = [length for length, is_cut in zip(lengths, cut, strict=True) if not is_cut]
        window = {
            **{**WELL, "step": step, "fire/rows": float(rows), "fire/kept_rows": float(sum(kept))},
            "fire/keep_ratio": sum(kept) / rows,
            "fire/looped_ratio": sum(looped) / rows,
            "fire/weight_ess": min(1.0, draw.gauss(0.8, 0.08)),
            "fire/reverse_kl": sure(0.05 + 0.1 * fall, spread),
            "fire/terminal_gap": -sum(draw.expovariate(1.0) for _ in ended) / max(1, len(ended)),
            "fire/teacher_entropy": sure(0.2, 0.2),
            "entropy": sure(0.15 + 0.15 * fall, 0.2),
            "completions/clipped_ratio": sum(cut) / rows,
            "completions/mean_length": sum(lengths) / rows,
            "completions/mean_terminated_length": sum(ended) / max(1, len(ended)),
        }
        for kind, of in (("truncated", cut), ("looped", looped), ("finished", [not is_cut for is_cut in cut])):
            window.pop(f"fire/keep_ratio_{kind}", None)
            if any(of):
                window[f"fire/keep_ratio_{kind}"] = sum(map(min, kept, of)) / sum(of)
        yield window


# A run that goes on


def test_a_run_that_goes_on_keeps_its_beginning_and_judges_what_comes_after():
    before = Watchdogs()
    for window in windows(30, fire__reverse_kl=around(0.1)):
        before.observe(window["step"], window)
    kept = json.loads(json.dumps(before.past.to_keep()))
    after, fresh = Watchdogs(beginning=kept), Watchdogs()
    ill = windows(30, 31, fire__reverse_kl=around(0.5), completions__mean_terminated_length=around(10))
    seen = [alarm for window in ill for alarm in after.observe(window["step"], window)]
    assert [(alarm.watchdog, alarm.step) for alarm in seen] == [("length_collapse", 40), ("kl_rising", 50)]
    assert [alarm for window in ill for alarm in fresh.observe(window["step"], window)] == []  # it began like that
    well = Watchdogs(beginning=kept)
    assert [alarm for window in windows(60, 31) for alarm in well.observe(window["step"], window)] == []


# The records


def test_every_limit_has_a_reason_and_the_documents_name_it():
    page = (Path(__file__).parents[2] / "docs" / "symptoms.md").read_text()
    for name, dog in WATCHDOGS.items():
        assert dog.name == name and 0 < dog.limit <= dog.largest
        assert len(dog.reason.split()) > 15 and dog.reason.endswith(".")
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"`{dog.metric}`" in row


def test_an_alarm_is_a_line_of_the_file():
    assert list(Alarm.__dataclass_fields__) == ["step", "watchdog", "metric", "value", "limit", "says", "remedy"]
