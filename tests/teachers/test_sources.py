"""Which teachers there are, by name, and their settings."""

import json
import re

import pytest
from support.inspections import (
    ROUTED,
    STUDENT,
    TEACHER,
    TWO,
    asked,
    fault,
    looked,
    said,
    settings,
    with_template,
)

from fire_opd_trl.teachers.sources import teacher_sources


@pytest.mark.parametrize("name", ["student", "reference"])
def test_names_of_other_models_are_taken(name):
    message = f"teacher_model: a teacher may not be called {name!r}, which names another model in the logs."
    with pytest.raises(ValueError, match=re.escape(message)):
        looked({name: TEACHER})


def test_a_teacher_is_needed_and_is_named_once():
    with pytest.raises(ValueError, match="teacher_model is missing: distillation needs a teacher"):
        looked(None)
    with pytest.raises(ValueError, match="teacher_model is missing"):
        looked({})
    with pytest.raises(ValueError, match="Name the teacher in one place"):
        looked(TEACHER, teacher_model_name_or_path=TEACHER)


def test_the_config_names_several_teachers_as_a_dict_or_as_json():
    for teachers in (TWO, json.dumps(TWO)):
        assert (
            said(looked(None, ROUTED, teacher_model_name_or_path=teachers))["routing"][1] == "`teacher_id`: a 1, b 1"
        )
    for wrong in ({}, {"a": ""}, {"a": {"b": "c"}}):
        with pytest.raises(ValueError, match="Give each teacher a name, and a model id or a local folder."):
            settings(teacher_model_name_or_path=wrong)


def test_self_without_an_adapter_is_refused():
    message = (
        "teacher_model='self' is the student with its adapter switched off, and this student has none: it would be "
        "its own teacher, with nothing to learn. Pass a peft_config, or name a teacher."
    )
    for teacher in ("self", {"a": TEACHER, "b": "self"}):
        with pytest.raises(ValueError, match=re.escape(message)):
            looked(teacher)
    assert said(looked("self", others={"peft_config": object()}))["teacher"] == (
        "ok", "the student with its adapter switched off: no second model"
    )  # fmt: skip


def test_revisions_of_several_teachers_are_given_by_name():
    config = {"teacher_model_name_or_path": TWO}
    for wrong in ("main", {"c": "main"}):
        message = (
            f"teacher_model_revision={wrong!r} is refused. With several teachers give a dict with these keys: a, b."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            settings(**config, teacher_model_revision=wrong)
    args = settings(**config, teacher_model_revision={"b": "v2"})
    sources = teacher_sources(None, STUDENT, args, adapted=False)
    assert [source.hub["revision"] for source in sources.values()] == [None, "v2"]


@pytest.mark.parametrize(
    "field", ["teacher_chat_template", "teacher_chat_template_kwargs", "teacher_model_init_kwargs"]
)
def test_a_setting_by_name_that_names_no_teacher_is_refused(field):
    """A slip in one name must not turn the settings of all teachers into variables of a template."""
    value = "{{ messages }}" if field == "teacher_chat_template" else {"dtype": "float32"}
    rows = [{**row, "prompt": asked(row["prompt"])} for row in ROUTED]
    with pytest.raises(ValueError, match="(?s)c.*a, b"):
        checked = looked(TWO, rows, **{field: {"a": value, "c": value}}, tokenizer=with_template())
        raise ValueError("\n".join(checked.faults))


@pytest.mark.parametrize("teacher", [None, ["a"], 3, ""])
def test_what_is_no_teacher_is_refused(teacher):
    with pytest.raises(ValueError, match="teacher_model 'a' is .*Give a model id, a local folder, or a model"):
        teacher_sources({"a": teacher}, STUDENT, settings(), adapted=False)


def test_one_teacher_with_a_name_takes_no_rows_of_another():
    rows = [{"prompt": "1+1=", "teacher_id": name} for name in ("math", "code")]
    assert fault(looked({"math": TEACHER}, rows=rows)) == (
        "train_dataset row 1: `teacher_id` is 'code'. Each row names one of: math."
    )
    assert not looked({"math": TEACHER}, rows=[{"prompt": "1+1="}]).faults  # without the column there is no doubt
    assert not looked(rows=rows).faults  # nor where the teacher has no name
