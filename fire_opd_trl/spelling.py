"""What was probably meant by a word that is none of those it may be."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Returns ` Did you mean 'train'?`, to be put behind a refusal, or nothing where no word is close."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
