"""
What is found before a weight is loaded: every fault once and all of them, the window in numbers, whose rows, where
teachers can be. No weight is read anywhere in this file.
"""

import pytest
from datasets import Dataset
from support.inspections import (
    ROUTED,
    ROWS,
    STUDENT,
    TEACHER,
    TWO,
    fault,
    looked,
    said,
    settings,
    with_template,
    without_weights,
)  # fmt: skip

from fire_opd_trl.preflight.inspection import check_inputs
from fire_opd_trl.refusals import chosen_method
from fire_opd_trl.teachers.sources import teacher_sources


# Nothing wrong


def test_of_good_input_nothing_is_wrong_and_all_is_said():
    findings = said(looked(TWO, ROUTED))
    assert {outcome for outcome, _ in findings.values()} == {"ok"}
    assert list(findings) == [
        "student", "precision", "teacher a", "teacher a, tokens", "teacher a, ends", "teacher b",
        "teacher b, tokens", "teacher b, ends", "dataset", "routing", "teacher a, prompt", "teacher b, prompt",
        "window", "work",
    ]  # fmt: skip
    texts = {subject: text for subject, (_, text) in findings.items()}
    # Embedding 16 x 128; a layer: 2 x 128 x 128 + 2 x 128 x 64 attention, 3 x 128 x 384, norms 2 x 128 + 2 x 64; 128.
    parameters = 16 * 128 + 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384 + 2 * 128 + 2 * 64) + 128
    assert parameters == 790_144
    assert texts["teacher a"] == (
        "Qwen3ForCausalLM, 790 k parameters in bfloat16 (1.58 MB), 16 tokens in 16 rows, context 128, ends with 1 "
        "'<eos>'; replicated"
    )
    assert texts["teacher a, tokens"] == "16 of the student's 16 ids mean the same to it"
    assert texts["teacher a, ends"] == "as the student: 1 '<eos>'"
    assert texts["dataset"] == "2 rows, the longest prompt has 8 tokens, completions up to 33"
    assert texts["routing"] == "`teacher_id`: a 1, b 1"


def test_no_weight_is_read(tmp_path):
    student = without_weights(tmp_path / "s", "student")
    teachers = {"a": without_weights(tmp_path / "a"), "b": without_weights(tmp_path / "b")}
    assert looked(teachers, ROUTED, model=student).faults == []


# Everything wrong


def test_without_a_student_the_form_of_prompts_is_checked_all_the_same():
    checked = looked(model="nobody/nothing")
    assert list(said(checked)) == ["student", "the rest", "dataset", "window", "work"] and len(checked.faults) == 1
    assert said(checked)["the rest"] == (
        "warning",
        "nothing is known of the student: of the teachers nothing was checked, of prompts only their form",
    )
    rows = [{"prompt": "1+1="}, {"prompt": ""}]
    assert looked(model="nobody/nothing", rows=rows).faults[1].startswith("train_dataset row 1: `prompt` is empty.")


def test_the_trainer_raises_all_faults_in_one_message():
    args = settings(teacher_chat_template={"teacher": "own"}, gradient_accumulation_steps=4)
    sources = teacher_sources(TEACHER, STUDENT, args, adapted=False)
    method = chosen_method(None, args, rewarded=False)
    with pytest.raises(ValueError, match="(?s)has no chat template of its own.*\n.*one window takes 4 prompts"):
        check_inputs(STUDENT, sources, args, method, Dataset.from_list(ROWS), None, None, {})


def test_what_was_checked_is_printed_unless_switched_off(capsys):
    for preflight in (True, False):
        args = settings(preflight=preflight)
        sources = teacher_sources(TEACHER, STUDENT, args, adapted=False)
        method = chosen_method(None, args, rewarded=False)
        checked = check_inputs(STUDENT, sources, args, method, Dataset.from_list(ROWS), None, None, {})
        assert capsys.readouterr().out == (f"{checked.table()}\n{checked.example}\n" if preflight else "")


# Where teachers can be


def test_sharded_wants_a_sharded_student():
    assert fault(looked(teacher_placement="sharded")) == (
        "teacher_placement='sharded' partitions the teacher as the student is, and the student is whole on every "
        "rank. Launch with ZeRO-3 or FSDP 2 (configs/accelerate/zero3.yaml, fsdp2.yaml), or use 'replicated' or "
        "'offload'."
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"teacher_prompt_column": "hint"},
            "teacher_prompt_column='hint' is no column of the dataset, which has: prompt",
        ),
        ({"teacher_model_init_kwargs": {"dtype": "bf16"}}, "dtype='bf16' is refused. Use 'auto', 'bfloat16'"),
    ],
)
def test_a_setting_that_would_do_nothing_or_fail_late_is_refused(config, message):
    assert fault(looked(**config)).startswith(message)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_user_who_says_nothing_needs_a_picture(streamed):
    def rows(*pictures):
        silent = [{"role": "user", "content": ""}]
        table = Dataset.from_list([{"prompt": silent, "images": list(some)} for some in pictures])
        return table.to_iterable_dataset() if streamed else table

    def faults(dataset):
        checked = looked(rows=dataset, tokenizer=with_template())
        with checked.check("stream"):
            list(checked.train_dataset)
        return checked.faults

    assert faults(rows(["a.png"], ["b.png"])) == []
    assert faults(rows(["a.png"], [])) == [
        "train_dataset row 1: `prompt` is empty: the user says nothing. Remove the row."
    ]
