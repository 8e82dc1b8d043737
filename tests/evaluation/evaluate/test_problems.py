"""The records of a problem and a task: hashes that depend on nothing but the problems."""

import dataclasses

import pytest

from fire_opd_trl.evaluation.evaluate.problems import Problem, digest, text_id


def test_the_digest_is_of_the_problems_and_their_order_alone():
    one, other = Problem("a", "1+1", ("2",), {"x": 1, "y": 2}), Problem("b", "1+2", ("3",))
    assert digest([one, other]) == digest((Problem("a", "1+1", ("2",), {"y": 2, "x": 1}), other))
    changed = [
        [other, one],
        [one],
        [dataclasses.replace(one, text="1+1 "), other],
        [dataclasses.replace(one, gold=("2", "two")), other],
        [dataclasses.replace(one, fields={"x": 1, "y": 3}), other],
        [dataclasses.replace(one, id="c"), other],
    ]
    hashes = {digest(problems) for problems in [[one, other], *changed]}
    assert len(hashes) == 1 + len(changed) and all(len(found) == 64 for found in hashes)


def test_the_id_of_a_text_is_twelve_digits_and_known():
    assert text_id("343+65=") == "9fb63d6022fb"  # a resumed run of an older version finds its samples by it
    assert text_id("\ud800") != text_id("\ud801")


def test_a_problem_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Problem("a", "1+1").text = "2"
