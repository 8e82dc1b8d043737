"""How the real pair is made. What downloads and trains is nightly."""

import sys

import pytest

from fire_opd_trl.real_pair import models, sums


def test_without_gguf_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install fire-opd-trl\[real-pair\]"):
        models.pair(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing was fetched


def test_what_was_made_is_not_made_again(tmp_path):
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    assert models.pair(tmp_path) == (tmp_path / "student", tmp_path / "teacher")


@pytest.mark.nightly
def test_the_teacher_knows_sums_and_the_student_does_not(tmp_path):
    from statistics import fmean

    from transformers import AutoModelForCausalLM, AutoTokenizer

    def right(folder):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        asked = sums.problems("test", 48)
        chats = [tokenizer.apply_chat_template(sums.chat(n), add_generation_prompt=True)["input_ids"] for n in asked]
        answers = sums.sample(model, tokenizer, chats, temperature=0)
        return fmean(sums.is_correct(str(sum(n)), answer.text) for n, answer in zip(asked, answers, strict=True))

    student, teacher = models.pair(tmp_path)
    assert right(student) < 0.2 and right(teacher) > 0.4  # 5 and 27 of 48 in docs/nightly.md
