"""What `plan` says of memory, against what was measured and what others report."""

import pytest

from benchmarks.plan.main import measure
from benchmarks.plan.page import ALONE, PAGE, page, read_results, rows
from benchmarks.plan.published import figures
from benchmarks.plan.settings import SETTINGS


RESULTS = read_results()
ROWS = {row.name: row for row in rows(RESULTS)}


def test_enough_was_measured():
    assert len(ROWS) >= 12 and set(ALONE.values()) <= set(RESULTS) <= set(SETTINGS)
    assert any(SETTINGS[name].zero3 for name in ROWS) and any(SETTINGS[name].generate for name in ROWS)
    assert all(max(row.measured.values()) > 5e8 for row in ROWS.values())  # models are most of each process


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_plan_of_today_is_within_a_fifth_of_what_was_measured(name):
    assert 0.8 < ROWS[name].ratio < 1.2


def test_the_page_is_what_the_results_say():
    assert PAGE.read_text() == page(RESULTS)


def test_the_plan_is_near_what_others_report():
    ratios = {row.what: row.planned / row.reported for row in figures()}
    assert len(ratios) >= 8 and all(0.7 < ratio < 1.45 for ratio in ratios.values())


@pytest.mark.nightly
def test_a_setting_is_measured_anew(tmp_path):
    peaks = measure("split", tmp_path)["peaks"]
    assert 0.8 < max(ROWS["split"].planned.values()) / max(peaks.values()) < 1.2
