"""Hints at what was meant."""

from fire_opd_trl.spelling import did_you_mean


def test_the_closest_word_is_named_and_none_if_none_is_close():
    assert did_you_mean("trian", ["train", "demo"]) == " Did you mean 'train'?"
    assert did_you_mean("sft", ["train", "demo"]) == ""
