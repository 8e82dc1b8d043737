"""The example with two teachers: routed to its specialists the student gains both skills, routed wrongly neither."""

import json

import pytest

from fire_opd_trl.demo import task
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


@pytest.fixture(scope="module")
def example():
    return load_module(packaged_folder("examples") / "two_teachers.py")


def test_both_skills_have_a_working_of_one_form(example):
    assert example.question("carry", 437, 85) == "437+85="
    assert example.question("digits", 437, 85) == "437,85="
    assert example.working("carry", 437, 85) == task.working(437, 85) == "7+5+0=12,3+8+1=12,4+0+1=05;522"
    assert example.working("digits", 437, 85) == "7+5+0=12,3+8+0=11,4+0+0=04;412"
    assert example.working("digits", 662, 459) == "2+9+0=11,6+5+0=11,6+4+0=10;11"  # leading zeros are dropped
    assert example.working("digits", 123, 456).rpartition(";")[2] == "579"  # without a carry the answers agree


def test_the_routes_differ_in_the_teacher_alone(example):
    rows = {name: example.routed_prompts(route, steps=2, seed=0) for name, route in example.ROUTES.items()}
    assert all(list(some["prompt"]) == list(rows["right"]["prompt"]) for some in rows.values())
    right, wrong = list(rows["right"]["teacher_id"]), list(rows["wrong"]["teacher_id"])
    assert right.count("carry") == right.count("digits") == example.ROWS  # two updates, half of each
    assert all(own != other for own, other in zip(right, wrong, strict=True))
    assert ["+" in prompt for prompt in rows["right"]["prompt"]] == [name == "carry" for name in right]


def test_the_right_teachers_teach_both_skills_and_the_wrong_ones_neither(example, tmp_path, capsys):
    arms = ["right_full", "wrong_full"]
    quick = ["--steps", "25", "--seeds", "1", "--problems", "300", "--arms", *arms]
    table = example.main(["--output_dir", str(tmp_path), *quick])

    before, after = table["before"], table["arms"]
    for skill, other in (("carry", "digits"), ("digits", "carry")):
        assert before[skill][skill].mean > 0.9 and before[other][skill].mean < 0.1  # specialists
        # Gains in points with seeds 0, 1 and 2 of these arguments: right, carry +22.7, +21.7, +21.3, digits +10.7,
        # +11.0, +13.0; wrong, carry -40.3 three times, digits -39.7, -40.0, -40.7. With 300 problems the standard
        # error of a gain is at most 4 points, and less by what the problems share.
        assert after["right_full"][skill]["gain"].mean > {"carry": 0.10, "digits": 0.04}[skill]
        assert after["wrong_full"][skill]["gain"].mean < -0.25
        assert after["right_full"][skill]["after"].mean - after["wrong_full"][skill]["after"].mean > 0.35

    printed = capsys.readouterr().out
    assert "right: opd_full" in printed and "a,b=, columns without carries" in printed
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["table"]["arms"]["right_full"]["carry"]["gain"]["n"] == 1
    assert {file.name for file in (tmp_path / "runs").iterdir()} == {f"{arm}-seed0.json" for arm in arms}
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
