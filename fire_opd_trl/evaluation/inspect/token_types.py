"""
What kind of token each one is, by its text and its neighbours, for the question of the paper's Figure 5: which tokens
get the high weights?

Every token has one type. Its first letter or digit decides; without one, it is an operator, a symbol or punctuation.
A word may be several tokens: the first has the type of the whole word, so that `there` of `there|fore` is a
connective, and the others are continuations. Words between fences of code (three backticks) are code. Text alone
cannot tell everything: `since` may mean time or reason, and `a` may be an article or a variable.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np


# In the order of the figures.
TYPES = (
    "connective or decision word",
    "function word",
    "other word",
    "continuation of a word",
    "single letter",
    "number",
    "operator or relation",
    "punctuation",
    "space or new line",
    "code or other symbol",
    "special or end token",
    "fragment of a character",
)
(
    CONNECTIVE, FUNCTION, WORD, CONTINUATION, LETTER, NUMBER, OPERATOR, PUNCTUATION, SPACE, SYMBOL, SPECIAL, FRAGMENT,
) = range(len(TYPES))  # fmt: skip

# Words at which an argument turns or its next step is chosen. They come from three places: the words that Wang et al.
# (arXiv 2506.01939) name among the tokens of the highest entropy (wait, however, unless, thus, also, since, because,
# suppose, assume, given, define); the one-word connectives between clauses of the Penn Discourse TreeBank 2.0, without
# those that more often join words or tell the time (and, or, nor, as, for, when, while, after, before, until, once,
# later, except); and what models write where they choose a step (let, try, hmm, actually, maybe, check, verify, now).
CONNECTIVES = frozenset(
    """
    accordingly actually additionally also alternatively although anyway assume assuming because besides but check
    checking consequently consider considering conversely define despite else finally first firstly further
    furthermore given hence hmm however if indeed instead last lastly let let's lets likewise maybe meanwhile moreover
    namely nevertheless next nonetheless notice now okay otherwise perhaps provided rather recall regardless second
    secondly similarly since so specifically still suppose supposing then therefore third thirdly though thus try
    ultimately unless verify verifying wait well whereas whereby whether why yet
    """.split()
)
# Words that carry grammar: articles, pronouns, prepositions, auxiliaries, and the conjunctions that are not above.
FUNCTION_WORDS = frozenset(
    """
    a about above across after against all along am among an and another any anybody anyone anything are aren't around
    as at be been before behind being below between both by can can't cannot could couldn't did didn't do does doesn't
    doing don't done down during each either enough every everyone everything except few for from had hadn't has hasn't
    have haven't having he he's her here hers herself him himself his how i i'd i'll i'm i've in into is isn't it it's
    its itself just later many may me might more most much must my myself near neither no nobody none nor not nothing
    of off on once only onto or other others our ours ourselves out over own per same shall she she's should shouldn't
    some somebody someone something such than that that's the their theirs them themselves there there's these they
    they're this those through throughout to too toward towards under until up upon us very was wasn't we we'll we're
    we've were weren't what when where which while who whom whose will with within without won't would wouldn't you
    you're your yours yourself
    """.split()
)
# Commands of LaTeX that are operators or relations; all others are symbols.
OPERATORS_OF_LATEX = frozenset(
    """
    times cdot div pm mp frac dfrac tfrac sqrt sum prod int leq le geq ge lt gt neq ne approx equiv sim cong propto to
    rightarrow implies iff in notin subset subseteq cup cap mod bmod pmod log ln exp sin cos tan lim max min
    """.split()
)
OPERATORS, SYMBOLS = frozenset("-*/^%"), frozenset("{}[]\\_`#@$&|~")  # beside what Unicode says of a sign
MARKUP, APOSTROPHES = ("**", "***", "--", "---"), ("'", "’")
NAMES = "eos bos pad unk mask sep cls s eot eod inst think tool_call tool_response start_of_turn end_of_turn"
SPECIAL_TOKEN = re.compile(rf"<[|｜].+[|｜]>|[<\[]/?({'|'.join(NAMES.split())})[>\]]", re.IGNORECASE | re.DOTALL)
BROKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>|\ufffd")
FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
LONGEST = 40  # letters of a word that are read: a token may be 100 kB long


class Shape(NamedTuple):
    """What can be said of a text without its neighbours."""

    kind: int  # its type, if it stands alone
    head: str = ""  # the letters with which it begins: they go on with a word, if the text before it ends in one
    word: str = ""  # the word that decides
    is_open: bool = False  # whether more letters of that word may follow
    command: bool = False  # whether the word follows a backslash


def types_of(tokens: Sequence[str]) -> np.ndarray:
    """Returns the type of each token of a completion, as its number in `TYPES`; for whoever has a list of texts."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(token, len(numbers)) for token in tokens], dtype=np.int64)
    return types_of_ids(list(numbers), ids, np.zeros(1, dtype=np.int64))


def types_of_ids(vocabulary: Sequence[str], ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """
    Returns the type of each token of many completions: the figures call it, for millions of tokens.

    Args:
        vocabulary (`list[str]`): Distinct texts.
        ids (`np.ndarray`): All tokens, one completion after the other, as numbers into `vocabulary`.
        starts (`np.ndarray`): Where in `ids` each completion begins.
    """
    shapes = [shape_of(text) for text in vocabulary]

    def each(values: list) -> np.ndarray:
        return np.array(values, dtype=bool)[ids]

    found = np.array([shape.kind for shape in shapes], dtype=np.int8)[ids]
    first = np.zeros(len(ids) + 1, dtype=bool)
    first[starts] = True

    def follows(flag: np.ndarray) -> np.ndarray:
        """Whether the token before, of the same completion, has a flag."""
        return np.concatenate([[False], flag])[:-1] & ~first[:-1]

    def precedes(flag: np.ndarray) -> np.ndarray:
        """Whether the token after has it."""
        return np.concatenate([flag, [False]])[1:] & ~first[1:]

    has_head = each([shape.head for shape in shapes])
    in_letters = each([is_letter(text[-1:]) for text in vocabulary])
    goes_on = has_head & follows(in_letters)
    command = each([shape.command for shape in shapes])
    command |= has_head & follows(each([text.endswith("\\") for text in vocabulary]))
    is_longer = each([shape.is_open for shape in shapes]) & precedes(goes_on)
    for place in np.flatnonzero(each([shape.word for shape in shapes]) & ~goes_on & (is_longer | command)).tolist():
        found[place] = type_of_word(whole_word(shapes, ids, goes_on, place), bool(command[place]))
    found[goes_on] = CONTINUATION

    minus = each([text.strip(" ") in ("-", "*") for text in vocabulary])
    new_line = follows(each([text.endswith("\n") for text in vocabulary])) | first[:-1]
    bullet = minus & new_line & precedes(each([text.startswith(" ") for text in vocabulary]))
    found[bullet] = SYMBOL
    joins_letters = follows(found == LETTER) & precedes(found == LETTER)
    hyphen = each([text == "-" for text in vocabulary]) & follows(in_letters) & precedes(has_head) & ~joins_letters
    found[hyphen] = PUNCTUATION

    found[inside_fences(vocabulary, ids, starts) & (found <= LETTER)] = SYMBOL
    return found


def is_letter(character: str) -> bool:
    """Whether a character is a letter, or a mark on one, of a script that sets spaces between words."""
    return bool(character) and unicodedata.category(character)[0] in "LM" and not "\u2e80" <= character <= "\ua4cf"


def shape_of(text: str) -> Shape:
    """Returns what can be said of a text by itself."""
    if not text or SPECIAL_TOKEN.fullmatch(text.strip()):
        return Shape(SPECIAL)
    if BROKEN.search(text):
        return Shape(FRAGMENT)
    head = run_of_letters(text, 0)
    if text[0] in APOSTROPHES and (rest := run_of_letters(text, 1)):
        head = text[0] + rest
    begin = next((place for place, character in enumerate(text) if character.isalnum()), None)
    if begin is None:
        return Shape(type_of_signs(text.strip()), head)
    if unicodedata.category(text[begin])[0] != "L":
        return Shape(NUMBER, head)
    word, command = run_of_letters(text, begin), text[:begin].endswith("\\")
    if not word:
        return Shape(WORD)
    end = begin + len(word)
    if text[end : end + 1] in APOSTROPHES and (rest := run_of_letters(text, end + 1)):
        word, end = word + text[end] + rest, end + 1 + len(rest)
    return Shape(type_of_word(word, command), head, word, end == len(text), command)


def run_of_letters(text: str, begin: int) -> str:
    """Returns the letters of a text from a place on, or as many as are read."""
    return "".join(takewhile(is_letter, text[begin : begin + LONGEST]))


def type_of_signs(text: str) -> int:
    """Returns the type of a text without letters and digits."""
    signs = {sign: unicodedata.category(sign) for sign in text}
    if not signs:
        return SPACE
    if text in MARKUP:
        return SYMBOL
    if any(sign in OPERATORS or category == "Sm" and sign not in SYMBOLS for sign, category in signs.items()):
        return OPERATOR
    return PUNCTUATION if all(c[0] in "PZ" and sign not in SYMBOLS for sign, c in signs.items()) else SYMBOL


def type_of_word(word: str, command: bool) -> int:
    """Returns the type of a whole word."""
    word = word.lower().replace("’", "'")
    if command:
        return OPERATOR if word in OPERATORS_OF_LATEX else SYMBOL
    if word in CONNECTIVES:
        return CONNECTIVE
    if word in FUNCTION_WORDS:
        return FUNCTION
    return LETTER if len(word) == 1 else WORD


def whole_word(shapes: Sequence[Shape], ids: np.ndarray, goes_on: np.ndarray, place: int) -> str:
    """Returns the word that begins at a token, with the letters of the tokens that go on with it."""
    word = shapes[ids[place]].word
    for following in range(place + 1, len(ids)):
        if not goes_on[following] or len(word) >= LONGEST:
            break
        word += shapes[ids[following]].head
    return word


def inside_fences(vocabulary: Sequence[str], ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns which tokens lie between three backticks and the next three, or the end of their completion."""
    inside = np.zeros(len(ids), dtype=bool)
    ticks = np.array(["`" in text for text in vocabulary], dtype=bool)[ids]
    ends = [*starts[1:], len(ids)]
    for number in np.unique(np.searchsorted(starts, np.flatnonzero(ticks), side="right")) - 1:
        texts = [vocabulary[token] for token in ids[starts[number] : ends[number]]]
        text = "".join(texts)
        in_fence = np.zeros(len(text) + 1, dtype=bool)
        for fence in FENCED.finditer(text):
            in_fence[fence.start() : fence.end()] = True
        inside[starts[number] : ends[number]] = in_fence[np.cumsum([len(token) for token in texts]) - 1]
    return inside
