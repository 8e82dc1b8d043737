"""Runs that were made otherwise do not share a table."""

import pytest
from support.runs import invented

from fire_opd_trl.evaluation.compare import records, runs


def test_runs_of_two_kinds_do_not_share_a_table(tmp_path):
    other = invented("fire", 0, 0.7, settings=runs.shared_settings(30, 2000, 500, 10))
    with pytest.raises(records.OtherSettings, match="steps is 60 in opd seed 0 and 30 in fire seed 0"):
        records.one_settings([invented("opd", 0, 0.7), other])
