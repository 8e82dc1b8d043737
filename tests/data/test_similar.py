"""Pairs of texts are those that comparing each with each would find."""

import itertools
import random
import time

import pytest
from support.prompt_sets import random_texts, words

from fire_opd_trl.data.similar import FEWEST_WORDS, Triples, held_problems, near_duplicates, numbers_of, words_of


def by_hand(text: str) -> set[tuple[str, ...]]:
    seen = words_of(text)
    return set(zip(seen, seen[1:], seen[2:], strict=False)) if len(seen) >= FEWEST_WORDS else {tuple(seen)} - {()}


def changed(text: str, draw: random.Random) -> str:
    """A text with some words replaced, left out or put in front."""
    parts = text.split()
    for _ in range(draw.randrange(1, 4)):
        parts[draw.randrange(len(parts))] = draw.choice(["", "other", "new words"])
    return draw.choice(["", "Please solve this: "]) + " ".join(parts)


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(5)
    made = [words(seed, draw.choice([1, 4, 7, 8, 9, 20, 40])) + draw.choice(["", " 3", " 4"]) for seed in range(120)]
    return [*made, "", "x", *(changed(draw.choice(made), draw) for _ in range(120))]


@pytest.mark.parametrize("similarity", [0.4, 0.7, 1.0])
def test_near_duplicates_are_those_of_comparing_each_with_each(texts, similarity):
    sets, found = [by_hand(text) for text in texts], {}
    for second in range(len(texts)):
        for first in range(second):
            both = sets[first] | sets[second]
            share = len(sets[first] & sets[second]) / len(both) if both else 0
            if share >= similarity and numbers_of(texts[first]) == numbers_of(texts[second]):
                found[first, second] = share
    seen = near_duplicates(texts, similarity)
    assert seen == pytest.approx({pair: found[pair] for pair in seen})  # none is made up
    assert {later for _, later in seen} == {later for _, later in found} and len(seen) > 5  # and none is missed


@pytest.mark.parametrize("overlap", [0.3, 0.6, 1.0])
def test_held_problems_are_those_of_comparing_each_with_each(texts, overlap):
    problems = [text for text in texts[:60] if text]
    found = {}
    for text, problem in itertools.product(range(len(texts)), range(len(problems))):
        asked = by_hand(problems[problem])
        share = len(by_hand(texts[text]) & asked) / len(asked)
        if share >= overlap:
            found[text, problem] = share
    assert held_problems(texts, problems, overlap) == pytest.approx(found) and len(found) > 30


def test_pairs_that_do_not_fit_into_memory_at_once_are_found_all_the_same(texts, monkeypatch):
    whole = near_duplicates(texts, 0.4), held_problems(texts, texts[:50], 0.3)
    monkeypatch.setattr("fire_opd_trl.data.similar.AT_ONCE", 7)
    assert (near_duplicates(texts, 0.4), held_problems(texts, texts[:50], 0.3)) == whole


def test_typesetting_does_not_count_and_signs_do():
    assert words_of(r"Let $\left(x_1\right)=\dfrac{1}{2}$, so.") == ["let", "x", "1", "=", "frac", "1", "2", "so"]
    assert words_of(r"let (x_{1}) = \frac12") != words_of(r"let (x_{1}) = \frac{1}{2}")  # 12 is a number
    assert words_of("12+34=") != words_of("12-34=")
    assert words_of("ＡＢ") == ["ab"]


def test_the_same_words_with_other_numbers_are_no_near_duplicates():
    template = "A farmer has {} cows and sells {} of them to a neighbour , how many are left on the farm in spring ?"
    texts = [template.format(n, n + 1) for n in range(0, 400, 3)]
    assert near_duplicates(texts, 0.7) == {}
    autumn = near_duplicates([*texts, texts[5].replace("spring", "autumn")], 0.7)
    assert autumn == {(5, len(texts)): pytest.approx(19 / 21)}


def test_an_instruction_that_all_rows_repeat_makes_no_pairs():
    instruction = " ".join(f"rule{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60))
    texts = [f"{instruction} {words(seed, 10)}" for seed in range(300)]
    assert near_duplicates(texts, 0.7) == {}  # each two share 58 of some 70 triples, all of which 300 texts hold
    assert near_duplicates([*texts, texts[7] + " indeed"], 0.7).keys() == {(7, 300)}
    assert (
        len(near_duplicates([text.replace(" ", "  ") + "." * n for n, text in enumerate(texts[:1] * 300)], 0.7)) == 299
    )


def test_nothing_is_found_in_nothing():
    assert near_duplicates([], 0.7) == near_duplicates(["", "."], 0.7) == held_problems([], ["a b"], 0.6) == {}
    assert len(Triples.of([[], list("abcdefgh"), ["a"]]).text_K) == 7


@pytest.mark.nightly
def test_twenty_thousand_prompts_take_seconds():
    texts = random_texts(20_000)
    texts[19_999] = texts[3] + " indeed"
    started = time.process_time()
    assert (3, 19_999) in near_duplicates(texts, 0.7)
    assert {(number, number) for number in range(2000)} <= held_problems(texts, texts[:2000], 0.6).keys()
    assert time.process_time() - started < 60  # 4 s on one core of ours
