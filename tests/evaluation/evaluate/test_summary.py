"""Avg@n, pass@k, maj@n and differences, against every subset, every draw and every hand."""

import itertools
import math
import random
from statistics import fmean, stdev

import pytest

from fire_opd_trl.evaluation.evaluate.grading import normalised
from fire_opd_trl.evaluation.evaluate.samples import Sample
from fire_opd_trl.evaluation.evaluate.summary import (
    Difference,
    by_problem,
    compare_all,
    majority_answer,
    majority_right,
    summarize,
)


def sampled(problem, number, verdict="wrong", answer: str | None = "1", stop="stop", tokens=10) -> Sample:
    return Sample("task", problem, number, 0, "", answer, verdict, stop, tokens)


def rows(**problems: str) -> list:
    """Samples of problems whose letters say what each was: r(ight), w(rong), - (no answer), t(imeout), e(rror)."""
    verdicts = {
        "r": "right",
        "w": "wrong",
        "-": "no answer",
        "t": "timeout",
        "e": "wrong",
        "d": "died",
        "u": "unparsed",
    }
    return [
        sampled(
            problem, number, verdicts[letter], None if letter == "-" else letter, "error" if letter == "e" else "stop"
        )
        for problem, letters in problems.items()
        for number, letter in enumerate(letters, 1)
    ]


def drawn(seed: int, problems: int, n: int) -> list:
    """Samples with several wrong answers, drawn."""
    draw = random.Random(seed)
    found = []
    for problem in range(problems):
        ease = draw.random()
        for number in range(1, n + 1):
            answer = "right" if draw.random() < ease else draw.choice("abc")
            verdict = "right" if answer == "right" else "wrong"
            found.append(sampled(f"p{problem}", number, verdict, answer, tokens=draw.randint(1, 9)))
    return found


def counts(samples: list) -> dict:
    """What a comparison reads of samples."""
    return {problem: (sum(one.right for one in row), len(row)) for problem, row in by_problem(samples).items()}


def compare(first: list, second: list) -> Difference:
    (found,) = compare_all({"first": counts(first), "second": counts(second)})
    return found


def test_a_summary_by_hand():
    # Shares 1, 1/2, 0 of two samples: mean 1/2, deviation 1/2, error 1 / (2 sqrt(3)); pass@2 is 1, 1, 0.
    # The majority: right, tied (half), wrong. The interval adds 0 and 1: mean 1/2, deviation 1/2, t(4) = 2.7764.
    found = summarize(rows(a="rr", b="rw", c="w-"), 2)
    assert (found.problems, found.n, found.missing) == (3, 2, 0)
    assert (found.avg, found.stderr) == pytest.approx((0.5, 0.5 / 3**0.5))
    assert found.pass_at == pytest.approx({1: 0.5, 2: 2 / 3})
    assert found.pass_at_stderr == pytest.approx({1: 0.5 / 3**0.5, 2: 1 / 3})
    assert (found.maj_at_n, found.maj_stderr) == pytest.approx((0.5, 0.5 / 3**0.5))
    half_width = 2.7764 * 0.5 / 5**0.5
    assert found.interval == pytest.approx((max(0, 0.5 - half_width), min(1, 0.5 + half_width)), abs=1e-4)
    assert (found.no_answer, found.truncated, found.mean_tokens, found.tokens_stderr) == pytest.approx(
        (1 / 6, 0, 10, 0)
    )


def test_what_graders_could_not_say_is_wrong_and_counted():
    found = summarize(rows(a="rttdu", b="rrr-u"), 5)
    assert (found.timeouts, found.deaths, found.unparsed, found.avg) == (2, 1, 2, 0.4)
    samples = [
        sampled("a", 1, stop="length", tokens=100),
        sampled("a", 2, tokens=50),
        sampled("b", 1),
        sampled("b", 2),
    ]
    found = summarize(samples, 2)
    assert (found.truncated, found.mean_tokens, found.tokens_stderr) == (0.25, 42.5, 32.5)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_avg_and_pass_at_k_are_those_of_all_subsets(n):
    samples = drawn(n, 7, n)
    found = summarize(samples, n)
    assert list(found.pass_at) == {1: [1], 3: [1, 2, 3], 6: [1, 2, 4, 6]}[n]
    for k, value in found.pass_at.items():
        shares = []
        for problem in range(7):
            right = [sample.right for sample in samples if sample.problem == f"p{problem}"]
            shares.append(fmean(any(some) for some in itertools.combinations(right, k)))
        assert value == pytest.approx(fmean(shares), abs=1e-12)
        assert found.pass_at_stderr[k] == pytest.approx(stdev(shares) / 7**0.5, abs=1e-12)
    assert found.avg == pytest.approx(found.pass_at[1])


def test_a_majority_is_that_of_all_orders_in_which_ties_may_fall():
    for seed in range(30):
        row = drawn(seed, 1, 5)
        wins = []
        for order in itertools.permutations(row):  # whoever comes first wins a tie
            answers = [sample.answer for sample in order]
            wins.append(max(answers, key=answers.count) == "right")
        assert majority_right(row) == pytest.approx(fmean(wins))


def test_answers_are_grouped_by_what_they_say():
    def row(*answers: str | None, right: str = "") -> list:
        return [
            sampled("p", k, "right" if answer in right.split() else "wrong", answer)
            for k, answer in enumerate(answers)
        ]

    assert majority_answer(row("1/2", "7", "0.5", "8", r"\frac{1}{2}")) == "1/2"
    assert majority_right(row("x+1", "7", "7", "1+x", right="x+1 1+x")) == 0.5  # right ones are one group
    assert majority_right(row("7", None, None, None, right="7")) == 1.0  # who has no answer has no vote
    assert majority_right(row(None, None)) == 0.0 and majority_answer(row(None, None)) is None
    assert majority_answer(row("8", "7")) == "8" and majority_answer([]) is None
    assert normalised("right") == "right"  # a wrong answer that reads "right" is in no group of right ones
    assert majority_right(row("right", "right", "7", right="7")) == 0.0


def test_missing_samples_are_counted_and_left_out():
    whole = summarize(rows(a="rw", b="rr"), 2)
    found = summarize(rows(a="rwee", b="rree", c="eeee"), 4, problems=5)
    assert (found.problems, found.missing) == (2, 16) and (found.avg, found.stderr) == (whole.avg, whole.stderr)
    assert list(found.pass_at) == [1, 2]  # no problem has four samples
    assert summarize(rows(a="rwee", b="rree", c="eeee"), 4).missing == 8
    uneven = summarize(rows(a="rrrr", b="wee", c="ww"), 4)
    assert uneven.avg == pytest.approx(1 / 3) and uneven.pass_at == pytest.approx({1: 1 / 3, 2: 0.5, 4: 1.0})


def test_a_single_problem_has_no_interval_and_none_has_no_number():
    found = summarize(rows(a="rrw"), 3)
    assert found.avg == pytest.approx(2 / 3) and found.pass_at[3] == 1.0
    unknown = [found.stderr, *found.interval, *found.pass_at_stderr.values(), found.maj_stderr, found.tokens_stderr]
    assert all(map(math.isnan, unknown))
    found = summarize([], 8, problems=3)
    assert (found.problems, found.missing, found.pass_at) == (0, 24, {})
    assert all(map(math.isnan, [found.avg, found.maj_at_n, found.truncated, found.no_answer, found.mean_tokens]))


def test_a_difference_is_paired_over_the_problems_of_both():
    first, second = rows(a="rw", b="ww", c="rw", only="rr"), rows(c="rr", b="rw", a="rr", other="ww")
    found = compare(first, second)
    assert (found.difference, found.problems) == (0.5, 3)
    # The same shares unpaired would be far less sure: here every problem rises by one half.
    many = [
        rows(**{f"{k}{letter}": ours for k in range(10) for letter, ours in enumerate(kind)})
        for kind in (("rw", "ww"), ("rr", "rw"))
    ]
    paired = compare(*many)
    assert paired.difference == 0.5 and paired.interval[0] > 0.3 and paired.p < 0.01
    back = compare(*reversed(many))
    assert back.difference == -0.5 and back.p == pytest.approx(paired.p, rel=0.5)
    models = drawn(0, 20, 4), drawn(1, 20, 4)
    assert compare(*models) == compare(models[0][::-1], models[1][::-1])
    assert (paired.verdict, back.verdict, compare(*models).verdict) == ("higher", "lower", "unclear")


def test_equal_models_do_not_differ_but_are_not_proven_to_be_equal():
    samples = drawn(0, 20, 4)
    found = compare(samples, samples)
    assert (found.difference, found.p) == (0.0, 1.0) and found.interval[0] < -0.02 and found.interval[1] > 0.02


def test_a_difference_over_one_problem_or_none_is_not_judged():
    one = compare(rows(a="rr"), rows(a="ww"))
    assert (
        one.difference == -1.0 and all(map(math.isnan, [*one.interval, one.p, one.p_holm])) and one.verdict == "none"
    )
    assert compare(rows(a="rr"), rows(b="rr")).problems == 0
    assert math.isnan(compare(rows(a="rr"), rows(b="rr")).difference)


def test_all_models_are_compared_with_holm_over_the_table():
    models = {name: counts(drawn(seed, 30, 4)) for seed, name in enumerate("abc")}
    found = compare_all({**models, "none": {}})
    assert [(one.first, one.second) for one in found] == [("a", "b"), ("a", "c"), ("a", "none")]
    judged, smaller = found[:2], min(found[:2], key=lambda one: one.p)
    assert smaller.p_holm == min(1.0, 2 * smaller.p) and all(one.p_holm >= one.p for one in judged)
    assert math.isnan(found[2].p_holm)  # and it is none of the two that Holm counts
    assert found[0].interval == compare_all({name: models[name] for name in "ab"})[0].interval
    assert compare_all({"a": models["a"]}) == []
