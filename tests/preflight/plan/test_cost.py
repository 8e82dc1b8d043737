"""What a step costs at least: operations and bytes, counted by hand."""

import pytest
import torch

from fire_opd_trl.preflight.plan import cost
from fire_opd_trl.preflight.plan.cost import DenseShape, Work, floors, flops, forward_floor, measure_rates


HAND = DenseShape(4, 2, 2, 1, 3, 5, 7)


def test_operations_and_weights_counted_by_hand():
    work = Work()
    work.add([3, 5], width=6, prompt=2)
    assert work == Work(rows=2, tokens=8, padded=12, pairs=6 + 15, scored=1 + 3)
    # Two operations x inner x outer x tokens x layers; queries are 2 heads of 3, keys 1 head of 3.
    assert flops(HAND, work) == {
        "query": 2 * 4 * 6 * 8 * 2,
        "key": 2 * 4 * 3 * 8 * 2,
        "value": 2 * 4 * 3 * 8 * 2,
        "output": 2 * 6 * 4 * 8 * 2,
        "gate": 2 * 4 * 5 * 8 * 2,
        "up": 2 * 4 * 5 * 8 * 2,
        "down": 2 * 5 * 4 * 8 * 2,
        "head": 2 * 4 * 7 * 4,
        "attention": 2 * 4 * 6 * 21,  # two layers, scores and values, two operations each, 2 heads of 3
    }
    assert HAND.parameters == 2 * (4 * 6 + 2 * 4 * 3 + 6 * 4 + 3 * 4 * 5) + 7 * 4 == 292


def test_the_floor_is_computation_or_reading_whichever_takes_longer():
    work = Work()
    work.add([3, 5], width=6, prompt=2)
    shapes = ("4x6", "4x3", "6x4", "4x5", "5x4", "4x7")
    rates = {"products": dict.fromkeys(shapes, 1000.0), "copy": 1000.0, "element_bytes": 4}
    assert forward_floor(HAND, work, rates) == pytest.approx(5.456)
    assert forward_floor(HAND, work, {**rates, "copy": 100.0}) == pytest.approx(292 * 4 / 100)
    faster_head = {**rates, "products": {**rates["products"], "4x7": 2000.0}}  # 224 of the head, 1008 of attention
    assert forward_floor(HAND, work, faster_head) == pytest.approx(5.456 - (224 + 1008) / 2000)
    found = floors(HAND, {"teacher": work, "update": work}, rates)
    assert found == {"teacher": pytest.approx(5.456), "update": pytest.approx(3 * 5.456 + 7 * 4 * 292 / 1000)}


def test_rates_are_measured_for_every_product_and_bound_what_they_are_measured_on(monkeypatch):
    monkeypatch.setattr(cost, "COPIED_BYTES", 2**16)
    rates = measure_rates(HAND, 16, torch.device("cpu"))
    assert set(rates["products"]) == {"4x6", "4x3", "6x4", "4x5", "5x4", "4x7"}
    assert (rates["rows"], rates["element_bytes"]) == (16, 4) and min(*rates["products"].values(), rates["copy"]) > 0
    work = Work()
    work.add([8, 8], width=8, prompt=0)
    counts, best = flops(HAND, work), max(rates["products"].values())
    assert forward_floor(HAND, work, {**rates, "copy": 1e30}) >= sum(counts.values()) / best
