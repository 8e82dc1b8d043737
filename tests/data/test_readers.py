"""Who reads the prompts: tokenizers and templates of the student and of its teachers."""

import pytest
from support.inspections import TEACHER
from support.prompt_sets import chat_model

from fire_opd_trl.data.readers import readers_of


ROW = {"prompt": [{"role": "user", "content": "12+3"}], "teacher_id": "b"}


def test_without_a_student_nothing_is_read():
    readers = readers_of(None, {}, None, {})
    assert readers.student.ids([ROW]) == [None] and list(readers.teachers) == ["teacher"]
    assert readers.markers is None and not readers.routed


def test_student_and_teachers_read_with_their_own_tokenizers_and_templates(tmp_path):
    student = chat_model(tmp_path / "student")
    settings = {"teacher_chat_template_kwargs": {"b": {"enable_thinking": True}}}
    readers = readers_of(student, {"a": "", "b": TEACHER}, 7, settings)
    assert readers.routed and readers.student.limit == 7
    (mine,), (same,), (own,) = (reader.ids([ROW]) for reader in (readers.student, *readers.teachers.values()))
    tokenizer = readers.tokenizers["student"]
    assert tokenizer.decode(mine) == "12+3=" and same is None and tokenizer.decode(own) == "12+3,="
    assert [bool(readers.markers.search(text)) for text in ("a <eos>", "1 = 2; 3")] == [True, False]


@pytest.mark.parametrize("option", ["--student", "--teacher"])
def test_a_model_without_a_tokenizer_is_refused_in_one_line(tmp_path, option):
    models = {"--student": ("gone", {}), "--teacher": (chat_model(tmp_path / "s"), {"teacher": "gone"})}
    with pytest.raises(
        ValueError, match=f"^{option} gone: no tokenizer could be loaded.*HF_HUB_OFFLINE is set[^\n]*$"
    ):
        readers_of(*models[option], None, {})
