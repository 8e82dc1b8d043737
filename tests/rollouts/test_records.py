"""The files of recorded trajectories."""

import json

import pyarrow.parquet as pq
from support.recorded import invented_run

from fire_opd_trl.rollouts.records import SCHEMA, records_file


def test_a_run_that_nobody_trained_has_the_columns_of_a_real_one(tmp_path):
    invented_run(tmp_path, steps=2)
    table = pq.read_table(records_file(tmp_path, 10))
    assert table.schema.equals(SCHEMA)
    about = json.loads(table.schema.metadata[b"fire_opd"])
    assert about["format"] == 1 and about["method"] == "fire"
