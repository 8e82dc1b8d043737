"""
Which texts nearly repeat one another, or hold a given problem: a join of sets of word triples, exact and in arrays.

A text becomes the set of its triples of neighbouring words. Only texts that share one of their rarest triples are
compared: two sets that have enough in common to be similar must have one of these in common (a prefix filter). So no
pair is estimated, none is missed by chance, and 100,000 prompts take seconds.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


WORDS = re.compile(r"[^\W_]+|[-+*/=<>^|%!]")
NUMBERS = re.compile(r"\d+")
TYPESETTING = re.compile(r"\\(?:left|right|displaystyle|textstyle|mathrm|text|quad|qquad|[,;:! ])(?![a-z])")
FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
FEWEST_WORDS = 8  # a shorter text is compared as a whole: three of its words say too little
COMMON = 200  # texts: what more of them hold, beside the same numbers, is an instruction, and makes no two alike
AT_ONCE = 1_000_000  # pairs in memory


def words_of(text: str) -> list[str]:
    """Returns the words, numbers and signs of a text, in small letters. How a formula is typeset does not matter."""
    plain = FRACTION.sub(r"\\frac", TYPESETTING.sub(" ", unicodedata.normalize("NFKC", text)))
    return WORDS.findall(plain.lower())


def numbers_of(text: str) -> frozenset[str]:
    """Returns the numbers in a text. The same words with other numbers are another problem."""
    return frozenset(NUMBERS.findall(text))


def hashed(*parts: np.ndarray) -> np.ndarray:
    """Returns a 64-bit number for each place of some arrays, which depends on all of them and on their order."""
    found = np.zeros(len(parts[0]), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            found = (found ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            found ^= found >> np.uint64(29)
    return found


def distinct(values: np.ndarray) -> np.ndarray:
    """Returns the values in order, each once. It sorts: the table of `numpy.unique` takes ten times as long."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


@dataclass(frozen=True)
class Triples:
    """
    The sets of triples of some texts, as two columns in the order of the texts.

    Args:
        text_K (`np.ndarray`): The number of a text.
        triple_K (`np.ndarray`): The number of a triple that it holds.
        size_N (`np.ndarray`): How many triples each text holds.
        count_T (`np.ndarray`): How many texts hold each triple.
    """

    text_K: np.ndarray
    triple_K: np.ndarray
    size_N: np.ndarray
    count_T: np.ndarray

    @classmethod
    def of(cls, texts: list[list[str]]) -> "Triples":
        """Returns the sets of the words of some texts. A short text is one triple, that of texts equal to it."""
        vocabulary: dict[str, int] = {}
        ids: list[int] = []
        lengths: list[int] = []
        whole: list[int] = []
        for words in texts:
            lengths.append(len(words))
            whole.append(hash(tuple(words)) & (2**63 - 1) if len(words) < FEWEST_WORDS else 0)
            ids.extend([vocabulary.setdefault(word, len(vocabulary)) for word in words])
        word_W, length_N = np.array(ids, dtype=np.int64), np.array(lengths, dtype=np.int64)
        left_W = np.repeat(length_N.cumsum(), length_N) - np.arange(len(word_W))  # words to the end of the text
        at = ((left_W > 2) & np.repeat(length_N >= FEWEST_WORDS, length_N)).nonzero()[0]
        long_K = np.repeat(np.arange(len(texts)), length_N)[at]
        short_N = ((length_N > 0) & (length_N < FEWEST_WORDS)).nonzero()[0]
        triples = hashed(word_W[at], word_W[at + 1], word_W[at + 2])
        both = np.concatenate([triples, np.array(whole, dtype=np.uint64)[short_N]])
        return cls.sets(np.concatenate([long_K, short_N]), both, len(texts))

    @classmethod
    def sets(cls, text_K: np.ndarray, triple_K: np.ndarray, texts: int) -> "Triples":
        """Returns the sets of some triples, which may be repeated and in any order."""
        values, number_K = np.unique(triple_K, return_inverse=True)
        pair_K = distinct(text_K.astype(np.int64) * max(1, len(values)) + number_K)
        text_K, number_K = np.divmod(pair_K, max(1, len(values)))
        return cls(
            text_K, number_K, np.bincount(text_K, minlength=texts), np.bincount(number_K, minlength=len(values))
        )

    def rarest(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns texts and triples: of each text the rarest triples, so many that a set with at least a `share` of the
        text's triples has one of these.
        """
        order = np.lexsort((self.count_T[self.triple_K], self.text_K))
        text_K, triple_K = self.text_K[order], self.triple_K[order]
        place_K = np.arange(len(text_K)) - (self.size_N.cumsum() - self.size_N)[text_K]
        enough_N = self.size_N - np.ceil(share * self.size_N - 1e-9).astype(np.int64) + 1
        taken_K = place_K < enough_N[text_K]
        return text_K[taken_K], triple_K[taken_K]

    def shared(self, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        """Returns how many triples the two texts of each pair share."""
        width = max(1, len(self.count_T))
        all_K = self.text_K * width + self.triple_K  # in order
        size_P = self.size_N[first_P]
        pair_Q = np.repeat(np.arange(len(first_P)), size_P)
        inside_Q = np.arange(len(pair_Q)) - np.repeat(size_P.cumsum() - size_P, size_P)
        triple_Q = self.triple_K[(self.size_N.cumsum() - self.size_N)[first_P][pair_Q] + inside_Q]
        asked_Q = second_P[pair_Q] * width + triple_Q
        place_Q = np.minimum(np.searchsorted(all_K, asked_Q), len(all_K) - 1)
        return np.bincount(pair_Q[all_K[place_Q] == asked_Q], minlength=len(first_P))


def candidates(
    left_K: np.ndarray, begin_K: np.ndarray, end_K: np.ndarray, right: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs, each once in a chunk: each of the left with those of the right from its `begin` to its `end`."""
    count_K = end_K - begin_K
    chunk_K = count_K.cumsum() // AT_ONCE
    width = right.max(initial=0) + 1
    for chunk in distinct(chunk_K[count_K > 0]):
        at = (chunk_K == chunk).nonzero()[0]
        left_P = np.repeat(left_K[at], count_K[at])
        inside_P = np.arange(len(left_P)) - np.repeat(count_K[at].cumsum() - count_K[at], count_K[at])
        yield np.divmod(distinct(left_P * width + right[np.repeat(begin_K[at], count_K[at]) + inside_P]), width)


def near_duplicates(texts: list[str], similarity: float) -> dict[tuple[int, int], float]:
    """
    Returns pairs of an earlier and a later text that are nearly the same, with their similarity: they share at least a
    `similarity` of the triples that one of them holds (Jaccard), and have the same numbers. Of texts with the same
    words only the first is compared with others.
    """
    words = [words_of(text) for text in texts]
    first: dict[tuple[str, ...], int] = {}
    same = [first.setdefault(tuple(one), number) for number, one in enumerate(words)]
    found = {(earlier, number): 1.0 for number, earlier in enumerate(same) if earlier != number and words[number]}
    once = np.array(list(first.values()), dtype=np.int64)
    for (one, other), share in alike(
        Triples.of([words[number] for number in once]), [numbers_of(texts[number]) for number in once], similarity
    ).items():
        found[int(once[one]), int(once[other])] = share
    return found


def alike(plain: Triples, numbers: list[frozenset[str]], similarity: float) -> dict[tuple[int, int], float]:
    """Returns all pairs of texts with the same numbers that share at least a `similarity` of their triples."""
    key_N = np.array([hash(one) & (2**63 - 1) for one in numbers], dtype=np.uint64)
    triple_K = hashed(plain.triple_K, key_N[plain.text_K])  # texts with other numbers have no triple in common
    every = Triples.sets(plain.text_K, triple_K, len(numbers))
    rare_K = every.count_T[every.triple_K] <= COMMON
    sets = Triples.sets(every.text_K[rare_K], every.triple_K[rare_K], len(numbers))
    text_K, triple_K = sets.rarest(similarity)
    order = np.lexsort((text_K, triple_K))
    text_K, triple_K = text_K[order], triple_K[order]
    end_K = np.searchsorted(triple_K, triple_K, side="right")
    found: dict[tuple[int, int], float] = {}
    for first_P, second_P in candidates(text_K, np.arange(len(text_K)) + 1, end_K, text_K):
        sizes = sets.size_N[first_P], sets.size_N[second_P]
        near_P = np.minimum(*sizes) >= similarity * np.maximum(*sizes)
        first_P, second_P = first_P[near_P], second_P[near_P]
        shared_P = sets.shared(first_P, second_P)
        share_P = shared_P / (sets.size_N[first_P] + sets.size_N[second_P] - shared_P)
        found |= kept(first_P, second_P, share_P, similarity)
    return found


def held_problems(texts: list[str], problems: list[str], overlap: float) -> dict[tuple[int, int], float]:
    """
    Returns the pairs of a text and a problem of which the text holds at least an `overlap` of the triples, with that
    share. What else the text holds does not matter.
    """
    sets, asked = Triples.of([words_of(text) for text in [*problems, *texts]]), len(problems)
    problem_K, triple_K = sets.rarest(overlap)
    problem_K, triple_K = problem_K[problem_K < asked], triple_K[problem_K < asked]
    there_K = sets.text_K >= asked
    order = np.argsort(sets.triple_K[there_K], kind="stable")
    text_T, sorted_T = sets.text_K[there_K][order], sets.triple_K[there_K][order]
    begin_K, end_K = (np.searchsorted(sorted_T, triple_K, side=side) for side in ("left", "right"))
    found: dict[tuple[int, int], float] = {}
    for problem_P, text_P in candidates(problem_K, begin_K, end_K, text_T):
        share_P = sets.shared(problem_P, text_P) / sets.size_N[problem_P]
        found |= kept(text_P - asked, problem_P, share_P, overlap)
    return found


def kept(first_P: np.ndarray, second_P: np.ndarray, share_P: np.ndarray, least: float) -> dict[tuple[int, int], float]:
    """Returns the pairs whose share is at least as large as it must be."""
    at = share_P >= least - 1e-9
    pairs = zip(first_P[at].tolist(), second_P[at].tolist(), strict=True)
    return dict(zip(pairs, share_P[at].tolist(), strict=True))
