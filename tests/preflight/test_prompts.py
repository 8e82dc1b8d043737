"""One prompt as each model sees it."""

import pytest
from support.inspections import ROUTED, TWO, asked, fault, looked, said, with_template


def test_one_prompt_of_each_teacher_is_shown_as_each_model_sees_it():
    rows = [{**ROUTED[0], "teacher_prompt": "46;12+34="}, {**ROUTED[1], "teacher_prompt": None}]
    assert looked(TWO, rows).example == (
        "\na prompt as the student sees it: 6 tokens, '12+34='\n"
        "and as teacher a sees it:        9 tokens, '46;12+34='\n"
        "\na prompt as the student sees it: 8 tokens, '123+456='\n"
        "and as teacher b sees it:        the same tokens"
    )


def test_the_example_is_attributed_to_its_own_teacher_where_another_has_no_view():
    rows = [{**row, "prompt": asked(row["prompt"])} for row in ROUTED]
    checked = looked(TWO, rows, tokenizer=with_template(), teacher_chat_template={"a": "own"})
    assert [f.subject for f in checked.findings if f.outcome == "fault"] == ["teacher a, prompt"]
    assert "teacher a sees it" not in checked.example
    assert "'123+456==;'\nand as teacher b sees it:        the same tokens" in checked.example


def test_variables_of_a_template_that_renders_nothing_are_warned_of():
    variables = {"chat_template_kwargs": {"enable_thinking": False}}
    outcome, text = said(looked(rows=[{"prompt": "1+1="}], **variables))["student, prompt"]
    assert outcome == "warning" and "{'enable_thinking': False} has no effect: the prompts are texts" in text
    outcome, text = said(looked(rows=[{"prompt": "1+1="}], tokenizer=with_template()))["student, prompt"]
    assert (outcome, text[:23]) == ("warning", "the prompts are texts, ")
    chats = looked(rows=[{"prompt": asked("1+1=")}], tokenizer=with_template(), **variables)
    assert "student, prompt" not in said(chats)


@pytest.mark.parametrize("where", ["prompt", "teacher_prompt"])
def test_messages_without_a_template_are_refused_with_whose_and_what_to_do(where):
    rows = [{"prompt": "1+1=", where: asked("1+1=")}]
    whose = "the student's tokenizer" if where == "prompt" else "the tokenizer of teacher 'teacher'"
    assert fault(looked(rows=rows)) == (
        f"the prompts are messages, and {whose} has no chat template that could render them. Give the "
        "prompts as texts, or put the template of a model of its kind beside the tokenizer's files, as "
        "chat_template.jinja; in Python, pass a processing_class whose tokenizer.chat_template is set."
    )
