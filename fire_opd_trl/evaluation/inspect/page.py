"""The page of `fire-opd inspect`: one HTML file that holds all it shows, and asks nobody for anything."""

import base64
import gzip
import hashlib
import json
import math
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .run import HOW_TO_RECORD


HERE = Path(__file__).parent
# In the order in which the browser runs them; what one declares, all later ones see.
SCRIPTS = (
    "vendor/chart.umd.min.js",
    "vendor/chartjs-chart-matrix.min.js",
    *(f"script/{name}.js" for name in ("texts", "data", "colours", "charts", "curves", "figures")),
    *(f"script/{name}.js" for name in ("list", "reader", "token", "start")),
)
LICENSES = ("vendor/chart.js-LICENSE.md", "vendor/chartjs-chart-matrix-LICENSE")
# The columns of a token, in the order in which data.js reads them.
NUMBERS = ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "weight", "advantage")
# "No number": a float32 that no arithmetic makes. data.js knows it, too.
NOTHING = 0x7FFFDEAD


def page(report: dict) -> str:
    """
    Return the HTML of a report, for the command to write.

    All text of models stays inside compressed data, which the page's script shows as text. A policy in the page lets
    the browser run these scripts alone, and load nothing.

    Args:
        report (`dict`): What `report_of` returns.
    """
    scripts = [without_source_map((HERE / name).read_text(encoding="utf-8")) for name in SCRIPTS]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    html = environment.from_string((HERE / "page.html.j2").read_text(encoding="utf-8")).render(
        report=report,
        said=[said(run["watchdogs"]) for run in report["runs"]],
        trained=any(run["trained"] for run in report["runs"]),
        once=all(len(curve["steps"]) == 1 for run in report["runs"] for curve in run["curves"]),
        how_to_record=HOW_TO_RECORD,
        policy=policy(scripts, style),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        licenses=[(HERE / name).read_text(encoding="utf-8") for name in LICENSES],
        text=packed(json.dumps(text_of(report), separators=(",", ":"), allow_nan=False).encode("ascii")),
        numbers=packed(planes(numbers_of(report))),
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is in no file


def without_source_map(script: str) -> str:
    """Return a script without the comment by which a browser would look for another file."""
    return re.sub(r"\n//# sourceMappingURL=.*\s*$", "\n", script)


def policy(scripts: list[str], style: str) -> str:
    """Return the content security policy under which these scripts and this style work, and nothing else does."""

    def hashes(*texts: str) -> str:
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)

    return (
        f"default-src 'none'; script-src {hashes(*scripts)}; style-src {hashes(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def said(warnings: list[dict]) -> list[dict]:
    """Return one entry for each watchdog that spoke, with its last warning and the steps of all."""
    by_name = sorted(warnings, key=lambda one: (one["watchdog"], one["step"]))
    groups = [list(group) for _, group in groupby(by_name, key=lambda one: one["watchdog"])]
    entries = [{**group[-1], "steps": [one["step"] for one in group]} for group in groups]
    return sorted(entries, key=lambda entry: entry["steps"][0])


def text_of(report: dict) -> dict:
    """Return all of a report but the numbers of its tokens; of those, it says which a trajectory has."""
    runs = [
        {**finite(without(run, "trajectories")), "trajectories": [trajectory_of(one) for one in run["trajectories"]]}
        for run in report["runs"]
    ]
    return {**finite(without(report, "runs")), "runs": runs}


def trajectory_of(one: dict) -> dict:
    return {
        **finite(without(one, "tokens", "trains", *NUMBERS)),
        "tokens": one["tokens"],
        "trains": "".join("01"[bool(trains)] for trains in one["trains"]),
        "has": [name for name in NUMBERS if one[name] is not None],
    }


def without(record: dict, *keys: str) -> dict:
    return {key: value for key, value in record.items() if key not in keys}


def finite(value: Any) -> Any:
    """Return a JSON value in which NaN and infinities are the words that JavaScript has for them."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def numbers_of(report: dict) -> np.ndarray:
    """Return the bits of all numbers of all tokens: trajectory by trajectory, column by column, those that exist."""
    columns = [
        bits_of(one[name])
        for run in report["runs"]
        for one in run["trajectories"]
        for name in NUMBERS
        if one[name] is not None
    ]
    return np.concatenate(columns) if columns else np.zeros(0, "<u4")


def bits_of(numbers: list[float | None]) -> np.ndarray:
    """Return numbers as the bits of float32, which is what was recorded: NaN, infinities and None survive."""
    nothing = np.array([number is None for number in numbers], bool)
    floats = np.array([math.nan if number is None else number for number in numbers], "<f4")
    return np.where(nothing, np.uint32(NOTHING), floats.view("<u4"))


def planes(bits: np.ndarray) -> bytes:
    """Return the first bytes of all numbers, then their second bytes, and so on: like next to like packs smaller."""
    return bits.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()


def packed(data: bytes) -> Markup:
    """Return bytes as text that stands in HTML as it is, and cannot end an element."""
    return Markup(base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii"))
