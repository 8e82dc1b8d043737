"""Text of a model or of a person, such that a terminal or a label shows it and nothing is done by it."""

import re
import unicodedata


FEWEST = 4  # of one special token in a row are folded
SPECIAL = re.compile(rf"(<[^<>\s]{{1,60}}>|\[[A-Z_]{{2,30}}\])\1{{{FEWEST - 1},}}")


def visible(text: str) -> str:
    """
    Returns a text in which signs that are not seen, or that would act, are named: colours of a terminal, line ends,
    and marks that turn the direction of writing. The terminal and the labels of figures use it.
    """
    return "".join(visible_sign(sign) for sign in text)


def visible_sign(sign: str) -> str:
    """Returns one sign, or its name if it is not seen."""
    if sign == "\n":
        return "⏎"
    if sign == "\t":
        return "⇥"
    if sign < " " or sign == "\x7f":
        return chr(0x2400 + ord(sign)) if sign < " " else "␡"
    if unicodedata.category(sign)[0] == "C" or sign in "\u2028\u2029":
        return f"<U+{ord(sign):04X}>"
    return sign


def shortened(text: str, longest: int) -> str:
    """Returns a text of at most so many signs; three dots stand for what is left out."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def token_label(text: str, longest: int = 24) -> str:
    """Returns a token as a figure and a table name it: a space in front or behind is seen, too."""
    bare = text.strip(" ")
    if not bare:
        return "␣" * min(len(text), longest) or "(no text)"
    before, after = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return shortened("␣" * before + visible(bare[: longest + 1]) + "␣" * after, longest)


def folded(prompt: str) -> str:
    """Returns a prompt in which a special token that stands often in a row, as an image's does, is there once."""
    return SPECIAL.sub(lambda found: f"{found[1]} ({len(found[0]) // len(found[1])} of these) ", prompt)
