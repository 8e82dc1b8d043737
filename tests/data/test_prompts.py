"""One prompt: what the user says in it, and what is odd about it."""

import re

import pytest

from fire_opd_trl.data.prompts import contents, form_of, oddities, text_of


def asked(text):
    return [{"role": "user", "content": text}]


def test_the_problem_is_what_the_user_says():
    chat = [
        {"role": "system", "content": "Be short."},
        *asked("One."),
        {"role": "assistant", "content": "?"},
        *asked("Two."),
    ]
    assert text_of(chat) == "One.\nTwo." and text_of("One. ") == "One."
    boxed = "Please reason step by step, and put your final answer within \\boxed{}."
    assert text_of(asked(f"What is 1+1?\n{boxed}")) == "What is 1+1?"
    assert text_of(asked([{"type": "image"}, {"type": "text", "text": "What is it?"}])) == "What is it?"
    assert text_of([{"role": "system", "content": "alone"}]) == "alone"
    assert [form_of(one) for one in ("a", asked("a"), [], 5, None)] == ["text", "chat", "other", "other", "other"]
    assert contents(5) == contents([5]) == contents(asked(None)) == []


@pytest.mark.parametrize(
    ("prompt", "answer", "kinds"),
    [
        (asked("What is 12 times 34?"), "408", {}),
        (asked("What is 12 times 34? "), None, {"spaces": "times 34? '"}),
        ("\nWhat?", None, {"spaces": "'\\nWhat?'"}),
        (asked("<|im_start|>user What?"), None, {"special tokens": "'<|im_start|>'"}),
        (asked("It is 12345678, is it?"), 12345678, {"answers": "'12345678'"}),
        (asked("It is 123, is it?"), "123", {}),  # too short to mean anything
        (asked("caf\ufffd"), None, {"signs": "'\ufffd'"}),
        (asked("\x0crac{1}{2}"), None, {"signs": "'\\x0c'", "spaces": "\\x0c"}),
        ('[{"role": "user", "content": "What?"}]', None, {"messages as text": "save it as JSONL"}),
        (asked(5), None, {"cells": "no text"}),
    ],
)
def test_what_is_odd_is_said_with_what_was_seen(prompt, answer, kinds):
    found = oddities(prompt, answer, re.compile(r"<\|im_start\|>"))
    assert found.keys() == kinds.keys()
    for kind, seen in kinds.items():
        assert seen in found[kind]
