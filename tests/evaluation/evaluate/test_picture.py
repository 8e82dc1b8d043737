"""The pictures: the numbers, at legible sizes, and equal for equal results."""

import base64
import warnings
import xml.etree.ElementTree as ET

import pytest
from support.evaluations import entry, evaluation, only_table, samples, task

from fire_opd_trl.evaluation.evaluate import results
from fire_opd_trl.evaluation.evaluate.picture import draw, panels_of, picture
from fire_opd_trl.evaluation.style import STYLE, pyplot


SUMS = task("sums", 20)


def drawn(table, panel: str):
    with pyplot().rc_context(STYLE):
        (axes,) = draw(table, panel).axes
    pyplot().close(axes.figure)
    return axes


def marks(axes) -> list:
    return [line for line in axes.lines if line.get_marker() == "o"]


@pytest.mark.parametrize("models, tasks", [(1, 1), (6, 10)])
def test_marks_and_intervals_are_the_numbers(models, tasks):
    made = evaluation({f"model {n}": 0.3 + 0.1 * n for n in range(models)}, [task(f"t{n}", 5) for n in range(tasks)])
    table = only_table(made)
    average = drawn(table, "average")
    found = sorted(line.get_xdata()[0] for line in marks(average))
    assert found == sorted(100 * one["summary"]["avg"] for one in made["entries"])
    assert [text.get_text() for text in average.get_yticklabels()][:2] == ["t0", "model 0"]
    assert average.figure.get_figheight() * 72 / (models * tasks + tasks) >= 15  # points for a line of text
    assert panels_of(table) == (["average", "difference"] if models > 1 else ["average"])
    if models > 1:
        difference = drawn(table, "difference")
        assert len(marks(difference)) == (models - 1) * tasks
        intervals = [line.get_xdata()[0] for line in difference.lines if line.get_linewidth() == 1.8]
        assert sorted(intervals) == pytest.approx(sorted(100 * one["interval"][0] for one in made["differences"]))


def test_a_picture_is_an_address_that_holds_it_with_any_name():
    table = only_table(evaluation({"student": 0.3, "</text><script>alert(1)</script> $x_$ 模型": 0.9}, [SUMS]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        address = picture(table, "average")
    assert address == picture(table, "average") != picture(table, "difference")
    root = ET.fromstring(base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")))
    assert any((element.text or "").endswith("…/script> $x_$ 模型") for element in root.iter())
    assert not any(element.tag.endswith("script") for element in root.iter())


def test_a_partial_number_is_hollow_and_none_is_left_out():
    part = entry(SUMS, "student", samples(SUMS, "student", 0.5, missing=2))
    axes = drawn(only_table(results.build([part, entry(SUMS, "teacher", [])])), "average")
    (mark,) = marks(axes)
    assert mark.get_markerfacecolor() == "white"
    low, high = axes.get_xlim()
    assert high - low >= 10
