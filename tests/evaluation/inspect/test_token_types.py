"""Every token has one type, by its text and its neighbours."""

import random
import string

import numpy as np
import pytest

from fire_opd_trl.demo.task import working
from fire_opd_trl.evaluation.inspect.token_types import CONNECTIVES, FUNCTION_WORDS, TYPES, types_of, types_of_ids


SHORT = dict(zip(
    ("turn", "grammar", "word", "rest", "letter", "number", "operator", "mark", "space", "symbol", "special", "byte"),
    range(len(TYPES)), strict=True,
))  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "types"),
    [
        # A word has one type, however many tokens it is: the first one has it.
        (["There", "fore", ",", " we", " wait", "ed"], "turn rest mark grammar word rest"),
        (["How", "ever", " hows", "oever", " but", " button"], "turn rest word rest turn word"),
        ([" don", "'t", " it", "’s", " '", "so", "'"], "grammar rest grammar rest mark turn mark"),
        (["\n\nSo", " THE", "refore", ".So", "(because"], "turn turn rest turn turn"),
        (["So", " ", "far", "so"], "turn space word rest"),  # "farso" is a word
        # Mathematics
        ([" x", " =", " 12", ".", "5", " ×", " 3", "4"], "letter operator number mark number operator number number"),
        ([" \\", "frac", "{", "1", "}{", "x", "}", "\\times", "\\text", "{", "so"], (
            "symbol operator symbol number symbol letter symbol operator symbol symbol turn"
        )),
        (["\\", "ti", "mes", " ti", "mes", " \\", "alpha"], "symbol operator rest word rest symbol symbol"),
        ([" π", "≤", "²", " ∈", "->", " 5th", " x2", "½", "°"], (
            "letter operator number operator operator number letter number symbol"
        )),
        ([" x", "-", "y", " well", "-", "known", " a", " -", " b"], (
            "letter operator letter turn mark word grammar operator letter"
        )),
        # Prose and its layout
        (["\n", "-", " One", "\n\n", "*", " two", "\n", "-", "3", " **", "Note", "**", " ---"], (
            "space symbol word space symbol word space operator number symbol word symbol symbol"
        )),
        (["…", " —", " “", "I", "”", "?!", ").", " "], "mark mark mark grammar mark mark mark space"),
        (["é", "cole", " мир", "数", "学", "です", " 한국", "어"], "word rest word word word word word rest"),
        (["कि", "ताब"], "word rest"),  # a sign on a letter goes on with the word
        # Code: what stands between fences is neither connective nor word
        (["```", "python", "\n", "if", " x", " ==", " 1", ":", "\n", "  ", "so", "\n", "```", " if", " x"], (
            "symbol symbol space symbol symbol operator number mark space space symbol space symbol turn letter"
        )),
        (["`", "``", "so", "``", "` so", " ```", "but"], "symbol symbol symbol symbol turn symbol symbol"),
        ([" snake", "_case", " camel", "Case", "{", "\\n", "@", "|"], (
            "word word word rest symbol symbol symbol symbol"
        )),
        # What is no text
        (["<eos>", "<|im_end|>", "</s>", "<｜end▁of▁sentence｜>", "[PAD]", "<think>", ""], " ".join(["special"] * 7)),
        (["<b>", "<", "0", ">"], "letter operator number operator"),  # what looks like one, and is text
        (["<0xE2>", "<0x80>", " <0xF0><0x9F>", "�"], " ".join(["byte"] * 4)),
        (["\x00", "\u202e", "😀", "\t", "\r\n"], "symbol symbol symbol space space"),
        ([], ""),
    ],
)  # fmt: skip
def test_the_type_of_each_token(tokens, types):
    found = [TYPES[kind] for kind in types_of(tokens)]
    assert found == [TYPES[SHORT[name]] for name in types.split()]


def test_the_demo_s_alphabet_has_numbers_operators_marks_and_an_end():
    tokens = [*working(437, 85), "<eos>"]
    assert "".join(tokens) == "7+5+0=12,3+8+1=12,4+0+1=05;522<eos>"
    found = [TYPES[kind] for kind in types_of(tokens)]
    # Three columns of five digits and three signs, two commas and a semicolon, three digits of the sum, and the end.
    counts = {kind: found.count(kind) for kind in set(found)}
    assert counts == {
        "number": 18, "operator or relation": 9, "punctuation": 3, "special or end token": 1,
    }  # fmt: skip


def test_no_word_and_no_fence_goes_from_one_completion_into_the_next():
    vocabulary = [" There", "fore", "```", " so"]
    ids, starts = np.array([0, 1, 0, 1, 2, 3, 3]), np.array([0, 3, 6])
    # There|fore There / fore ``` so / so: the second "fore" begins a completion, and the last "so" lies in no fence.
    expected = ["turn", "rest", "grammar", "word", "symbol", "symbol", "turn"]
    assert types_of_ids(vocabulary, ids, starts).tolist() == [SHORT[name] for name in expected]


def test_many_completions_at_once_are_typed_as_each_by_itself():
    draw = random.Random(0)
    texts = [" so", "so", "the", "-", " x", "12", "\n", "```", "\\", "times", "'s", "<eos>", "é", "数", "", " ", "_"]
    completions = [draw.choices(texts, k=draw.randrange(12)) for _ in range(200)]
    numbers = {text: number for number, text in enumerate(texts)}
    ids = np.array([numbers[text] for tokens in completions for text in tokens])
    starts = np.cumsum([0, *map(len, completions)])[:-1]
    together = types_of_ids(texts, ids, starts).tolist()
    assert together == [kind for tokens in completions for kind in types_of(tokens)]
    assert set(together) == set(range(len(TYPES))) - {SHORT["byte"]}


def test_a_token_of_100_kilobytes_is_typed_like_any_other():
    assert types_of(["x" * 100_000, "so", " so"]).tolist() == [SHORT["word"], SHORT["rest"], SHORT["turn"]]


def test_the_lists_of_words_are_disjoint_and_as_they_are_looked_up():
    assert not CONNECTIVES & FUNCTION_WORDS
    for word in CONNECTIVES | FUNCTION_WORDS:
        assert word == word.lower() and set(word) <= {*string.ascii_lowercase, "'"}
    named_by_the_sources = (
        "wait however unless thus also since because suppose assume given define so therefore but let if"
    )
    assert set(f"{named_by_the_sources} then hence first next".split()) <= CONNECTIVES
