"""results.json: what it holds, who may stand in one table, and what a reader refuses."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.evaluations import entry, evaluation, samples, task

from fire_opd_trl.evaluation.evaluate import results
from fire_opd_trl.evaluation.evaluate.summary import by_problem, compare_all


SUMS = task("sums", 12)
PRODUCTS = task("products", 6)
SCHEMA_PAGE = Path(__file__).parents[3] / "docs" / "results_schema.md"


def one(model: str = "student", skill: float = 0.5, of=SUMS, **changes) -> dict:
    return entry(of, model, samples(of, model, skill), **changes)


def test_what_is_written_is_read_again_and_equal_runs_write_equal_files(tmp_path):
    first, second = (evaluation({"student": 0.4, "teacher": 0.8}, [SUMS, PRODUCTS]) for _ in range(2))
    for name, made, seconds in (("a", first, 1.0), ("b", second, 2.0)):
        results.write({**made, "times": {"seconds": seconds}}, tmp_path / name)
    again = results.read(tmp_path / "a")
    assert again == {**first, "times": {"seconds": 1.0}} and again["schema"] == "fire-opd-evaluation/1"
    a, b = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert a.pop("times") != b.pop("times") and json.dumps(a) == json.dumps(b)


def test_the_rows_count_the_samples_of_each_problem():
    given = samples(SUMS, "student", 0.5)
    given[1] = replace(given[1], verdict="timeout", stop="length")
    row = entry(SUMS, "student", given)["rows"][0]
    ours = given[:8]
    assert (row["id"], row["n"], row["gold"]) == ("sums-0", 8, list(SUMS.problems[0].gold))
    assert row["right"] == sum(s.verdict == "right" for s in ours) and row["ungraded"] == 1
    assert (
        row["truncated"] == sum(s.stop == "length" for s in ours)
        and row["mean_tokens"] == sum(s.tokens for s in ours) / 8
    )


def test_a_problem_without_any_sample_makes_it_partial():
    whole = one()
    assert (whole["status"], whole["summary"]["missing"]) == ("complete", 0)
    there = [sample for sample in samples(SUMS, "student", 0.5) if sample.problem != "sums-3"]
    partial = entry(SUMS, "student", there)
    assert (partial["status"], partial["summary"]["missing"]) == ("partial", 8)
    assert partial["rows"][3]["n"] == 0 and partial["rows"][3]["mean_tokens"] is None
    assert results.build([partial])["status"] == "partial"


def test_an_error_is_missing_and_not_wrong():
    given = samples(SUMS, "student", 0.5, stop="error", verdict="wrong")
    made = entry(SUMS, "student", given)
    assert made["rows"][0]["n"] == 7 and (made["status"], made["summary"]["missing"]) == ("partial", 1)


# Tables


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "vllm"}, {"style": "none"}, {"thinking": True}, {"temperature": 0.6}, {"top_p": 0.95},
        {"top_k": 20}, {"max_new_tokens": 512},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_numbers_of_other_settings_never_share_a_table_nor_a_difference(changes):
    built = results.build([one("student"), one("teacher", 0.9, **changes)])
    first, second = results.tables(built)
    assert (first.models, second.models) == (["student"], ["teacher"]) and built["differences"] == []
    (changed,) = changes
    name = "prompt_style" if changed == "style" else changed
    assert first.settings[name] != second.settings[name]


def test_other_data_under_one_name_and_another_grader_make_another_table():
    other = task("sums", 12, text="Add {a} and {b}.")
    assert other.sha256 != SUMS.sha256
    built = results.build([one("student"), one("teacher", 0.9, of=other), one("teacher", 0.9, of=PRODUCTS)])
    assert [(table.models, table.tasks) for table in results.tables(built)] == [
        (["student", "teacher"], ["sums", "products"]),
        (["teacher"], ["sums"]),
    ]
    graded = one("teacher", 0.9)
    graded["grader"] = {**graded["grader"], "limit": 1.0}
    assert len(results.tables(results.build([one("student"), graded]))) == 2


def test_tasks_with_prompt_styles_of_their_own_share_a_table():
    both = [one("student", of=PRODUCTS), *(one(name, style="none") for name in ("student", "teacher"))]
    (table,) = results.tables(results.build(both))
    assert table.settings["prompt_style"] == "boxed for products and none for sums" and len(table.differences) == 1
    first, second = results.tables(results.build([*both, one("teacher", of=PRODUCTS, style="none")]))
    assert (first.models, second.models) == (["student", "teacher"], ["teacher"])


def test_another_seed_or_dtype_may_share_a_table():
    built = results.build([one("student"), one("teacher", 0.9, seed=7, dtype="float32")])
    (table,) = results.tables(built)
    assert table.models == ["student", "teacher"] and len(table.differences) == 1


def test_differences_are_those_of_the_samples_though_rows_alone_are_kept():
    models = {"student": 0.4, "teacher": 0.9, "other": 0.42}
    made = evaluation(models, [SUMS])
    counts = {
        name: {
            problem: (sum(sample.right for sample in row), len(row))
            for problem, row in by_problem(samples(SUMS, name, skill)).items()
        }
        for name, skill in models.items()
    }
    expected = compare_all(counts)
    for difference, theirs in zip(made["differences"], expected, strict=True):
        assert (difference["second"], difference["difference"]) == (theirs.second, theirs.difference)
        assert difference["interval"] == list(theirs.interval) and difference["p_holm"] == theirs.p_holm
    assert [difference["verdict"] for difference in made["differences"]] == ["higher", "unclear"]
    assert results.tables(made)[0].difference("sums", "student") is None


def test_one_problem_gives_no_interval_and_no_verdict(tmp_path):
    made = evaluation({"a": 0.2, "b": 0.9}, [task("single", 1)])
    assert made["entries"][0]["summary"]["interval"] == [None, None]
    assert made["differences"][0]["verdict"] == "none" and made["differences"][0]["p"] is None
    results.write(made, tmp_path / "results.json")
    assert "NaN" not in (tmp_path / "results.json").read_text() and results.read(tmp_path / "results.json") == made


# Merged


def test_a_second_model_is_added_and_compared_and_a_repetition_replaces():
    first = results.build([one("student")], times={"student": 1})
    both = results.build([one("teacher", 0.9)], earlier=first, times={"teacher": 2})
    assert [found["model"]["label"] for found in both["entries"]] == ["student", "teacher"]
    assert both["differences"][0]["first"] == "student" and both["times"] == {"student": 1, "teacher": 2}
    assert results.build([one("student"), one("teacher", 0.9)])["differences"] == both["differences"]
    part = entry(SUMS, "student", samples(SUMS, "student", 0.5, missing=3))
    again = results.build([one("student")], earlier=results.build([part, one("teacher", 0.9)]))
    assert [found["status"] for found in again["entries"]] == ["complete", "complete"]


def test_another_model_under_the_same_label_is_refused():
    other = one("student")
    other["model"] = {**other["model"], "hashes": {"weights": "f" * 64, "chat_template": None}}
    with pytest.raises(
        ValueError, match=r"'student' of results.json is not the one .* weights was 0+\w+, and is f{64}"
    ):
        results.build([other], earlier=results.build([one("student")]))


# Read


@pytest.mark.parametrize("schema", ["fire-opd-evaluation/2", None, 7])
def test_another_version_is_refused_with_both_versions(tmp_path, schema):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**evaluation({"a": 0.5}, [PRODUCTS]), "schema": schema}))
    with pytest.raises(ValueError, match=re.escape(f"has the schema {schema!r}, and this version of fire_opd_trl")):
        results.read(path)


@pytest.mark.parametrize("text", ["", "[]", '{"entries": []}', "\x00\xff"])
def test_what_is_no_results_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="results.json"):
        results.read(path)


def test_a_file_that_was_changed_by_hand_is_refused(tmp_path):
    whole = evaluation({"a": 0.5}, [PRODUCTS])
    for change, said in (
        (lambda r: r.pop("times"), "'times'"),
        (lambda r: r["entries"][0].pop("status"), "'status'"),
        (lambda r: r["entries"][0]["sampling"].pop("top_p"), "'top_p'"),
        (lambda r: r["entries"][0]["rows"][2].pop("right"), "'right'"),
        (lambda r: r["entries"][0].update(model="a"), "TypeError"),
    ):
        broken = copy.deepcopy(whole)
        change(broken)
        (tmp_path / "results.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=f"its entries cannot be read .*{said}"):
            results.read(tmp_path / "results.json")


# The page of the schema


def keys(record: dict, at: str = "") -> set[str]:
    """The keys of a record, as the page of the schema writes them: inner records by their path."""
    found: set[str] = set()
    for name, inner in record.items():
        opened = isinstance(inner, dict) and name not in ("summary", "hashes", "versions", "pass_at", "pass_at_stderr")
        found |= keys(inner, f"{at}{name}.") if opened and inner else {at + name}
    return found


def test_the_page_of_the_schema_names_every_key_and_no_other():
    parts = re.split(r"^## ", SCHEMA_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    written = [set(re.findall(r"^\| `([\w.]+)` \|", part, flags=re.MULTILINE)) for part in parts]
    made = evaluation({"a": 0.4, "b": 0.9}, [SUMS], backend="vllm")
    first = made["entries"][0]
    assert written == [keys(one) for one in (made, first, first["summary"], first["rows"][0], made["differences"][0])]
