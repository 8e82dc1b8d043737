"""Reports from jinja2 templates, for whatever writes one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined


def render(template: Path, values: dict[str, Any], filters: Mapping[str, Callable[..., str]]) -> str:
    """
    Fill in a template; a line that holds nothing but a block leaves no line behind. In HTML, all values are escaped.

    Args:
        template (`Path`): A file.
        values (`dict`): What its expressions name; a name that is not there is an error.
        filters (`dict`): Its filters, beside those of jinja2 and `number`: `number(None, "{:.2f}")` is a dash.
    """
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=".html" in template.suffixes,
    )
    environment.filters.update(number=number, **filters)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def number(value: float | None, form: str) -> str:
    """A number in the form that `str.format` takes, or a dash."""
    return "–" if value is None else form.format(value)
