"""The pictures: equal for equal results, legible sizes, and no more than shapes and texts for the page."""

import re
import warnings
import xml.etree.ElementTree as ET

import pytest
from support.evaluations import entry, evaluation, samples, task

from fire_opd_trl.evaluation.evaluate import results
from fire_opd_trl.evaluation.evaluate.picture import draw, panels_of, svg, write_png


SUMS = task("sums", 20)
SVG = "{http://www.w3.org/2000/svg}"


def only_table(made: dict) -> results.Table:
    (table,) = results.tables(made)
    return table


def size(path) -> tuple[int, ...]:
    """The width and the height of a PNG, which its header says."""
    head = path.read_bytes()[:24]
    return tuple(int.from_bytes(head[at : at + 4], "big") for at in (16, 20))


@pytest.mark.parametrize("models, tasks", [(1, 1), (6, 10)])
def test_marks_and_intervals_are_the_numbers(tmp_path, models, tasks):
    made = evaluation({f"model {n}": 0.3 + 0.1 * n for n in range(models)}, [task(f"t{n}", 5) for n in range(tasks)])
    table = only_table(made)
    figure = draw(table, panels_of(table))
    average, *difference = figure.axes
    lines = [line.get_xydata().tolist() for line in average.lines if len(line.get_xydata()) == 1]
    assert sorted(point[0][0] for point in lines) == sorted(100 * one["summary"]["avg"] for one in made["entries"])
    assert [text.get_text() for text in average.get_yticklabels()][:2] == ["t0", "model 0"]
    assert len(difference) == (models > 1)
    if difference:
        points = [line.get_xydata().tolist() for line in difference[0].lines if line.get_marker() == "o"]
        assert len(points) == (models - 1) * tasks
        intervals = [line.get_xdata() for line in difference[0].lines if line.get_linewidth() == 1.8]
        assert sorted(interval[0] for interval in intervals) == pytest.approx(
            sorted(100 * one["interval"][0] for one in made["differences"])
        )
    width, height = size(write_png(table, tmp_path / "results.png"))
    assert 600 <= width <= 1400 and height / (models * tasks + tasks) >= 30


def test_the_svg_has_neither_styles_nor_scripts_and_only_ids_of_its_own():
    name = "</text><script>alert(1)</script> $x_$ 模型"
    table = only_table(evaluation({"student": 0.3, name: 0.9}, [SUMS]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average, difference = svg(table, "average"), svg(table, "difference")
    assert average == svg(table, "average")
    ids: list[set[str]] = []
    for text in (average, difference):
        root = ET.fromstring(text)
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= {"svg", "defs", "g", "path", "use", "text", "clipPath", "rect"}
        assert root.get("role") == "img" and "interval" in root.get("aria-label")
        attributes = {key for element in root.iter() for key in element.keys()}
        assert "style" not in attributes and not any(key.startswith("on") for key in attributes)
        ids.append({element.get("id") for element in root.iter() if element.get("id")})
        used = set(re.findall(r"#((?:average|difference)-\S+?)[\")]", text))
        assert used == ids[-1]
        assert any((element.text or "").endswith("…/script> $x_$ 模型") for element in root.iter(f"{SVG}text"))
    assert not ids[0] & ids[1]


def test_a_partial_number_is_hollow_and_none_is_left_out():
    part = entry(SUMS, "student", samples(SUMS, "student", 0.5, missing=2))
    nothing = entry(SUMS, "teacher", [])
    table = only_table(results.build([part, nothing]))
    (axes,) = draw(table, ("average",)).axes
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(marks) == 1 and marks[0].get_markerfacecolor() == "white"
    low, high = axes.get_xlim()
    assert high - low >= 10
