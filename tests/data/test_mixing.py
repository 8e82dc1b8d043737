"""Several sources in one order: the proportion at every place, no row twice."""

import itertools

import pytest
from datasets import Dataset

from fire_opd_trl.data.mixing import interleaved, mixed, weights_of


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1},
        {"a": 1, "b": 1},
        {"a": 3, "b": 1},
        {"a": 1, "b": 2, "c": 4},
        {"a": 0.7, "b": 0.3},
        {"a": 1, "b": 50, "c": 10, "d": 1, "e": 50},  # who is furthest behind, first: 1.11 rows off at place 54
    ],
)
def test_every_beginning_has_the_proportion_to_within_a_row(weights):
    order = interleaved(dict.fromkeys(weights, 1000), weights, 500)
    assert len(order) == 500
    for place, name in itertools.product(range(1, 501), weights):
        assert abs(order[:place].count(name) - place * weights[name] / sum(weights.values())) < 1


def test_it_ends_where_a_source_has_no_row_left():
    order = interleaved({"math": 57, "code": 25}, {"math": 1, "code": 1})
    assert order == ["math", "code"] * 25 + ["math"]
    assert interleaved({"math": 0, "code": 25}, {"math": 1, "code": 1}) == []


def test_rows_are_drawn_with_a_seed_and_taken_once():
    tables = {
        name: Dataset.from_dict({"row": [f"{name}{row}" for row in range(rows)]})
        for name, rows in (("a", 40), ("b", 10))
    }
    table, parts = mixed(tables, {"a": 2, "b": 1}, seed=3)
    rows = table["row"][:]
    assert parts == {"a": 21, "b": 10} and len(set(rows)) == 31 and [row[0] for row in rows[:3]] == ["a", "b", "a"]
    assert mixed(tables, {"a": 2, "b": 1}, seed=3)[0]["row"][:] == rows != mixed(tables, {"a": 2, "b": 1})[0]["row"][:]


@pytest.mark.parametrize("text", ["many", "0", "-1", "inf", "nan"])
def test_a_weight_is_a_number_above_zero(text):
    with pytest.raises(ValueError, match=f"--weight a={text}: give a number above 0"):
        weights_of({"a": text}, ["a", "b"])
    assert weights_of({"a": "2"}, ["a", "b"]) == {"a": 2.0, "b": 1.0}
