"""`fire-opd preflight`: what its own arguments do, and what becomes of the others."""

import pytest
from support.commands import CONFIGS, refusal

from fire_opd_trl.preflight import arguments


@pytest.fixture
def asked(monkeypatch):
    """What would be inspected, by `fire-opd preflight *argv`."""
    seen = []
    monkeypatch.setattr("fire_opd_trl.preflight.command.run", lambda script, *rest: seen.append(rest) or 1)

    def ask(*argv: str):
        assert arguments.main(list(argv)) == 1  # the exit code of the inspection
        return seen.pop()

    return ask


def test_its_own_arguments_are_read_and_all_others_left_to_the_training(asked):
    others = ["--config", "smoke", "--method", "opd", "--num_machines", "2"]
    zero3 = CONFIGS / "accelerate" / "zero3.yaml"
    assert asked(*others, "--accelerate_config", "zero3", "--num_processes", "4") == (others, zero3, 4, False)
    assert asked("--with-models") == ([], None, None, True)


def test_an_unknown_accelerate_config_is_answered_with_what_was_meant(capsys):
    message = refusal(capsys, "preflight", "--accelerate_config", "zero33")
    assert "zero33 is neither a file nor one of: cpu, fsdp2" in message and "Did you mean 'zero3'?" in message
