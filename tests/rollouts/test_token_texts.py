"""The texts of tokens are exact: put together they are what was generated, to the byte."""

import re

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fire_opd_trl.demo.task import build_tokenizer
from fire_opd_trl.rollouts.token_texts import BYTE_OF, TokenTexts, with_visible_bytes


TEXTS = [
    "The sum of 12 and 7 is 19, so we check again. It isn't  right .",
    "héllo wörld, ñandú, ﬁ",
    "数学是很有趣的。数学",
    "שלום עולם مرحبا",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f600\ufffd",
    "tab\tnew\nline  two   spaces ",
]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen have it: trained here, so that few characters are whole tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_end|>", "<｜end▁of▁sentence｜>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])
    fast.add_tokens(["<think>", " added "])
    return fast


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral and Gemma have it: a space is `▁`, and an unknown character is its bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz019"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("s", "u"), ("su", "m")]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def restored(texts: list[str]) -> str:
    """The texts put together, and visible bytes made bytes again."""
    pieces = re.split(r"<0x([0-9A-F]{2})>", "".join(texts))
    content = b"".join(bytes([int(p, 16)]) if n % 2 else p.encode() for n, p in enumerate(pieces))
    return content.decode(errors="replace")


@pytest.mark.parametrize("build", [byte_level, byte_fallback, build_tokenizer])
def test_the_texts_of_tokens_make_up_what_was_generated(build):
    tokenizer, split = build(), 0
    texts = TokenTexts(tokenizer)
    for text in [*TEXTS, "".join(TEXTS), "".join(token for token in tokenizer.all_special_tokens)]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = texts(ids)
        assert len(pieces) == len(ids)
        decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if build is byte_fallback and text[0] != "<":
            decoded = " " + decoded  # sentencepiece hides the first space; behind a prompt it is there
        assert restored(pieces) == decoded
        split += sum("<0x" in piece for piece in pieces)
        if "<0x" not in "".join(pieces):
            assert "".join(pieces) == decoded
    assert (split > 20) == (build is not build_tokenizer)


def test_half_a_character_is_shown_as_its_bytes():
    tokenizer = byte_level()
    ids = tokenizer.convert_tokens_to_ids(["Ġ", "a", "â", "Ģ", "<think>", " added ", "<｜end▁of▁sentence｜>", "Ċ"])
    assert TokenTexts(tokenizer)(ids) == [
        " ", "a", "<0xE2>", "<0x80>", "<think>", " added ", "<｜end▁of▁sentence｜>", "\n",
    ]  # fmt: skip
    assert with_visible_bytes("é".encode() + b"\xff<0xE2>" + "数".encode()[:2]) == "é<0xFF><0xE2><0xE6><0x95>"
    assert TokenTexts(byte_fallback())([3 + 0x41, 3 + 0xE2, 3 + 0x0A]) == ["A", "<0xE2>", "\n"]


def test_every_byte_has_the_character_of_byte_level_tokenizers():
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    content = "".join(TEXTS)
    shown = "".join(piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(content))
    assert bytes(BYTE_OF[character] for character in shown) == content.encode()


def test_an_id_beyond_the_tokenizer_has_no_text():
    """A student padded to more rows than its tokenizer has tokens can sample one."""
    assert TokenTexts(build_tokenizer())([2, 999]) == [build_tokenizer().decode([2]), ""]
