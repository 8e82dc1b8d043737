"""The text of each token, as it was generated: bytes that are a part of a character are shown as bytes."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
UNKNOWN = "\ufffd"  # how tokenizers show bytes that are no UTF-8


def characters_of_bytes() -> dict[str, int]:
    """Returns the byte for which each character stands in the vocabulary of a byte-level tokenizer (GPT-2's)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


BYTE_OF = characters_of_bytes()


def with_visible_bytes(content: bytes) -> str:
    """Returns bytes as text; those that are no UTF-8 as `<0xE2>`."""
    text = content.decode("utf-8", errors="surrogateescape")  # such a byte becomes the character U+DC00 + byte
    return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", text)


class TokenTexts:
    """
    The texts of a tokenizer's tokens. Whoever records trajectories makes one; it looks at each id once.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any, fast or slow.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.texts: dict[int, str] = {}
        # Alone, or at the beginning, a token may lose its space; so each is decoded behind another one.
        self.before = tokenizer.encode("0", add_special_tokens=False)[-1:]
        self.text_before = self.decoded([self.before])[0]

    def decoded(self, rows: Sequence[list[int]]) -> list[str]:
        """Returns texts with special tokens and all spaces, without the tidying up of punctuation."""
        decode, options = self.tokenizer.decode, {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [decode(ids, **options) for ids in rows]

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each of the tokens."""
        fresh = sorted(set(ids) - self.texts.keys())
        for token, text in zip(fresh, self.decoded([[*self.before, token] for token in fresh]), strict=True):
            text = text.removeprefix(self.text_before)
            self.texts[token] = self.bytes_of(token) if UNKNOWN in text else text
        return [self.texts[token] for token in ids]

    def bytes_of(self, token: int) -> str:
        """Returns the text of a token that is no whole character, from its name in the vocabulary."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        if byte := BYTE_TOKEN.fullmatch(name):
            return with_visible_bytes(bytes([int(byte[1], 16)]))
        if all(character in BYTE_OF for character in name):
            return with_visible_bytes(bytes(BYTE_OF[character] for character in name))
        return name
