"""The command line, called in this process."""

import pytest

from fire_opd_trl import cli
from fire_opd_trl.preflight import packaged
from fire_opd_trl.trainer.ending import Refusal


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


def script_refusal(main, argv: list[str], capsys) -> str:
    """What the `main` of an example says when it refuses: by argparse, or by a `Refusal` for `Ending`."""
    with pytest.raises((SystemExit, Refusal)) as end:
        main(argv)
    if isinstance(end.value, Refusal):
        return str(end.value)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]
