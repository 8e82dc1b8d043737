"""The check of prompts: all kinds of faults with their numbers, and which rows are left out for them."""

import pytest
from datasets import Dataset
from support.prompt_sets import chat_model, words

from fire_opd_trl.data.check import Asked, look_at
from fire_opd_trl.data.readers import Readers, readers_of


def asked(text):
    return [{"role": "user", "content": text}]


def digits(seed: int) -> str:
    """A sum of some length, which the embedded tokenizer reads sign by sign."""
    return "+".join(str(10 + seed * n % 90) for n in range(1, 4))


def seen(rows, readers=None, name="mine.jsonl", **options):
    """The findings by subject, and the look."""
    table = rows if isinstance(rows, Dataset) else Dataset.from_list(rows, on_mixed_types="use_json")
    looked = look_at(table, name, Asked(readers or readers_of(None, {}, None, {}), **options))
    found: dict[str, list[str]] = {}
    for finding in looked.checked.findings:
        found.setdefault(finding.subject, []).append(f"{finding.outcome}: {finding.text}")
    return found, looked


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Readers:
    return readers_of(chat_model(tmp_path_factory.mktemp("student") / "chat"), {}, 12, {})


def test_a_sound_set_has_no_fault_and_its_numbers_are_counted(student):
    found, looked = seen([{"prompt": asked(digits(seed)), "answer": "5"} for seed in range(1, 8)], student)
    assert not looked.checked.faults and looked.why == {}
    assert found["file"] == ["ok: mine.jsonl: 7 rows; columns prompt, answer"]
    assert found["columns"] == [
        "ok: the trainer reads `prompt` (the student's prompt); only reward functions see answer"
    ]
    assert found["form"] == ["ok: all prompts are lists of messages"]
    assert found["length"] == ["ok: in tokens of the student: min 9, median 9, p95 9, max 9; above 256: 0"]
    assert found["duplicates"] == ["ok: none, and no near-duplicates"]
    assert found["evaluation"] == ["warning: not compared with evaluation problems: --against names tasks or files"]
    shown = "\n".join(looked.shown)
    assert shown.count("to the student:") == shown.count("the same tokens") == 3
    assert "row 0 to the student: 9 tokens, '11+12+13='" in shown


def test_every_kind_of_malformed_prompt_is_counted_with_its_first_row():
    prompts = [
        asked("one"), None, "", [], asked("two"), [], [{"role": "user", "content": None}],
        [{"role": "who", "content": "x"}], [*asked("a"), {"role": "assistant", "content": "b"}], None,
    ]  # fmt: skip
    found, looked = seen([{"prompt": prompt} for prompt in prompts])
    assert [text[:45] for text in found["form"]] == [
        "fault: 2 rows, the first is row 1: `prompt` i",
        "fault: 1 row, the first is row 2: `prompt` is",
        "fault: 2 rows, the first is row 3: `prompt` i",
        "fault: 1 row, the first is row 6: the message",
        "fault: 1 row, the first is row 7: the role 'w",
        "fault: 1 row, the first is row 8: the last me",
        "ok: all prompts are lists of messages",
    ]
    assert looked.why == dict.fromkeys([1, 2, 3, 5, 6, 7, 8, 9], "malformed")


def test_texts_and_messages_in_one_file_are_said(student):
    found, _ = seen([{"prompt": asked("one")}, {"prompt": "two"}, {"prompt": "three"}])
    assert found["form"][0].startswith("warning: 2 prompts a text, read as it is; 1 prompt a list of messages")
    found, _ = seen([{"prompt": "12+3="}], student)
    assert "texts, which the student reads without its chat template" in found["form"][0]
    assert seen([{"prompt": "12+3="}])[0]["form"] == ["ok: all prompts are texts"]


def test_a_file_without_prompts_is_a_fault_that_says_which_column_may_be_meant():
    found, _ = seen([{"question": "one", "answer": "1"}])
    assert found["columns"] == ["fault: there is no column `prompt`. Is it 'question'? Then --prompt_column question."]
    assert seen([{"q": "one"}])[0]["columns"] == ["fault: there is no column `prompt`. Name it with --prompt_column."]
    assert seen(Dataset.from_dict({"prompt": []}))[0]["file"] == ["fault: mine.jsonl: 0 rows; columns prompt"]


def test_routes_are_counted_and_strangers_are_faults():
    rows = [
        {"prompt": asked(words(n)), "teacher_id": name}
        for n, name in enumerate(["math", "code", "maths", None, "math"])
    ]
    found, looked = seen(rows, readers_of(None, {"math": "", "code": "", "law": ""}, None, {}))
    assert found["teachers"] == [
        "fault: 2 rows, the first is row 2: `teacher_id` is maths, None, and the teachers are math, code, law. Did "
        "you mean 'math'?",
        "warning: `teacher_id`: math 2, code 1, maths 1, None 1; no row names law",
    ]
    assert looked.why == {2: "names no teacher", 3: "names no teacher"}
    found, looked = seen(rows)
    assert found["teachers"][0].startswith(
        "warning: `teacher_id`: math 2, code 1, maths 1, None 1; 1 row without a name. "
    )
    found, _ = seen([{"prompt": "a"}], readers_of(None, {"math": "", "code": ""}, None, {}))
    assert found["teachers"] == [
        "fault: there is no column 'teacher_id', which must name one of math, code in each row"
    ]


def test_long_prompts_and_those_that_no_template_renders_are_faults(student):
    rows = [{"prompt": asked(digits(seed))} for seed in range(1, 5)]
    rows[1]["prompt"] = asked(digits(7) * 2)
    rows[3]["prompt"] = [{"role": "system", "content": "1"}, *asked("2")]
    found, looked = seen(rows, student)
    assert found["template"] == [
        "fault: 1 row, the first is row 3: the chat template cannot render a prompt: no system, please."
    ]
    assert found["length"][1].startswith("fault: 1 row, the first is row 1: longer than --max_prompt_length 12.")
    assert looked.why == {1: "too long", 3: "no template renders it"}


def test_a_prompt_of_the_teachers_own_is_measured_and_shown(student):
    rows = [
        {"prompt": asked("12+3"), "teacher_prompt": asked("12+3=15,12+3") if n else None, "n": n} for n in range(2)
    ]
    found, looked = seen(rows, student)
    assert found["teacher_prompt"] == [
        "ok: in tokens, where a teacher reads its own: min 13, median 13, p95 13, max 13"
    ]
    assert "to teacher:           13 tokens, '12+3=15,12+3='" in looked.shown[-1]
    rows[1]["teacher_prompt"] = [{"role": "nobody", "content": "x"}]
    assert seen(rows)[1].why == {1: "malformed"}


def test_repetitions_are_found_and_shown():
    first = words(1)
    rows = [{"prompt": asked(text)} for text in (first, words(2), first, first.replace("a", "A"), first + " indeed")]
    found, looked = seen(rows)
    assert found["duplicates"] == ["warning: 1 row, the first is row 2: the prompt of row 0 again"]
    assert found["near-duplicates"][0].startswith("warning: 2 rows, the first is row 3: at least 70% of all triples")
    assert looked.why == {2: "the prompt of an earlier row"}
    assert (
        looked.shown[0] == "\nnear-duplicates:"
        and looked.shown[1].startswith("  row 3  ")
        and "(100%)" in looked.shown[2]
    )
    assert set(seen(rows, drop_near=True)[1].why) == {2, 3, 4}
    assert (
        "near-duplicates" not in seen(rows, similarity=1.0)[0]
        or len(seen(rows, similarity=1.0)[0]["near-duplicates"]) == 1
    )


def test_a_prompt_for_two_teachers_is_no_duplicate():
    rows = [{"prompt": asked("a"), "teacher_id": name} for name in ("math", "code")]
    assert "duplicates" not in seen(rows, readers_of(None, {"math": "", "code": ""}, None, {}))[1].why


def test_a_prompt_that_holds_an_evaluation_problem_is_a_fault_and_one_with_other_numbers_is_not():
    problem = "How many positive integers $n$ less than 100 have exactly three divisors that are prime?"
    texts = [
        words(1),
        f"Solve this. {problem} Use a box.",
        problem.replace("100", "200"),
        problem.replace("three", "four"),
    ]
    found, looked = seen(
        [{"prompt": asked(text)} for text in texts], problems={"aime24 7": problem, "aime24 8": words(9)}
    )
    assert found["evaluation"][0].startswith("fault: 2 rows, the first is row 1: at least 60% of the triples of words")
    assert found["evaluation"][1] == (
        "ok: compared with 2 problems: 2 rows held one; in 1 row the words are those of a problem, and the "
        "numbers are others"
    )
    assert looked.why == {1: "an evaluation problem", 3: "an evaluation problem"}
    pairs = "\n".join(looked.shown)
    assert "row 1     Solve this." in pairs and "aime24 7  How many" in pairs and "(100%)" in pairs


def test_rows_with_pictures_are_not_compared_by_their_texts(student):
    rows = [{"prompt": asked("12+3"), "image": name} for name in ("a.png", "b.png")]
    found, looked = seen(rows, student)
    assert found["length"] == ["warning: only the rollout knows it: the rows have pictures"] and looked.why == {}


def test_what_is_odd_is_a_warning_with_its_rows():
    rows = [{"prompt": asked(f"{words(n)} "), "answer": words(n)[:9]} for n in range(3)]
    found, looked = seen(rows)
    assert found["spaces"][0].startswith("warning: 3 rows, the first is row 0: it begins or ends with spaces")
    assert (
        found["answers"][0].startswith("warning: 3 rows, the first is row 0: it holds its own answer")
        and not looked.why
    )
