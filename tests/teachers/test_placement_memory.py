"""
What a placement saves, by peak resident memory: a teacher of 380 MB, single processes and two ZeRO-3 ranks. A process
also grows by what training itself takes, which is measured with a tiny teacher and taken off.
"""

import json
import re
import sys

import pytest
from support import placement_worker
from support.launches import run_killably


pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The teachers, which are made once."""
    folder = tmp_path_factory.mktemp("teachers")
    placement_worker.make(folder)
    return folder


@pytest.fixture(scope="module")
def peaks(folder):
    """By how many MB one process grew in each case, without what training takes with a tiny teacher."""
    cases = ("tiny", "replicated", "offload", "apart", "shared", "copy", "self")
    code, output = run_killably([sys.executable, placement_worker.__file__, *cases, str(folder)])
    assert code == 0, output[-4000:]
    lines = [json.loads(found) for found in re.findall(r'\{"case"[^}]*\}', output)]
    assert [(line["case"], line["ranks"]) for line in lines] == [(case, 1) for case in cases]
    return {line["case"]: line["peak_mb"] - lines[0]["peak_mb"] for line in lines}


def test_a_streamed_teacher_takes_a_layer_where_a_replica_takes_them_all(peaks):
    replica, streamed = peaks["replicated"], peaks["offload"]
    assert 340 < replica < 420  # 378 MB of weights
    assert streamed < 0.15 * replica  # measured: 0.06


def test_two_adapters_of_one_base_take_one_base(peaks):
    assert peaks["shared"] < 0.6 * peaks["apart"]  # measured: 0.54, two adapters of 11 MB among it


def test_the_student_without_its_adapter_costs_no_second_model(peaks):
    assert peaks["copy"] - peaks["self"] > 0.9 * peaks["replicated"]  # measured: 0.98


@pytest.mark.launch
def test_two_ranks_share_a_sharded_teacher(folder, pairs, tmp_path):
    """And what of it is gathered at a time, a module here, is there beside the half."""

    def peaks(case: str) -> list[int]:
        pairs("zero3").run("support.placement_worker:write", case, str(folder), str(tmp_path / case))
        ranks = [json.loads((tmp_path / f"{case}-{rank}.json").read_text()) for rank in (0, 1)]
        assert [line["ranks"] for line in ranks] == [2, 2]
        return [line["peak_mb"] for line in ranks]

    for tiny, whole, sharded in zip(*map(peaks, ("tiny", "replicated", "sharded")), strict=True):
        assert 340 < whole - tiny < 420 and sharded - tiny < 0.6 * (whole - tiny)  # measured: 0.55
