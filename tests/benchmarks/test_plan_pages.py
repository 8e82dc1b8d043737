"""The tables of the pages about plans are what the plan says now."""

import pytest

from benchmarks.plan import pages


@pytest.mark.parametrize("page", pages.PAGES)
def test_the_tables_of_a_page_are_what_the_plan_says(page):
    text = (pages.DOCS / page).read_text(encoding="utf-8")
    tables = [table.splitlines() for table in text.replace("\n\n", "\0").split("\0") if table.startswith("| ")]
    assert all(len({line.count(" | ") for line in table if line.startswith("|")}) == 1 for table in tables)
    assert pages.written(page, text) == text, "run `python -m benchmarks.plan.pages`, and read what has changed"


def test_a_page_without_a_block_is_said():
    with pytest.raises(ValueError, match="docs/hardware.md has no block 'lora'"):
        pages.written("hardware.md", "nothing")


def test_a_block_is_written_between_its_marks(monkeypatch):
    monkeypatch.setitem(pages.PAGES, "x.md", {"a": lambda: "new"})
    text = "before\n<!-- plan: a -->\nold\nolder\n<!-- end of plan -->\nafter"
    assert pages.written("x.md", text) == "before\n<!-- plan: a -->\nnew\n<!-- end of plan -->\nafter"
