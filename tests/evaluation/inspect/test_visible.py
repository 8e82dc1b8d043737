"""Signs that are not seen, or that would act, are named."""

from fire_opd_trl.evaluation.inspect.visible import folded, shortened, token_label, visible


def test_what_is_not_seen_is_named_and_what_is_seen_stays():
    assert visible("a b\n\té数😀") == "a b⏎⇥é数😀"
    assert visible("\x00\x1b[31m\x7f\r") == "␀␛[31m␡␍"
    assert visible("\u202e\u200b\u2028\u00ad\x9b") == "<U+202E><U+200B><U+2028><U+00AD><U+009B>"


def test_a_special_token_that_stands_often_in_a_row_is_folded():
    assert folded("a" + "<|image_pad|>" * 256 + "b") == "a<|image_pad|> (256 of these) b"
    assert folded("[IMG]" * 4 + "[IMG_BREAK]") == "[IMG] (4 of these) [IMG_BREAK]"
    for kept in ("<a><a><a>", "<a><b>" * 9, "((()))) 1111111 [1][1][1][1] <<<<<<<< >>>>>>>>"):
        assert folded(kept) == kept


def test_a_token_s_label_shows_its_spaces_and_is_short():
    assert [token_label(text) for text in (" so", "so ", "  ", "\n", "")] == ["␣so", "so␣", "␣␣", "⏎", "(no text)"]
    assert token_label("x" * 100_000) == "x" * 23 + "…" and len(token_label(" " * 100)) == 24
    assert shortened("abcd", 4) == "abcd" and shortened("abcde", 4) == "abc…"
