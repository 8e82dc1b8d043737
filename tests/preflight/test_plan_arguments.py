"""`fire-opd plan`: its own arguments."""

import pytest
from support.commands import refusal

from fire_opd_trl.preflight import plan_arguments


@pytest.fixture
def asked(monkeypatch):
    """What would be planned, by `fire-opd plan *argv`."""
    seen = []
    monkeypatch.setattr("fire_opd_trl.preflight.plan_command.run", lambda script, *rest: seen.append(rest) or 0)

    def ask(*argv: str):
        assert plan_arguments.main(list(argv)) == 0
        return seen.pop()

    return ask


def test_its_own_arguments_are_read_and_all_others_left_to_the_training(asked):
    rest, config, options, _ = asked("--config", "smoke", "--fit", "--overlap", "0.25", "--accelerate_config", "cpu")
    assert rest == ["--config", "smoke"] and config.name == "cpu.yaml"
    assert (options.fit, options.overlap, options.reserve, options.hardware) == (True, 0.25, None, None)


@pytest.mark.parametrize(
    "option, value",
    [
        *(("--compute_fraction", value) for value in ("0", "-1", "nan", "1.1")),
        ("--decode_fraction", "2"),
        ("--overlap", "5"),
        ("--reserve", "inf"),
        ("--engine_gpus", "-6"),
        ("--price", "nan"),
        ("--mean_prompt", "-3"),
        ("--mean_completion", "0"),
    ],
)
def test_a_number_that_cannot_be_is_refused(capsys, option, value):
    assert f"{option} is " in refusal(capsys, "plan", option, value)


def test_calibration_is_no_plan(monkeypatch):
    seen = []
    monkeypatch.setattr("fire_opd_trl.preflight.plan.calibrate.calibrate", lambda output: seen.append(output) or 0)
    assert plan_arguments.main(["--calibrate", "--output", "mine.yaml"]) == 0 and seen == ["mine.yaml"]


def test_the_help_has_no_long_lines():
    lines = plan_arguments.make_parser().format_help().splitlines()
    assert max(map(len, lines)) <= 82 or not lines
