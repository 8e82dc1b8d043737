"""The report says what there is and no more."""

import json
import random
import re

from support.runs import invented

from fire_opd_trl.evaluation.compare.presets import ARMS
from fire_opd_trl.evaluation.compare.report import sentences, write_report
from fire_opd_trl.evaluation.compare.summary import table


def comparison(effects: dict[str, float], noise: float = 0.004, seeds: int = 6) -> list[dict]:
    draw = random.Random(1)
    return [
        invented(name, seed, 0.7 + 0.02 * seed + effect + draw.gauss(0, noise))
        for name, effect in effects.items()
        for seed in range(seeds)
    ]


def test_the_report_says_what_is_there_and_no_more(tmp_path):
    effects = {"opd": 0.0, "fire": 0.05, "random": 0.05, "exopd": -0.05, "tip": 0.0}
    found = comparison(effects)
    arms = [ARMS[name] for name in effects]
    rows = {row.arm.name: row for row in table(found, arms)}
    # Paired by seed: the seeds themselves differ by up to ten points.
    assert [rows[name].differs for name in effects] == [None, True, True, True, False]
    assert [rows[name].beats_chance for name in effects] == [None, False, None, None, None]
    text = "\n".join(sentences(list(rows.values())))
    assert re.search(r"Against `opd`, distinguishably higher: `fire` \(\+\d.\d\), `random` \(\+\d.\d\)\.", text)
    assert re.search(r"Against `opd`, distinguishably lower: `exopd` \(-\d.\d\)\.", text)
    assert re.search(r"Against `opd`, not distinguishable: `tip` \(.\d.\d\)\.", text)
    assert re.search(r"Against its random control, not distinguishable: `fire` against `random`", text)

    files = write_report(found, arms, tmp_path / "report", "Invented", expected=31)
    assert [file.name for file in files] == [
        *("report.md", "results.json", "learning_curves.png", "learning_curves.svg"),
        *("differences.png", "differences.svg"),
    ]
    report = files[0].read_text()
    assert "**1 of 31 are missing**" in report and text.splitlines()[0] in report
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == 4 + len(effects) and len({line.count("|") for line in lines}) == 1
    assert len(json.loads(files[1].read_text())["rows"]) == len(effects)


def test_one_seed_gives_no_verdict():
    rows = table(comparison({"opd": 0.0, "fire": 0.3}, seeds=1), [ARMS["opd"], ARMS["fire"]])
    text = " ".join(sentences(rows))
    assert "no interval can be given for: `fire`" in text and "too few seeds" in text
    assert "distinguishabl" not in text
