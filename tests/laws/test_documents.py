"""The documents: their links lead somewhere, their tables are whole, and the mathematics in them runs."""

import re
from pathlib import Path

import pytest

import fire_opd_trl


ROOT = Path(fire_opd_trl.__file__).parent.parent
METHODS_PAGE = ROOT / "docs" / "methods.md"
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """GitHub's names of the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_link_inside_the_repository_leads_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`(?!\])", "", text)  # code such as METHODS["fire"](0.2) is no link
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_a_word_of_the_glossary_is_defined_once():
    rows = re.findall(r"^\| (?!word |---)([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    words = [word.strip() for row in rows for word in row.split(",")]
    assert len(words) > 40 and len(set(words)) == len(words)
    assert {"window", "rollout", "row", "micro-batch", "survivor", "arm"} <= set(words)


def test_the_memory_of_a_gpu_is_the_sum_of_its_rows_and_what_the_readme_says():
    page, readme = (ROOT / "docs" / "hardware.md").read_text(), (ROOT / "README.md").read_text()
    peaks = []
    for table in page.split("<!-- plan: ")[1:]:
        rows = re.findall(r"^\| ([^|]+) \| (.*) \|$", table, re.MULTILINE)
        numbers = {name: [float(cell.replace("-", "0")) for cell in cells.split(" | ")] for name, cells in rows[2:]}
        total = numbers.pop("sum")
        assert len(numbers) >= 4 and len(total) == 4
        for phase, whole in enumerate(total):
            parts = sum(row[phase] for row in numbers.values())
            assert whole == pytest.approx(parts, abs=0.05 * len(numbers) + 0.05)  # each is rounded
        peaks.append(round(max(total)))
    assert len(peaks) == 2
    assert [f"{peak} GB" in readme for peak in peaks] == [True, True], peaks


def test_a_decision_has_a_question_a_choice_and_its_evidence():
    rows = re.findall(r"^\| (?!---|question )(.*) \|$", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        question, choice, evidence = row.split(" | ")
        assert question.endswith("?") and choice.endswith(".") and evidence.endswith("."), row


def test_the_mathematics_of_the_methods_page_runs_with_torch_alone():
    (block,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", METHODS_PAGE.read_text(), re.MULTILINE | re.DOTALL)
        if "signal = distil(" in block
    ]
    names: dict = {}
    exec(block, names)
    signal = names["signal"]
    assert int(signal.keep_B.sum()) == 8 and signal.weight_BT.shape == (10, 7)  # floor(0.2 * 10) = 2 are dropped


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=named)
def test_every_path_that_a_document_names_exists(document):
    """In code and in commands; the changelog also names what was."""
    starts = "|".join(("benchmarks", "configs", "docs", "examples", "fire_opd_trl", "tests"))
    paths = re.findall(rf"(?<![\w/.-])(?:{starts})/[\w./-]*\w(?=[`\s:,)\]]|$)", document.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_tests_of_the_table_of_mutants_exist_and_all_of_them_killed():
    rows = re.findall(
        r"^\| `(tests/[\w/.]+)`, `(\w+)` \|.*\| (\w+) \|$", (ROOT / "docs" / "mutants.md").read_text(), re.M
    )
    assert len(rows) >= 35 and {outcome for *_, outcome in rows} == {"killed"}
    for file, function, _ in rows:
        assert f"def {function}(" in (ROOT / file).read_text(), function
