"""The table of what was found."""

import pytest
from support.inspections import (
    ROUTED,
    TEACHER,
    TWO,
    asked,
    looked,
    settings,
    with_template,
    without_weights,
)

from fire_opd_trl.preflight.findings import WIDTH


def test_the_table_has_short_lines_and_no_empty_text():
    for checked in (looked(TWO, ROUTED), looked({"a": TEACHER, "b": "nobody/nothing"}, ROUTED)):
        assert all(finding.text.strip() for finding in checked.findings)
        lines = checked.table().splitlines()
        assert max(map(len, lines)) <= WIDTH == 118
        heads = [line for line in lines if not line.startswith(" ")]
        assert [head.split("  ")[0] for head in heads] == [finding.subject for finding in checked.findings]
        assert " ".join(checked.table().split()) == " ".join(
            " ".join([f.subject, f.outcome, *f.text.split()]) for f in checked.findings
        )


def test_every_fault_is_reported_once_and_none_hides_another(tmp_path):
    small = without_weights(tmp_path / "small", vocab_size=12)
    teachers = {"gone": "nobody/nothing", "small": small, "right": TEACHER}
    rows = [{"prompt": asked("1+1="), "teacher_id": name} for name in ("right", "wrong")]
    config = {"teacher_chat_template": {"right": "own"}, "gradient_accumulation_steps": 4}
    checked = looked(teachers, rows, tokenizer=with_template(), **config)
    faults = {finding.subject: finding.text for finding in checked.findings if finding.outcome == "fault"}
    assert list(faults) == ["teacher gone", "teacher small", "teacher right, prompt", "dataset", "window"]
    assert len(set(checked.faults)) == 5
    assert faults["teacher gone"] == (
        "'nobody/nothing' could not be loaded: it is neither a local folder with a config.json nor a model that can "
        "be reached on the Hub. HF_HUB_OFFLINE is set: only local folders and models in the cache can be loaded."
    )
    assert faults["teacher small"] == (
        "teacher_model 'small' has 12 token rows, too few for the student's id 15 (';'). Use a teacher of the same "
        "tokenizer."
    )
    assert faults["dataset"] == (
        "train_dataset row 1: `teacher_id` is 'wrong'. Each row names one of: gone, small, right."
    )
    assert faults["window"] == (
        "train_dataset has 2 rows, and one window takes 4 prompts. Lower gradient_accumulation_steps or "
        "per_device_train_batch_size, or give more rows."
    )


def test_the_columns_are_three():
    with pytest.raises(ValueError, match="It must be another column than prompt and teacher_column"):
        settings(teacher_prompt_column="prompt")
