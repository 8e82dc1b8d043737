"""
What a placement saves, by peak resident memory: a teacher of 380 MB, single processes and two ZeRO-3 ranks. A process
also grows by what training itself takes, which is measured with a tiny teacher and taken off.
"""

import json
import re
import sys

import pytest
from support.launches import LAUNCHERS, free_port, run_killably


pytest.importorskip("peft")
# What is freed goes back to the system at once, so that a peak is what was in use together.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory, request):
    """`peaks(launcher, case)`: by how many MB each rank grew, without what training takes with a tiny teacher."""
    folder, done = tmp_path_factory.mktemp("teachers"), {}
    script = str(request.path.parents[1] / "support" / "placement_worker.py")
    assert run_killably([sys.executable, script, "make", str(folder)])[0] == 0

    def measured(launcher: str, case: str) -> list[dict]:
        if (launcher, case) not in done:
            start = [sys.executable] if launcher == "one" else [*LAUNCHERS[launcher], str(free_port())]
            code, output = run_killably([*start, script, case, str(folder)], **ENVIRONMENT)
            assert code == 0, output[-4000:]
            # Ranks share the terminal with libraries, which may leave a line unfinished.
            lines = [json.loads(found) for found in re.findall(r'\{"case"[^}]*\}', output)]
            assert [line["ranks"] for line in lines] == ([1] if launcher == "one" else [2, 2])
            done[launcher, case] = lines
        return done[launcher, case]

    def grown(launcher: str, case: str) -> list[int]:
        pairs = zip(measured(launcher, case), measured(launcher, "tiny"), strict=True)
        return [mine["peak_mb"] - tiny["peak_mb"] for mine, tiny in pairs]

    return grown


def test_a_streamed_teacher_takes_a_layer_where_a_replica_takes_them_all(peaks):
    (replica,), (streamed,) = peaks("one", "replicated"), peaks("one", "offload")
    assert 340 < replica < 420  # 378 MB of weights
    assert streamed < 0.15 * replica  # measured: 0.06


def test_two_adapters_of_one_base_take_one_base(peaks):
    (apart,), (shared,) = peaks("one", "apart"), peaks("one", "shared")
    assert shared < 0.6 * apart  # measured: 0.54, two adapters of 11 MB among it


def test_the_student_without_its_adapter_costs_no_second_model(peaks):
    (replica,), (copied,), (own,) = (peaks("one", case) for case in ("replicated", "copy", "self"))
    assert copied - own > 0.9 * replica  # measured: 0.98


@pytest.mark.launch
def test_two_ranks_share_a_sharded_teacher(peaks):
    """And what of it is gathered at a time, a module here, is there beside the half."""
    for replica, half in zip(peaks("zero3", "replicated"), peaks("zero3", "sharded"), strict=True):
        assert 340 < replica < 420 and half < 0.6 * replica  # measured: 0.55
