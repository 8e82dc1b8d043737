"""The results in a terminal: within 100 columns whatever the names are, with all that is wrong in them."""

from support.evaluations import entry, evaluation, samples, task

from fire_opd_trl.evaluation.evaluate import results, words
from fire_opd_trl.evaluation.evaluate.terminal import WIDTH, in_terminal, shortened


SUMS = task("sums", 20)


def test_two_models_on_two_tasks():
    made = evaluation({"student": 0.3, "teacher": 0.9}, [SUMS, task("products", 10)])
    text = in_terminal(made)
    head, *rows = [line.split() for line in text.splitlines() if line.startswith(("model", "student", "teacher"))][:5]
    assert head == [
        "model",
        "task",
        "Avg@8,",
        "%",
        "95",
        "%",
        "interval",
        *"pass@8 maj@8 cut off no answer tokens".split(),
    ]
    assert [row[:2] for row in rows] == [
        [model, name] for name in ("sums", "products") for model in ("student", "teacher")
    ]
    summary = made["entries"][0]["summary"]
    assert rows[0][2] == f"{100 * summary['avg']:.1f}" and rows[0][3] == f"[{100 * summary['interval'][0]:.1f},"
    assert rows[0][5] == f"{100 * summary['pass_at']['8']:.1f}" and rows[0][-1] == f"{summary['mean_tokens']:.0f}"
    assert "Differences in points" in text and text.count("above, p = 0.00") == 2
    assert "!" not in text and "PARTIAL" not in text and "Holm" not in text


def test_no_line_is_longer_than_a_hundred_columns_and_names_keep_their_ends():
    long = [f"{'a_very_long_folder_name_' * 3}{number}" for number in range(3)]
    tasks = [task("reasoning_gym:a_generator_with_a_long_name", 4), task("another_file_of_mine", 4)]
    made = evaluation(dict(zip(long, (0.2, 0.5, 1.0), strict=True)), tasks, n=16, max_new_tokens=131072)
    lines = in_terminal(made).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum("_name_2 " in line and "…" in line for line in lines) == 4 and "Holm" in "".join(lines)
    assert (shortened("abcdefghij", 7), shortened("abc", 7)) == ("ab…ghij", "abc")


def test_what_is_wrong_is_printed():
    given = samples(SUMS, "student", 0.5, missing=3, verdict="timeout")
    made = results.build([entry(SUMS, "student", given)])
    text = in_terminal(made)
    assert (
        f"{words.percent(made['entries'][0]['summary']['avg'])}* " in text
        and "* partial: over the samples that there are" in text
    )
    assert "! student on sums is partial: 3 of 160 samples are missing" in text
    assert "! student on sums: 1 answer of 160 took the grader longer" in text and "PARTIAL:" in text


def test_numbers_of_two_backends_stand_in_two_tables():
    entries = [entry(SUMS, name, samples(SUMS, name, 0.5), backend=name) for name in ("transformers", "vllm")]
    text = in_terminal(results.build(entries))
    assert text.startswith("There are 2 tables, since numbers with another backend may not be compared.")
    assert sum(line.startswith("model ") for line in text.splitlines()) == 2 and "Differences" not in text


def test_names_cannot_act_on_the_terminal_and_nothing_is_no_error():
    name = "evil\x1b[31m\u202e\n"
    text = in_terminal(results.build([entry(SUMS, name, samples(SUMS, name, 0.5))]))
    assert "\x1b" not in text and "\u202e" not in text and "evil␛[31m<U+202E>⏎" in text
    assert in_terminal(results.build([])) == "\n"
