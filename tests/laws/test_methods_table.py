"""The table of methods in the documents is METHODS: names, what each reads, and the setting in which it is `opd`."""

import re
from pathlib import Path

import pytest
import torch
from support.signals import CONTEXT, assert_bitwise
from support.windows import window

import fire_opd_trl
from fire_opd_trl import METHODS, Method, distil


DOCUMENT = (Path(fire_opd_trl.__file__).parent.parent / "docs" / "methods.md").read_text()


def table() -> dict[str, list[str]]:
    """The cells behind each method's name."""
    lines = DOCUMENT[DOCUMENT.index("| method | what it changes |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def reads(method: Method) -> str:
    whole = "reverse_kl_BT" in method.signals or (method.divergence and not method.divergence.top_k)
    said = {
        "rewards": "reward_B" in method.needs,
        "groups": "group_B" in method.needs,
        "entropies": any("entropy" in name for name in method.signals),
        "reference model": "reference_logp_BT" in method.signals,
        "whole vocabulary": whole,
        "teacher's top k": bool(method.divergence and method.divergence.top_k),
    }
    return ", ".join(name for name, is_so in said.items() if is_so) or "–"


def test_the_table_has_every_method_in_the_order_of_the_source():
    assert list(table()) == list(METHODS)
    assert all(len(cells) == 4 for cells in table().values())


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_a_method_reads(name):
    assert table()[name][2] == reads(METHODS[name]())


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_in_which_setting_a_method_is_opd(name):
    cell = table()[name][3]
    calls = re.findall(r"`(\w+\(.*?\))`", cell)
    assert calls or cell == "–"
    target = "opd_full" if "opd_full" in cell else "opd"
    rollout, scores = window(dtype=torch.float32)
    for call in calls:
        assert call.startswith(name)
        assert METHODS[name]().signals is not None
        method = eval(call, {**METHODS, "inf": float("inf")})
        one, other = distil(rollout, scores, method, CONTEXT), distil(rollout, scores, METHODS[target](), CONTEXT)
        shared = set(one.metrics) & set(other.metrics)  # a method that reads an entropy logs it
        for signal in (one, other):
            object.__setattr__(signal, "metrics", {key: signal.metrics[key] for key in sorted(shared)})
        assert_bitwise(one, other)
        if other.divergence_BT is not None:
            assert torch.equal(one.divergence_BT, other.divergence_BT)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_names_the_paper_of_the_docstring(name):
    cited = re.findall(r"arxiv.org/abs/([\d.]+\d)", table()[name][1])
    assert all(f"arXiv {number}" in METHODS[name].__doc__ for number in cited)
    second_hand = "described in" in " ".join(METHODS[name].__doc__.split())
    assert second_hand == ("†" in table()[name][1])
