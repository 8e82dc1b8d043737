"""Collectives over real ranks with ragged rows."""

import pytest
from support.trainers import CASE


@pytest.mark.launch
def test_f21_ragged_rows_are_gathered_exactly(pairs):
    pairs("ddp").run("support.works:ragged_rows", timeout=60)


@pytest.mark.launch
def test_no_rank_needs_a_usable_token_in_any_method(pairs):
    pairs("ddp").run("support.works:windows_without_a_token", timeout=60)


@pytest.mark.launch
def test_f21_collectives_agree_in_debug_mode(on_two_ranks):
    result = on_two_ranks("ddp", {**CASE, "batch": 4, "accumulation": 4}, ACCELERATE_DEBUG_MODE="1")
    assert result["debug_mode"] and sum(result["survivors_of_ranks"]) == 22
