"""Rates of this machine: what is measured is written as hardware that a plan takes."""

import pytest
import torch
from support.commands import refusal

from fire_opd_trl.preflight.plan import calibrate
from fire_opd_trl.preflight.plan.cost import products, shape_key
from fire_opd_trl.preflight.plan.hardware import chosen_hardware


def test_what_is_measured_can_be_planned_with(monkeypatch, tmp_path, capsys):
    def rates(shape, tokens, device):
        speeds = {shape_key(*dimensions): 1e9 for dimensions in products(shape).values()}
        return {"products": speeds, "copy": 5e9, "element_bytes": 4, "rows": 8}

    monkeypatch.setattr(calibrate, "measure_rates", rates)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "new" / "mine.yaml"
    assert calibrate.calibrate(str(file)) == 0
    hardware = chosen_hardware(str(file))
    assert hardware.measured and hardware.bandwidth == 5e9
    assert abs(hardware.operations / 1e9 - 1) < 1e-9  # all products have this rate
    output = capsys.readouterr().out
    assert f"on {calibrate.cpu_name()}: products" in hardware.source
    assert "no gather (one rank)" in output and f"fire-opd plan --hardware {file}" in output


def test_a_file_that_cannot_be_written_is_said_before_a_minute_is_spent(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(calibrate, "measured_hardware", lambda device: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(capsys, "plan", "--calibrate", "--output", str(tmp_path / "file" / "x"))


def test_a_gather_of_one_rank_has_a_rate(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29617")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(calibrate, "GATHERED_BYTES", 64)
    assert calibrate.gather_rate(torch.device("cpu")) == 0.0  # nothing comes from elsewhere
    assert not torch.distributed.is_initialized()
