"""Reports from templates: lines of blocks vanish, and a name that is not there is an error."""

import pytest
from jinja2 import UndefinedError

from fire_opd_trl.evaluation.templates import number, render


def test_a_line_of_a_block_leaves_no_line_behind_and_all_others_stay(tmp_path):
    template = tmp_path / "report.md.j2"
    template.write_text("# {{ title }}\n\n{% for row in rows %}\n| {{ row | loud }} |\n{% endfor %}\n\nend\n")
    text = render(template, {"title": "a <b>", "rows": ["x", "y"]}, {"loud": str.upper})
    assert text == "# a <b>\n\n| X |\n| Y |\n\nend\n"
    with pytest.raises(UndefinedError, match="'rows' is undefined"):
        render(template, {"title": "a"}, {"loud": str.upper})


def test_a_number_that_is_not_there_is_a_dash():
    assert (number(0.125, "{:.0%}"), number(0.0, "{:.1f}"), number(None, "{:.1f}")) == ("12%", "0.0", "–")
