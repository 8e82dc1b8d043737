"""The page of an evaluation: what it says, that texts of models are harmless in it, and how it looks in a browser."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.browser import CONTRAST, browser, visit  # noqa: F401
from support.evaluations import entry, evaluation, samples, task

from fire_opd_trl.evaluation.evaluate import page as module
from fire_opd_trl.evaluation.evaluate import results
from fire_opd_trl.evaluation.evaluate.page import HEAD, MOST_PROBLEMS, page, text, write_report
from fire_opd_trl.evaluation.evaluate.results import tables
from fire_opd_trl.evaluation.evaluate.words import what_can_be_said, what_cannot_be_said


HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "--><b id='injected'>",
    "{{ 7 * 7 }}",
    "</pre></details><style>body { display: none }</style>",
    "http://example.invalid/x.png",
)
SUMS = task("sums", 30)


def written(made: dict, *arguments) -> str:
    """The page as a reader sees it: without tags, and with the signs that its text has."""
    return html.unescape(re.sub(r"<[^>]*>", "", page(made, *arguments or ({},))))


def several(skills: dict[str, float]) -> tuple[dict, dict]:
    """Results, and the samples that they are of."""
    return evaluation(skills, [SUMS]), {(name, "sums"): samples(SUMS, name, skill) for name, skill in skills.items()}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A folder with the report of three models on two tasks: one is better, one is partial, names and texts attack."""
    folder = tmp_path_factory.mktemp("report")
    attacked = task("sums", 30, text="What is {a} + {b}? " + " ".join(HOSTILE))
    named = task(HOSTILE[0], 5)
    skills = {"student": 0.3, "teacher": 1.1, HOSTILE[1]: 0.31}
    given = {
        (name, one.name): samples(one, name, skill) for name, skill in skills.items() for one in (attacked, named)
    }
    given["student", "sums"] = samples(attacked, "student", 0.3, missing=5, verdict="timeout", answer=HOSTILE[2])
    for key in given:
        attack = " ".join(HOSTILE) + "\x1b[31m\u202e\ud800"
        given[key] = [replace(one, text=attack + one.text) for one in given[key]]
    entries = [entry(one, name, given[name, one.name]) for name in skills for one in (attacked, named)]
    made = results.build(entries, command=f"fire-opd evaluate --model '{HOSTILE[1]}'")
    write_report(made, folder, given, [attacked, named])
    assert sorted(file.name for file in folder.iterdir()) == ["results.html", "results.json"]
    return folder


def test_it_says_what_was_asked_what_came_out_and_how_to_run_it_again(undrawn):
    made, given = several({"student": 0.3, "teacher": 1.1})
    (table,) = tables(made)
    said = written(made, given, [SUMS])
    for sentence in (*what_can_be_said(table), *what_cannot_be_said(table)):
        assert sentence in said
    first = made["entries"][0]
    for number in (first["summary"]["avg"], first["summary"]["maj_at_n"], *first["summary"]["pass_at"].values()):
        assert f"{100 * number:.1f}" in said
    for part in (
        "at most 1,024 new tokens", "fire-opd evaluate --model outputs/student", first["task"]["sha256"][:12],
        "data/sums.jsonl", first["prompt"]["example"], "math-verify 0.9.0", "torch 2.13.0", "outputs/teacher",
    ):  # fmt: skip
        assert part in said
    assert "Partial" not in said and "grader longer" not in said


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take most of the time, and test_picture.py looks at them."""
    monkeypatch.setattr(module, "picture", lambda table, panel: "data:")


def test_the_problems_on_which_the_models_differ_come_first_with_typical_samples(undrawn):
    made, given = several({"student": 0.3, "teacher": 1.1})
    said = written(made, given, [SUMS])
    student, teacher = ({row["id"]: row["right"] for row in one["rows"]} for one in made["entries"])
    spread = {id: abs(teacher[id] - student[id]) for id in student}
    listed = re.findall(r"<tr><th><code>(sums-\d+)</code></th>", page(made, given, [SUMS]))
    assert sorted(listed) == sorted(student)
    assert [spread[id] for id in listed] == sorted(spread.values(), reverse=True)
    example = said.split("in the words of the models")[1]
    problem = next(one for one in SUMS.problems if one.id == listed[0])
    assert problem.text in example and re.search(r"student, sample \d: (wrong|no answer)", example)
    assert re.search(r"teacher, sample \d: right", example)
    gained = sum(teacher[id] > 0 and student[id] == 0 for id in student)
    assert f"{gained} that student never solves" in said
    assert "in the words of" not in written(made) and problem.text not in written(made).split("first prompt")[0]


def test_samples_of_other_settings_are_not_shown(undrawn):
    made, given = several({"student": 0.3})
    other = {key: samples(SUMS, "student", 0.9) for key in given}
    assert "in the words of" in written(made, given) and "in the words of" not in written(made, other)


def test_several_tables_are_told_apart_and_no_results_are_said_to_be_none(undrawn):
    entries = [entry(SUMS, name, samples(SUMS, name, 0.5), backend=name) for name in ("transformers", "vllm")]
    made = results.build(entries)
    said = written(made)
    assert "There are 2 tables, since numbers with another backend may not be compared." in said
    assert "Table 1: backend transformers" in said and "Table 2: backend vllm" in said and "Differences in" not in said
    assert said.count("nothing about another seed of the training") == 1
    assert "There are no results yet." in written(results.build([]))


def test_each_command_that_made_a_number_is_shown(undrawn):
    results_of = {name: [entry(SUMS, name, samples(SUMS, name, 0.5))] for name in ("first", "second", "third")}
    made = None
    for name, entries in results_of.items():
        made = results.build(entries, earlier=made, command=None if name == "third" else f"evaluate --model {name}")
    again = written(made).split("How to run it again")[1]
    assert "evaluate --model first" in again and "evaluate --model second" in again
    assert "third on sums: called from Python" in again


def test_a_model_without_samples_is_not_said_to_solve_nothing(undrawn):
    made = results.build([entry(SUMS, "student", samples(SUMS, "student", 0.5)), entry(SUMS, "teacher", [])])
    said = written(made)
    assert "teacher on sums is partial: 240 of 240 samples are missing." in said and "– %" not in said
    assert "student solves" in said and "teacher solves" not in said and "gold" not in said.split("Which problems")[1]


def test_a_large_task_leaves_problems_to_the_file_and_a_long_text_its_middle(undrawn):
    large = evaluation({"student": 0.5}, [task("large", MOST_PROBLEMS + 20)], n=2)
    assert f"{MOST_PROBLEMS} of {MOST_PROBLEMS + 20} problems; the others are in results.json" in written(large)
    long = text("a" * HEAD + "b" * 10_000 + "\tend\x00")
    assert len(long) < 3000 and "characters are left out here" in long and long.endswith("    end␀")


def test_the_file_is_alone_and_its_policy_allows_nothing(report):
    made = (report / "results.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', made)
    directives = dict(part.strip().partition(" ")[::2] for part in html.unescape(policy).split(";"))
    assert directives["default-src"] == "'none'" and directives["script-src"] == "" and "unsafe" not in policy
    assert "<script" not in made and " style=" not in made and made.count("<style>") == 1
    assert not re.findall(r'(?:src|href)="(?!#|data:)', made)


@pytest.mark.launch
def test_in_a_browser_it_loads_nothing_fits_a_phone_and_is_legible(visit, report):  # noqa: F811
    for scheme, width in (("light", 1280), ("dark", 360)):
        seen = visit(report / "results.html", width=width, height=740, scheme=scheme).page
        assert seen.locator("#injected, script, img:not([src^='data:'])").count() == 0
        assert HOSTILE[1] in seen.locator("thead").first.page.locator("main").inner_text()
        seen.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert seen.evaluate("document.documentElement.scrollWidth <= innerWidth")
        texts = "p, h1, h2, h3, h4, li, dt, dd, th, td, code, pre, summary, .badge, .key"
        assert seen.evaluate(CONTRAST, texts) >= 4.5
        turned = seen.eval_on_selector(".pictures img", "e => getComputedStyle(e).filter")
        assert ("invert" in turned) == (scheme == "dark")
        assert seen.eval_on_selector_all(".pictures img", "all => all.map(e => e.naturalWidth > 300)") == [True, True]
        shown = seen.locator(".examples").first.inner_text()
        assert all(one in shown for one in HOSTILE) and "␛[31m<U+202E>" in shown
        assert "took the grader longer" in seen.locator("#numbers").inner_text()
        assert seen.locator(".alarm").first.is_visible()
        box = seen.locator(".pictures img").first.bounding_box()
        assert box["width"] > 250 and box["x"] >= 0 and box["x"] + box["width"] <= width
    seen.emulate_media(media="print")
    assert seen.locator(".numbers").first.evaluate("e => getComputedStyle(e).overflowY") == "visible"
