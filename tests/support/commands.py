"""The command line, called in this process."""

import pytest

from fire_opd_trl import cli
from fire_opd_trl.preflight import packaged


CONFIGS = packaged.packaged_folder("configs")


SCRIPT = packaged.packaged_folder("examples") / "train_fire.py"


ACCELERATE_CONFIGS = {  # name: what it starts, on how many processes
    "cpu": ("NO", 1),
    "fsdp2": ("FSDP", 8),
    "multinode_zero3": ("DEEPSPEED", 16),
    "single_gpu": ("NO", 1),
    "zero2": ("DEEPSPEED", 8),
    "zero3": ("DEEPSPEED", 8),
    "zero3_offload": ("DEEPSPEED", 8),
}


def refusal(capsys, *argv: str) -> str:
    """What `fire-opd *argv` says when it refuses, below its usage."""
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 2
    usage, *message = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: fire-opd")
    return " ".join(message)
