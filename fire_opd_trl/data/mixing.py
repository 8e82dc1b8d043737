"""Rows of several sources in one table, in a given proportion at every place."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


def weights_of(given: Mapping[str, str], names: Iterable[str]) -> dict[str, float]:
    """Returns the weight of each source, 1 where none was given."""
    weights = {}
    for name in names:
        text = given.get(name, "1")
        try:
            weights[name] = float(text)
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"--weight {name}={text}: give a number above 0.")
    return weights


def interleaved(rows: Mapping[str, int], weights: Mapping[str, float], most: int | None = None) -> list[str]:
    """
    Returns, place by place, the source of the row, so that at every place each source has its share to within one
    row, however many there are (Tijdeman 1980, "The chairman assignment problem"). It ends where the next source has
    no row left, so that no row is taken twice and the proportion holds from the first window to the last.

    Args:
        rows (`Mapping`): How many rows each source has.
        weights (`Mapping`): The proportion, such as `{"math": 1, "code": 1}`.
        most (`int`, *optional*): Rows in all.
    """
    total, taken = sum(weights.values()), dict.fromkeys(weights, 0)
    margin = 1 / max(2 * len(weights) - 2, 1)
    order: list[str] = []
    while most is None or len(order) < most:
        place = len(order) + 1 + 1e-9  # what rounding takes
        # The next row of a source may come from one place on, and must by another: of those that may, the most urgent.
        due = [one for one in weights if place * weights[one] / total >= taken[one] + margin]
        name = min(due, key=lambda one: (taken[one] + 1 - margin) / weights[one])
        if taken[name] == rows[name]:
            break
        taken[name] += 1
        order.append(name)
    return order


def mixed(
    tables: Mapping[str, "Dataset"], weights: Mapping[str, float], most: int | None = None, seed: int = 0
) -> tuple["Dataset", dict[str, int]]:
    """
    Returns one table of rows of several, and how many of each. Which rows are taken, a seed says.

    Args:
        tables (`Mapping`): The rows by source, with the same columns.
        weights, most: See [`interleaved`].
    """
    from datasets import concatenate_datasets

    place: dict[str, int] = {}
    rows = 0
    for name, table in tables.items():
        place[name], rows = rows, rows + len(table)
    order = interleaved({name: len(table) for name, table in tables.items()}, weights, most)
    places = []
    for name in order:
        places.append(place[name])
        place[name] += 1
    shuffled = [table.shuffle(seed=seed, keep_in_memory=True) for table in tables.values()]
    return concatenate_datasets(shuffled).select(places), {name: order.count(name) for name in tables}
