"""The sentences on what the numbers say: each kind of verdict, each thing that is wrong, and what cannot be said."""

from dataclasses import replace

from support.evaluations import entry, evaluation, only_table, samples, task

from fire_opd_trl.evaluation.evaluate import results, words


SUMS = task("sums", 60)


def difference(points: float | None, low=None, high=None, verdict="higher", **more) -> dict:
    ends = [None, None] if low is None else [low / 100, high / 100]
    share = None if points is None else points / 100
    of = {"table": 1, "task": "sums", "first": "student", "second": "teacher", "p": 0.01, "p_holm": 0.02, **more}
    return {**of, "difference": share, "interval": ends, "problems": 60, "verdict": verdict}


def said(one: dict) -> str:
    table = only_table(evaluation({"student": 0.4, "teacher": 0.9}, [SUMS]))
    return words.of_difference(table, one)


def test_a_difference_in_one_sentence():
    assert said(difference(4.1, 1.2, 7.0)) == (
        "teacher is 4.1 points above student on sums, 95 % interval [+1.2, +7.0], 60 problems × 8 samples."
    )
    assert said(difference(-4.1, -7.0, -1.2, "lower")).startswith("teacher is 4.1 points below student on sums, 95 %")
    assert said(difference(-0.4, -2.0, 1.2, "unclear")) == (
        "teacher and student are not distinguishable on sums: teacher is 0.4 points below, 95 % interval "
        "[−2.0, +1.2], 60 problems × 8 samples."
    )
    assert said(difference(50.0, verdict="none")).endswith("without an interval: 60 problems × 8 samples are too few.")
    assert said(difference(None, verdict="none")).endswith("no problem of sums in common: nothing can be said.")


def test_one_model_alone_is_not_said_to_be_better():
    table = only_table(evaluation({"student": 0.5}, [SUMS], n=1))
    (sentence,) = words.what_can_be_said(table)
    assert sentence.startswith("student answers ") and "(Avg@1), 95 % interval [" in sentence
    assert sentence.endswith("60 problems × 1 sample.") and "One model alone" in words.what_cannot_be_said(table)[0]
    entries = [entry(one, one.name, samples(one, one.name, 0.5)) for one in (SUMS, task("few", 5))]
    apart = words.what_can_be_said(only_table(results.build(entries)))  # two models that share no task
    assert [sentence.split()[:2] for sentence in apart] == [["sums", "answers"], ["few", "answers"]]


def test_clear_differences_come_first_and_many_are_gathered_by_model():
    tasks = [SUMS, task("few", 5)]
    table = only_table(evaluation({"student": 0.3, "same": 0.31, "teacher": 0.95}, tasks))
    verdicts = [("is not" if "not distinguishable" in one else "is") for one in words.what_can_be_said(table)]
    assert verdicts == sorted(verdicts) and set(verdicts) == {"is", "is not"} and len(verdicts) == 4
    many = only_table(evaluation({"student": 0.3, "same": 0.31, "teacher": 0.95}, [SUMS, *map(task, "abc")]))
    same, teacher = words.what_can_be_said(many)
    assert same.startswith("same against student: not distinguishable on sums (")
    assert teacher.startswith("teacher against student: distinguishably above on sums (+")


def test_what_cannot_be_said():
    table = only_table(evaluation({"student": 0.3, "same": 0.31}, [SUMS, task("few", 5)]))
    sentences = " ".join(words.what_cannot_be_said(table))
    assert "does not mean equal: on few, a difference of less than about" in sentences
    assert "nothing about another seed of the training" in sentences
    assert "few has fewer than 50 problems" in sentences
    assert "cut off at 1,024 tokens" in sentences and "student on sums" in sentences
    clear = only_table(evaluation({"student": 0.1, "teacher": 1.5}, [SUMS]))
    clear.entries[0]["summary"]["truncated"] = 0.0
    assert len(words.what_cannot_be_said(clear)) == 1


def test_missing_samples_timeouts_and_deaths_are_said_when_there_are_any():
    assert words.warnings(only_table(evaluation({"student": 0.5}, [SUMS]))) == []
    given = samples(SUMS, "student", 0.5, missing=2, verdict="timeout")
    given[1] = replace(given[1], verdict="died")
    sentences = words.warnings(only_table(results.build([entry(SUMS, "student", given)])))
    assert sentences[0].startswith("student on sums is partial: 2 of 480 samples are missing")
    assert sentences[1] == (
        "student on sums: 1 answer of 480 took the grader longer than its limit, and counts as wrong."
    )
    assert sentences[2] == "student on sums: 1 answer of 480 killed the grader, and counts as wrong."


def test_answers_that_mostly_lack_the_form_are_said_unless_they_were_cut():
    table = only_table(evaluation({"student": 0.5}, [SUMS]))
    table.entries[0]["summary"] |= {"no_answer": 0.75, "truncated": 0.0}
    (sentence,) = words.warnings(table)
    assert sentence.startswith("student on sums: 75.0 % of the samples have no answer in the form")
    table.entries[0]["summary"]["truncated"] = 0.5
    assert words.warnings(table) == []


def test_numbers_over_some_of_the_problems_say_so():
    whole, given = samples(SUMS, "student", 0.4), samples(SUMS, "teacher", 0.9, missing=8 * 48)
    table = only_table(results.build([entry(SUMS, "student", whole), entry(SUMS, "teacher", given)]))
    assert table.entries[1]["summary"]["problems"] == 12 and table.entries[1]["task"]["problems"] == 60
    (sentence,) = words.what_can_be_said(table)
    assert sentence.endswith("12 of 60 problems × up to 8 samples.")
    assert "all its numbers are over the others (12 of 60 problems)." in words.warnings(table)[0]
    assert words.compared(table.differences[0], table)[-1].endswith(", 12 of 60 problems")
    alone = only_table(results.build([entry(SUMS, "teacher", given)]))
    assert words.what_can_be_said(alone)[0].endswith(", 12 of 60 problems × up to 8 samples.")


def test_what_differs_inside_a_table_is_said():
    entries = [
        entry(SUMS, name, samples(SUMS, name, 0.5), **more) for name, more in (("a", {}), ("b", {"dtype": "float32"}))
    ]
    assert words.notes(only_table(results.build(entries))) == ["The dtype differs within this table."]
    assert words.notes(only_table(results.build(entries[:1]))) == []


def test_settings_and_why_there_are_several_tables():
    entries = [entry(SUMS, "a", samples(SUMS, "a", 0.5), **more) for more in ({}, {"backend": "vllm", "top_k": 20})]
    first, second = results.tables(results.build(entries))
    assert words.settings_in_words(first.settings) == (
        "transformers, prompt style boxed, thinking off; 8 samples a problem at temperature 1, top-p 1, top-k off, at "
        "most 1,024 new tokens"
    )
    assert "vllm" in words.settings_in_words(second.settings) and "top-k 20" in words.settings_in_words(
        second.settings
    )
    assert words.differing([first]) == ""
    assert words.differing([first, second]) == (
        "There are 2 tables, since numbers with another backend or top-k may not be compared."
    )


def test_numbers_have_signs_and_no_minus_zero():
    assert [words.points(share) for share in (0.041, -0.041, -0.0001, 0.0, None)] == [
        "+4.1",
        "−4.1",
        "0.0",
        "0.0",
        "–",
    ]
    assert words.interval([None, None]) == "" and words.interval([0.5, 1.0]) == "[50.0, 100.0]"
    start = ["teacher", "sums", "student"]
    table = only_table(evaluation({"student": 0.4, "teacher": 0.9}, [SUMS]))
    assert words.compared(difference(4.1, 1.2, 7.0, p_holm=0.0001), table) == [
        *start, "+4.1", "[+1.2, +7.0]", "above, p < 0.001",
    ]  # fmt: skip
    unclear = words.compared(difference(-4.0, -9.0, 1.0, "unclear", p_holm=0.25), table)
    assert unclear[3:] == ["−4.0", "[−9.0, +1.0]", "not distinguishable, p = 0.250"]
    assert words.compared(difference(4.0, verdict="none", p=None, p_holm=None), table)[4:] == ["–", "no interval"]


def test_each_difference_names_the_model_that_it_is_to():
    few = [task(name, 8) for name in "abcdefg"]
    first = [entry(one, "student", samples(one, "student", 0.5)) for one in few[:1]]
    others = [entry(one, name, samples(one, name, 0.5)) for name in ("x", "y") for one in few]
    table = only_table(results.build([*first, *others]))
    assert [sentence.split(":")[0] for sentence in words.what_can_be_said(table)] == [
        "x against student", "y against student", "y against x",
    ]  # fmt: skip
    _, differences = words.grids(table, [])
    against = {(cells[1], cells[0]): cells[2] for _, cells in differences.lines}
    assert [against["a", "x"], against["a", "y"], against["b", "y"]] == ["student", "student", "x"]
