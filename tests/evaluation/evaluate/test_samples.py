"""The record of a sample, and the seeds."""

from dataclasses import replace

from fire_opd_trl.evaluation.evaluate.samples import Sample, in_order, seed_of, to_row


def test_seeds_stay_what_they_are_and_are_all_different():
    assert seed_of(42, "a", 1) == 483202180  # a change would make every log that there is unusable
    seeds = {seed_of(seed, problem, number) for seed in (0, 1) for problem in "ab" for number in range(1, 9)}
    assert len(seeds) == 32 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_sample_goes_into_a_line_without_its_time():
    sample = Sample("math500", "p", 2, 7, "so \\boxed{4}", "4", "right", "stop", 12, 3.5)
    row = to_row(sample)
    assert "seconds" not in row and Sample(**row) == replace(sample, seconds=None)
    assert sample.right and not sample.failed


def test_samples_are_put_in_the_order_of_the_problems():
    samples = [Sample("t", problem, number, 0, "", None, "wrong", "stop", 1) for number in (2, 1) for problem in "ab"]
    ordered = [(one.problem, one.sample) for one in in_order(samples, ["b", "a"])]
    assert ordered == [("b", 1), ("b", 2), ("a", 1), ("a", 2)]
