"""Tasks from files in the layouts that people have, with invented problems; what is wrong with a file is said."""

import gzip
import json
import os
import warnings
from pathlib import Path

import pytest

from fire_opd_trl.demo import task as demo
from fire_opd_trl.evaluation.evaluate import tasks
from fire_opd_trl.evaluation.evaluate.grading import Graders, verdict
from fire_opd_trl.evaluation.evaluate.prompts import AS_WRITTEN, INSTRUCTION, prompt_text
from fire_opd_trl.real_pair import sums


def write(path: Path, rows: list) -> Path:
    """Writes rows in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in [rows[0], *map(dict.values, rows)]))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test finds a file of the working folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)


ASKED = f"How many?\n\n{INSTRUCTION}"
OLYMPIAD = {
    "id": 1,
    "question": "Find all.",
    "solution": ["Clearly.", "Or so."],
    "final_answer": ["$3$,$4$"],
    "context": None,
    "image_1": None,
    "modality": "Text-only",
    "is_multiple_answer": True,
    "unit": None,
    "answer_type": "Numerical",
    "question_type": "Open-ended",
    "subfield": "Algebra",
    "subject": "Math",
    "language": "English",
}
ARENA = {"problem_idx": 1, "problem": "How many?", "answer": "12", "problem_type": ["Algebra"]}
SHARD = "train-00000-of-00001.parquet"
LAYOUTS = [  # task, file below the folder of data, row, the problem's text, golds, id or nothing
    # copies on the Hub, cloned
    ("aime24", "aime24/data/test-00000-of-00001.parquet",
     {"id": 60, "problem": "How many?", "solution": r"\boxed{204}", "url": "x"}, "How many?", ("204",), "60"),
    ("aime24", "aime_2024/data/" + SHARD, {"id": 60, "problem": "How many?", "solution": r"It is $\boxed{33}$.",
     "answer": "033", "url": "x", "year": "2024"}, "How many?", ("033",), "60"),
    ("aime24", "AIME_2024/aime_2024_problems.parquet", {"ID": "2024-I-4", "Problem": "How many?", "Solution": "So.",
     "Answer": 116}, "How many?", ("116",), "2024-I-4"),
    ("aime25", "aime25/test.jsonl", {"problem": "How many?", "answer": "70", "id": "0"}, "How many?", ("70",), "0"),
    ("math500", "MATH-500/test.jsonl", {"problem": "Where?", "solution": "Here.", "answer": r"\left( 3, \pi \right)",
     "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}, "Where?", (r"\left( 3, \pi \right)",),
     "test/algebra/1.json"),
    ("amc23", "amc23/data/test-00000-of-00001.parquet", {"id": 0, "question": "How far?", "answer": 27.0, "url": "x"},
     "How far?", ("27",), "0"),
    ("olympiadbench", "OlympiadBench/OE_TO_maths_en_COMP/train/0000.parquet", OLYMPIAD, "Find all.", ("$3$,$4$",),
     "1"),
    ("olympiadbench", "olympiadbench.json", {**OLYMPIAD, "context": "Let $n$ be odd."}, "Let $n$ be odd.\nFind all.",
     ("$3$,$4$",), "1"),
    ("minerva", "minervamath/data/test-00000-of-00001.parquet", {"question": "What?", "answer": "4.5e33"}, "What?",
     ("4.5e33", r"4.5 \times 10^{33}"), None),
    ("hmmt_feb_2025", "hmmt_feb_2025/data/" + SHARD, ARENA, "How many?", ("12",), "1"),
    # the folder of the authors: problem with the instruction, and answer
    ("aime24", "aime24/test.jsonl", {"problem": ASKED, "answer": "1"}, "How many?", ("1",), None),
    ("amc23", "amc2023/test.jsonl", {"problem": ASKED, "answer": "1"}, "How many?", ("1",), None),
    ("olympiadbench", "olympiadbench/test.jsonl", {"problem": ASKED, "answer": "$1$"}, "How many?", ("$1$",), None),
    ("minerva", "minervamath/test.jsonl", {"problem": ASKED, "answer": "np.arcsin(10/13)"}, "How many?",
     ("np.arcsin(10/13)", r"\arcsin(10/13)"), None),
    ("hmmt_feb_2025", "hmmt25_feb/test.jsonl", {"problem": ASKED, "answer": "1"}, "How many?", ("1",), None),
    ("hmmt_nov_2025", "hmmt25_nov/test.jsonl", {"problem": ASKED, "answer": r"\frac{sqrt{7}}{2}"}, "How many?",
     (r"\frac{sqrt{7}}{2}", r"\frac{\sqrt{7}}{2}"), None),
    # the folder of the evaluation of Qwen2.5-Math and those that came from it
    ("math500", "math_500/test.jsonl", {"problem": "Where?", "answer": "p - q", "level": 5}, "Where?", ("p - q",),
     None),
    ("minerva", "minerva_math/test.jsonl", {"problem": "What?", "solution": r"So $x=\boxed{1.6} \mathrm{~cm}$",
     "type": "Astronomy", "idx": 0}, "What?", ("1.6",), "0"),
    ("minerva", "minerva_math/test.jsonl", {"idx": 0, "question": "What?", "gt_cot": "So.", "gt": "1.6"}, "What?",
     ("1.6",), "0"),
    # plain files beside each other
    ("amc23", "amc23.csv", {"question": "How far?", "answer": "27"}, "How far?", ("27",), None),
    ("aime25", "AIME-2025.jsonl.gz", {"question": "How far?", "answer": 27}, "How far?", ("27",), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "row", "text", "gold", "own"), LAYOUTS)
def test_layouts(tmp_path, name, file, row, text, gold, own):
    path = write(tmp_path / "data" / file, [row])
    with pytest.warns(UserWarning, match=rf"{name}: .* has 1 problems, and the usual copy"):
        task = tasks.load_task(name, tmp_path / "data")
    (problem,) = task.problems
    assert (problem.text, problem.gold) == (text, gold)
    assert problem.id == (own or tasks.text_id(text))
    assert (task.name, task.kind, task.answer, task.prompt_style) == (name, "math", "boxed", "boxed")
    assert task.source == str(path) and len(task.sha256) == 64
    assert problem.fields.get(AS_WRITTEN) == (row["problem"] if row.get("problem") == ASKED else None)


def many(count: int) -> list:
    """Returns invented problems."""
    return [{"problem": f"What is {number}+1?", "answer": number + 1} for number in range(count)]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_usual_number_of_problems_gives_no_warning(tmp_path, name):
    benchmark = tasks.TASKS[name]
    column = benchmark.columns[0]
    for number in benchmark.expected or (7,):
        write(tmp_path / f"{name}.jsonl", [{column: f"What is {one}+1?", "answer": one} for one in range(number)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(tasks.load_task(name, tmp_path).problems) == number


def test_names_of_benchmarks_may_be_written_as_on_the_hub(tmp_path):
    write(tmp_path / "math500.jsonl", many(500))
    assert tasks.load_task("MATH-500", tmp_path).name == "math500"
    write(tmp_path / "hmmt25_feb.jsonl", many(30))
    assert tasks.load_task("hmmt25_feb", tmp_path).name == "hmmt_feb_2025"


def test_only_the_text_in_english_with_an_answer_belongs_to_olympiadbench(tmp_path):
    others = [
        {"modality": "Multimodal"},
        {"language": "Chinese"},
        {"subject": "Physics"},
        {"question_type": "Theorem proof", "final_answer": None},
    ]
    write(tmp_path / "olympiadbench.jsonl", [*({**OLYMPIAD, "id": 7, **other} for other in others), OLYMPIAD])
    with pytest.warns(UserWarning, match="has 1 problems"):
        assert [problem.id for problem in tasks.load_task("olympiadbench", tmp_path).problems] == ["1"]


def test_a_file_of_ones_own(tmp_path):
    path = write(tmp_path / "sums.jsonl", many(5))
    task = tasks.load_task(str(path))
    assert (task.name, task.kind, task.source, len(task.problems)) == ("sums", "math", str(path), 5)
    assert task.problems[0].gold == ("1",) and task.problems[0].id == tasks.text_id("What is 0+1?")
    beside = tasks.load_task("sums.jsonl", tmp_path)  # below the folder of data
    assert (beside.sha256, beside.source) == (task.sha256, str(path))
    first = tasks.load_task(str(path), limit=2)
    assert first.problems == task.problems[:2] and first.sha256 != task.sha256
    other = write(tmp_path / "set" / "test.jsonl", [{"question": "1+1?", "gt": ["2", "two"], "level": 3}])
    task = tasks.load_task(str(other.parent))
    assert task.name == "set" and task.problems[0].gold == ("2", "two") and task.problems[0].fields == {"level": 3}
    assert tasks.load_task(str(other)).name == "set_test"


ANSWERS = [
    (7, ("7",)),
    (7.0, ("7",)),
    (7.5, ("7.5",)),
    ("0.50", ("0.50",)),
    (r"\boxed{7}", ("7",)),
    (["7", "seven"], ("7", "seven")),
    (["7", "7"], ("7",)),
    ("1.07e+16", ("1.07e+16", r"1.07 \times 10^{16}")),
    ("-2.88e-09", ("-2.88e-09", r"-2.88 \times 10^{-9}")),
    ("2e", ("2e",)),
    ("x sqrt", ("x sqrt",)),
    (r"\sqrt{2}", (r"\sqrt{2}",)),
]


def test_answers_as_people_write_them(tmp_path):
    rows = [{"problem": f"What is {number}?", "answer": answer} for number, (answer, _) in enumerate(ANSWERS)]
    rows.append({"problem": "Which?", "final_answer": ["1", "-2"], "is_multiple_answer": True})  # one answer
    found = tasks.load_task(str(write(tmp_path / "own.jsonl", rows))).problems
    assert [problem.gold for problem in found] == [*(gold for _, gold in ANSWERS), ("1, -2",)]


GOOD = b'{"problem": "1+1?", "answer": "2"}\n'
BAD = {
    b"{": "own.jsonl line 2 is not JSON",
    b"[" * 100_000: "own.jsonl line 2 is not JSON",
    b"\xff\xfe": "line 2 is not UTF-8: invalid start byte at byte 0",
    b"[1]": "line 2 is list and not an object",
    b'"text"': "line 2 is str and not an object",
    b"{}": "It is empty",
    b'{"prompt": "1?", "gold": "2"}': "no column 'problem' or 'question' with anything in it. It has: prompt, gold.",
    b'{"problem": "", "answer": "2"}': "no column 'problem'",
    b'{"problem": "  ", "answer": "2"}': "`problem` is '  ' and not a text",
    b'{"problem": ["1?"], "answer": "2"}': "`problem` is ['1?'] and not a text",
    b'{"problem": "1?"}': "no column 'answer' or 'final_answer'",
    b'{"problem": "1?", "answer": null}': "no column 'answer'",
    b'{"problem": "1?", "answer": []}': "no column 'answer'",
    b'{"problem": "1?", "answer": " "}': "`answer` is ' '",
    b'{"problem": "1?", "answer": true}': "`answer` is True",
    b'{"problem": "1?", "answer": NaN}': "`answer` is nan",
    b'{"problem": "1?", "answer": {"a": 1}}': "`answer` is {'a': 1}",
    b'{"problem": "1?", "answer": ["2", null]}': "`answer` is None",
    b'{"problem": "1?", "solution": "It is 2."}': "`solution` has no \\boxed{...}",
    b'{"problem": "\\ud800", "answer": "2"}': "`problem` holds half a character",
    b'{"problem": "1?", "answer": "\\udfff"}': "`answer` holds half a character",
    b'{"problem": "1?", "answer": "2", "context": "\\ud800"}': "`context` holds half a character",
    json.dumps({"problem": INSTRUCTION, "answer": "2"}).encode(): "the problem is only the instruction",
}  # fmt: skip


def test_a_malformed_row_is_refused_with_its_line(tmp_path):
    path = tmp_path / "own.jsonl"
    for line, message in BAD.items():
        path.write_bytes(GOOD + line + b"\n")
        with pytest.raises(ValueError) as refusal:
            tasks.load_task(str(path))
        assert message in str(refusal.value) and "line 2" in str(refusal.value)


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("own.jsonl", b"", "holds no problem"),
        ("own.jsonl", b"\n\n", "holds no problem"),
        ("own.json", b"{}", "holds dict and not a list"),
        ("own.json", GOOD + GOOD, "belongs into a .jsonl file"),
        ("own.json", b"[" * 100_000, "cannot be read as json"),
        ("own.json", b'[{"problem": "1?"}]', "row 1: no column 'answer'"),
        ("own.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("own.csv", b"problem,answer\n\xff,2\n", "cannot be read as csv"),
        ("own.csv", b"problem,answer\n1+1?\n", "row 1: no column 'answer'"),
        ("own.txt", b"1+1=2", "own.txt ends in none of .jsonl"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, file, contents, message):
    path = tmp_path / file
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as refusal:
        tasks.load_task(str(path))
    assert str(path) in str(refusal.value)


def test_empty_lines_and_a_byte_order_mark_are_none_of_the_problems(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\n" + GOOD.replace(b"1+1", b"1 + 1"))
    assert [problem.text for problem in tasks.load_task(str(path)).problems] == ["1+1?", "1 + 1?"]


def test_repeated_rows_are_left_out_and_other_answers_stay(tmp_path):
    rows = [*many(3), *many(3), {"problem": "What is 1+1?", "answer": "two"}]
    path = write(tmp_path / "own.jsonl", rows)
    with pytest.warns(UserWarning, match="3 rows repeat an earlier one"):
        task = tasks.load_task(str(path))
    name = tasks.text_id("What is 1+1?")
    assert [problem.id for problem in task.problems][1::2] == [name, f"{name}-2"]
    assert len(task.problems) == 4
    # A benchmark repeated for several samples of each problem is the benchmark.
    write(tmp_path / "aime24.jsonl", many(30) * 4)
    with pytest.warns(UserWarning) as warned:
        assert len(tasks.load_task("aime24", tmp_path).problems) == 30
    assert [str(warning.message).split(": ")[1].split()[0] for warning in warned] == ["90"]


@pytest.mark.parametrize("unusable", [1, "x" * 201, "a\0b", "a\x1b[31m", "\ud800"], ids=ascii)
def test_ids_that_repeat_or_cannot_name_a_sample_of_a_log_are_not_used(tmp_path, unusable):
    path = tmp_path / "own.jsonl"
    write(path, [{**row, "id": one} for row, one in zip(many(2), (1, unusable), strict=True)])
    assert [problem.id for problem in tasks.load_task(path).problems] == [
        tasks.text_id(f"What is {number}+1?") for number in range(2)
    ]
    write(path, [{**row, "id": f"{number:0>200}"} for number, row in enumerate(many(2))])
    assert [problem.id for problem in tasks.load_task(path).problems] == [f"{number:0>200}" for number in range(2)]


def test_the_name_of_a_file_does_nothing_to_a_terminal(tmp_path):
    path = write(tmp_path / "a\x1b[31m\nb.jsonl", many(1))
    assert tasks.load_task(str(path)).name == "a␛[31m⏎b"


def test_a_lost_backslash_is_a_warning(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"problem": "What is $\\frac{1}{2}$?", "answer": "1/2"}\n')
    with pytest.warns(UserWarning, match="1 problems hold control characters"):
        assert tasks.load_task(str(path)).problems[0].text == "What is $\frac{1}{2}$?"


def test_shards_are_read_in_their_order_and_other_files_are_ambiguous(tmp_path):
    folder = tmp_path / "aime24" / "data"
    for shard in (1, 0):
        write(folder / f"test-0000{shard}-of-00002.parquet", many(30)[shard::2])
    task = tasks.load_task("aime24", tmp_path)
    assert [problem.text for problem in task.problems[:2]] == ["What is 0+1?", "What is 2+1?"]
    write(tmp_path / "amc23" / "one.jsonl", many(40))
    write(tmp_path / "amc23" / "two.jsonl", many(40))
    with pytest.raises(ValueError, match=r"several files that may be meant: one.jsonl, two.jsonl"):
        tasks.load_task("amc23", tmp_path)
    write(tmp_path / "amc23" / "test.jsonl", many(40))
    write(tmp_path / "amc2023.jsonl", many(40))
    with pytest.warns(UserWarning, match="several copies"):
        assert tasks.load_task("amc23", tmp_path).source == str(tmp_path / "amc2023.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math50", r"There is no task 'math50'. Did you mean 'math500'\? Tasks: aime24"),
        ("", "There is no task ''"),
        ("sums.jsonl", "There is no file sums.jsonl and none .*/sums.jsonl"),
        ("no/such", "There is no file no/such"),
        (
            "math500",
            "nothing below .* is it. Looked for math500.jsonl .* HuggingFaceH4/MATH-500 .* docs/benchmarks.md",
        ),
        ("humaneval_plus", "nothing below .* is it. .* the releases of its own project"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        tasks.load_task(name, tmp_path)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit is 0"):
        tasks.load_task("embedded", limit=0)


def test_the_hub_is_asked_only_by_name_and_where_no_folder_is_given(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(*arguments, split):
        asked.append((*arguments, split))
        return [{"id": one, "question": f"What is {one}+1?", "final_answer": [str(one + 1)]} for one in range(674)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["validation", "train"])
    with pytest.raises(ValueError, match="nothing below"):
        tasks.load_task("olympiadbench", tmp_path)
    with pytest.raises(ValueError, match="releases of its own project"):
        tasks.load_task("humaneval_plus")
    assert not asked
    task = tasks.load_task("olympiadbench")
    assert asked == [("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train")]
    assert (task.source, len(task.problems)) == ("hub:Hothan/OlympiadBench", 674)
    task = tasks.load_task("hub:someone/sums", limit=3)
    assert asked[1:] == [("someone/sums", None, "train")]
    assert (task.name, task.source, len(task.problems)) == ("sums", "hub:someone/sums", 3)
    write(Path("data") / "olympiadbench.jsonl", many(674))
    assert tasks.load_task("olympiadbench").source == "data/olympiadbench.jsonl" and len(asked) == 2


def test_without_a_network_the_hub_is_a_sentence():
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # as all tests run
    with pytest.raises(ValueError, match=r"'math-ai/aime24' could not be read from the Hub: .* put a file of it into"):
        tasks.load_task("aime24")


def test_code_keeps_its_tests_in_the_file_but_knows_them(tmp_path):
    rows = [
        {"task_id": f"HumanEval/{one}", "prompt": f"def f{one}():\n", "entry_point": f"f{one}", "plus_input": [[one]]}
        for one in range(164)
    ]
    path = write(tmp_path / "HumanEvalPlus-v0.1.10.jsonl.gz", rows)
    task = tasks.load_task("humaneval_plus", tmp_path)
    first = task.problems[0]
    assert (task.kind, task.answer, task.source) == ("code", "code", str(path))
    assert (first.id, first.text, first.gold, first.fields["entry_point"]) == ("HumanEval/0", "def f0():\n", (), "f0")
    assert "plus_input" not in first.fields
    rows[0]["plus_input"] = [[1], [2]]
    write(path, rows)
    assert tasks.load_task("humaneval_plus", tmp_path).sha256 != task.sha256


def test_the_embedded_task_is_its_held_out_sums():
    task = tasks.load_task("embedded", limit=5)
    assert (task.kind, task.answer, task.prompt_style) == ("exact", "semicolon", "none")
    pairs = [tuple(map(int, problem.text.rstrip("=").split("+"))) for problem in task.problems]
    assert pairs == demo.problems("test", 5) and all(demo.is_held_out(*pair) for pair in pairs)
    assert [problem.gold for problem in task.problems] == [(str(a + b),) for a, b in pairs]
    assert len(tasks.load_task("embedded").problems) == tasks.GENERATED


def test_generators_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    task = tasks.load_task("reasoning_gym:chain_sum", limit=5)
    assert (task.name, task.kind, task.answer) == ("reasoning_gym:chain_sum", "math", "boxed")
    assert task.problems == tasks.load_task("reasoning_gym:chain_sum", limit=8).problems[:5]
    assert tasks.load_task("reasoning_gym:word_sorting", limit=3).kind == "exact"
    with pytest.raises(ValueError, match="no single answer"):
        tasks.load_task("reasoning_gym:boxnet", limit=1)
    with pytest.raises(ValueError, match="cannot be made without further settings"):
        tasks.load_task("reasoning_gym:composite", limit=1)
    with pytest.raises(ValueError, match=r"no generator 'chainsum'. Did you mean 'chain_sum'\?"):
        tasks.load_task("reasoning_gym:chainsum")


# Gold, answer, whether it is right: what the files of benchmarks hold, with other numbers.
GOLDS = r"""
033 | 33 | yes
\frac 59 | \dfrac{5}{9} | yes
11\sqrt2 | 11 \sqrt{2} | yes
6 - 5i | -5i+6 | yes
p - q | q - p | no
$k=1$ | 1 | yes
$69$,$84$ | 84, 69 | yes
$69$,$84$ | 69 | no
3, 5, 7 | \{3,5,7\} | yes
1 \pm \sqrt{19} | 1+\sqrt{19},1-\sqrt{19} | yes
$(1,8), (2,7)$ | (2,7),(1,8) | yes
\left( 3, \frac{\pi}{2} \right) | (3, \pi/2) | yes
(3,\infty) | (3, \infty) | yes
x \in [-2,7] | [-2,7] | yes
2\sqrt{5}\text{ cm} | 2\sqrt{5} | yes
\$32,\!348 | 32348 | yes
f(x)=2 x | f(x)=2x | yes
4.5e33 | 4.5 \times 10^{33} | yes
4.5e33 | 4.5e33 | yes
4.5e33 | 4.5 \times 10^{32} | no
2.88e-19 | 2.88\cdot 10^{-19} | yes
np.arcsin(10/13) | \arcsin\frac{10}{13} | yes
-1./3 | -\frac{1}{3} | yes
5. | 5 | yes
\frac{sqrt{7} + 1}{2} | \frac{1+\sqrt7}{2} | yes
"""


def test_golds_of_every_form_are_what_the_grader_takes():
    pytest.importorskip("math_verify")
    for line in GOLDS.strip().splitlines():
        gold, answer, right = line.split(" | ")
        assert (verdict(tuple(tasks.spellings(gold)), answer) == "right") is (right == "yes"), line


@pytest.mark.nightly
@pytest.mark.skipif(
    "FIRE_OPD_BENCHMARKS" not in os.environ, reason="FIRE_OPD_BENCHMARKS names no folder of benchmarks"
)
@pytest.mark.parametrize("name", [name for name, found in tasks.TASKS.items() if found.kind == "math"])
def test_all_golds_of_a_benchmark_verify_against_themselves(name):
    """`FIRE_OPD_BENCHMARKS=DATA make test-nightly`: for whoever has the files, which may not lie here."""
    folder = Path(os.environ["FIRE_OPD_BENCHMARKS"])
    if not tasks.benchmark_files(name, folder):
        pytest.skip(f"{name} is not in {folder}")
    with Graders(workers=1) as graders:
        wrong = [
            (problem.id, problem.gold)
            for problem in tasks.load_task(name, folder).problems
            if not any(graders.check(gold) == "right" for gold in problem.gold)
        ]
    assert not wrong


def test_the_sums_are_asked_as_the_teacher_of_the_real_pair_has_learned_them():
    task = tasks.load_task("sums", limit=5)
    drawn = sums.problems("test", 5)
    assert [prompt_text(problem, task, "boxed") for problem in task.problems] == [
        sums.instructed(numbers)[0]["content"] for numbers in drawn
    ]
    assert [problem.gold for problem in task.problems] == [(str(sum(numbers)),) for numbers in drawn]
