"""A sandbox for tests that run hostile code, and the Python inside of it."""

import os
import sys
from pathlib import Path

import pytest

from fire_opd_trl.evaluation.evaluate.sandbox import Bubblewrap
from fire_opd_trl.trainer.ending import Refusal


# CI sets it, so that a sandbox that does not work fails a test instead of skipping it.
REQUIRED = "FIRE_OPD_TEST_SANDBOX"
PYTHON = str(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))
FOLDERS = [] if Path(sys.base_prefix).is_relative_to("/usr") else [Path(sys.base_prefix)]


def working_sandbox() -> Bubblewrap:
    """A sandbox that has passed its check; where there is none, the test is skipped, in CI it fails."""
    sandbox = Bubblewrap()
    try:
        sandbox.check(PYTHON, FOLDERS)
    except Refusal as refusal:
        if os.environ.get(REQUIRED) or "does not isolate" in str(refusal):
            raise
        pytest.skip(str(refusal))
    return sandbox
