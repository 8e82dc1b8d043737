"""The report in a terminal: what it says, how it marks tokens, and that no text of a model does anything."""

import re
import unicodedata

import pytest
from support.recorded import invented_run
from support.small_runs import small_run, trajectory

from fire_opd_trl.evaluation.inspect.report import report_of
from fire_opd_trl.evaluation.inspect.text import cells, in_terminal


def printed(folder, **how) -> str:
    return in_terminal(report_of([folder]), **how)


def a_run(tmp_path, rows, **others):
    """The text of a run of one step, without its facts."""
    return printed(small_run(tmp_path / "run", {4: rows}, **others)).split("\n\n", 1)[1]


def test_the_whole_text_of_a_small_run(tmp_path):
    weights = [1.0, 4.0, 2.0, *[0.5] * 17]
    kept = trajectory([" So", " wait", " 1", *[" x"] * 17], weight=weights, advantage=[-0.25] * 20)
    dropped = trajectory(
        ["a\n", "b"], kept=False, finished=False, truncated=True, looped=True, reward=0.5, weight=[9, 9]
    )
    logs = [{"step": 1, "loss": 0.5, "fire/reverse_kl": 0.25}, {"step": 4, "loss": 0.125, "fire/reverse_kl": 0.001}]
    about = {"status": "finished", "student": {"name": "student"}, "steps": 4, "max_steps": 4}
    run = small_run(tmp_path / "first", {4: [kept, dropped]}, logs, about)
    (run / "watchdogs.jsonl").write_text(
        '{"step": 2, "watchdog": "loops", "says": "Loops.", "remedy": "Look."}\n'
        '{"step": 3, "watchdog": "loops", "says": "More loops.", "remedy": "Look at them."}\n'
    )
    # Of 20 weights .75 lies at 0.5, .9 at 0.5 + .1 of the way from 1 to 2, and .98 at 2 + .62 x (4 - 2): between.
    assert (
        printed(run)
        == """\
first
What this run measured while a student model learned from a teacher model, and
what both models found of every token of some of the student's answers.
status    finished, step 4 of 4
student   student
recorded  2 trajectories at step 4: 1 kept, 1 dropped; 22 tokens

What the watchdogs said
step 3, loops, 2 times from step 2: More loops.
  What to do: Look at them.

Metrics, first and last
            first   last
Loss          0.5  0.125
Reverse KL   0.25  0.001  nats

Weight by type of token
                             mean weight  tokens
connective or decision word        2.500       2
single letter                      0.500      17
number                             2.000       1

Tokens with the largest weights
    mean weight  tokens
␣x        0.500      17

Where the training signal lies
                             of the tokens  of all |advantage|  tokens
connective or decision word         10.0 %              10.0 %       2
single letter                       85.0 %              85.0 %      17
number                               5.0 %               5.0 %       1

Trajectories
‹token› has one of the largest tenth of weights shown here, «token» of the
largest fiftieth.

step 4, row 0: kept, score -0.5, cut -1, 20 tokens, finished
Why?
 So« wait»‹ 1› x x x x x x x x x x x x x x x x x

step 4, row 1: DROPPED, since the filter ranked it too low, score -2, cut -1, 2
tokens, truncated, looped, reward 0.5
Why?
a⏎
b

"""
    )


def test_with_colours_heavier_tokens_are_redder_and_there_are_no_marks(tmp_path):
    row = trajectory([" So", " wait", " 1", *[" x"] * 17], weight=[1.0, 4.0, 2.0, *[0.5] * 17])
    text = printed(small_run(tmp_path, {1: [row]}), colours=True)
    assert "\x1b[38;5;16;48;5;203m wait\x1b[0m" in text and "\x1b[38;5;16;48;5;215m 1\x1b[0m" in text
    assert "\x1b[38;5;16;48;5;223m So\x1b[0m" in text and " x x x\n" in text and not set("«»‹›") & set(text)
    assert "\x1b[1mTrajectories\x1b[0m" in text and "The larger a token's weight, the redder it is." in text


def test_where_all_weights_are_equal_tokens_are_marked_by_their_advantage(tmp_path):
    row = trajectory(["a", "b", *"x" * 18], advantage=[-3.0, float("nan"), *[0.1] * 18])
    text = a_run(tmp_path, [row])
    assert "Every token has the weight 1: this method does not reweight." in text
    assert "one of the largest tenth of advantages shown here" in " ".join(text.split())
    assert "«a»bxxxxxxxxxxxxxxxxxx" in text
    flat = a_run(tmp_path / "flat", [trajectory(["a", "b"], weight=None, advantage=None)])
    assert "\nab\n" in flat and "‹token›" not in flat and "There are no weights" in flat


def test_nothing_that_a_model_writes_reaches_the_terminal_as_it_is(tmp_path):
    text = printed(invented_run(tmp_path, steps=2, rows=10))
    assert {sign for sign in text if unicodedata.category(sign)[0] == "C"} == {"\n"}
    for shown in ("␛[31m", "<U+202E>", "␀", "<U+2028>", "⇥", "<script>", "<0xE2>"):
        assert shown in text, shown
    colours = printed(tmp_path, colours=True)
    codes = set(re.findall("\x1b.*?m", colours))
    assert codes == {f"\x1b[{code}m" for code in ("0", "1", "2", *(f"38;5;16;48;5;{n}" for n in (203, 215, 223)))}
    assert "\x1b" not in re.sub("\x1b\\[[\\d;]*m", "", colours) and "␛[31m" in colours


@pytest.mark.parametrize("width", [64, 80, 100])
@pytest.mark.parametrize("colours", [False, True])
def test_no_line_is_wider_than_the_terminal(tmp_path, width, colours):
    folder = invented_run(tmp_path, steps=1, rows=10)
    wide = trajectory(["数" * 300, " word" * 50], prompt="問" * 200, teacher="m" * 30)
    small_run(tmp_path / "wide", {1: [wide]}, about={"student": {"name": "/very/long" * 30}})
    for run in (folder, tmp_path / "wide"):
        plain = re.sub("\x1b\\[[\\d;]*m", "", printed(run, colours=colours, width=width))
        assert max(map(cells, plain.splitlines())) <= width


def test_long_texts_are_cut_and_it_is_said_by_how_much(tmp_path):
    text = a_run(tmp_path, [trajectory(["x" * 100_000, *["word "] * 400], prompt="line\n" * 10)])
    assert "(100,000 signs)" in text and "\n... 7 lines before\nline⏎\nline⏎\nline⏎\nx" in text
    # 200 signs and what stands for the rest: three lines; 400 words of 5 signs are 25 lines of 80. Seven are shown.
    assert re.search(r"\.\.\. \d+ more lines\n\n$", text) and len(text.splitlines()) < 40


def test_of_a_long_prompt_the_end_is_shown_where_the_question_stands(tmp_path):
    text = a_run(tmp_path, [trajectory(["a"], prompt="system\n" + "word " * 100 + "Why?\nassistant\n")])
    # 100 words of five signs and the question: 16 in a line, so that the seventh line has four words.
    assert f"\n... 6 lines before\n{'word ' * 16}\nword word word word Why?⏎\nassistant⏎\na\n" in text


def test_dropped_trajectories_of_each_reason_are_shown_and_the_rest_is_counted(tmp_path):
    rows = [trajectory(["a"], kept=False, dropped_because=why) for why in ("filter", "empty", "filter")]
    rows += [trajectory(["a"])] * 5 + [trajectory(["a"], kept=False, dropped_because="empty")]
    text = a_run(tmp_path, rows)
    shown = re.findall(r"^step 4, row (\d): (\w+)", text, re.MULTILINE)
    assert shown == [("5", "kept"), ("6", "kept"), ("7", "kept"), ("2", "DROPPED"), ("8", "DROPPED")]
    assert "4 more were recorded: the page shows them, without --text." in text


def test_a_run_without_records_says_how_to_get_them(tmp_path):
    text = printed(small_run(tmp_path / "run", {}, logs=[]))
    assert " ".join(text.split()) == (
        "run What this run measured while a student model learned from a teacher model, and what both models found of "
        "every token of some of the student's answers. status not known missing There is no metrics.jsonl with a log "
        "yet (logging_steps says how often one is written). missing No trajectories were recorded. log_rollouts=16 in "
        "the settings of a training records 16 at each log, with every number of every token. What the watchdogs said "
        "It is too early: they need 10 windows."
    )


def test_a_run_of_one_log_has_one_value_of_each_metric(tmp_path):
    text = a_run(tmp_path, [], logs=[{"step": 1, "loss": 0.5, "reward": 1}])
    assert "\nMetrics\n        value\nLoss      0.5\nReward      1\n" in text


def test_a_look_at_a_pair_has_no_watchdogs(tmp_path):
    about = {"status": "inspected", "fit": {"teacher": {"verdict": "fits", "because": []}}}
    text = printed(small_run(tmp_path / "pair", {}, logs=[{"step": 0, "fire/keep_ratio": 0.8}], about=about))
    assert "\ndoes the teacher fit? fits\nstatus " in text and "watchdogs" not in text
    assert re.search(r"\nKept +80  %\n", text)


def test_two_runs_are_printed_one_after_the_other_and_side_by_side(tmp_path):
    one = small_run(tmp_path / "one", {}, [{"step": 1, "loss": 0.5, "reward": 1}])
    two = small_run(tmp_path / "two", {}, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    text = in_terminal(report_of([one, two]))
    assert text.startswith("one\n") and "\ntwo\n" in text
    assert text.endswith("Side by side: the last values\n      one   two\nLoss  0.5  0.25\n")


def test_what_a_tool_wrote_is_counted_and_does_not_move_the_shades(tmp_path):
    """Of the student's 20 tokens one is in the heaviest fiftieth, whatever stands in 80 tokens of a tool."""
    weights, own = [1.0] * 19 + [3.0], [True] * 20 + [False] * 80
    text = a_run(tmp_path, [trajectory(["a "] * 100, weight=weights + [0.0] * 80, trains=own)])
    assert "100 tokens, 80 of them by a tool, finished" in " ".join(text.split())
    assert text.count("«a") == 1 and text.count("‹a") == 0
    assert "by a tool" not in a_run(tmp_path / "without", [trajectory(["a "] * 20, weight=weights)])
