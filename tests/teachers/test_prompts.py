"""
What a teacher reads before the student's answer. Whatever that is, it scores the student's very tokens: every score of
every token is compared with the model run alone, in float64, on the literal prompt and the literal completion.
"""

import re
import shutil

import pytest
import torch
from support.dense import TOP_K, dense_eopd, dense_fire_full, dense_opd_full, dense_tip
from support.inspections import asked, fault, looked, said
from support.prompts import HINTED, HINTS, PROMPTS, STUDENT, TEACHER, frozen, scores_of, trainer_of, window
from transformers import AutoModelForCausalLM, AutoTokenizer


BUDGETS = [1, 150, 10_000]  # padded tokens in one forward: each row alone, some together, all together


def ids_of(text: str) -> list[int]:
    """By hand: `<pad>`, `<eos>`, and then one id a character."""
    return [2 + "0123456789+=,;".index(character) for character in text]


@pytest.fixture(scope="module")
def models():
    names = {"student": STUDENT, "teacher": TEACHER}
    return {n: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for n, path in names.items()}


def alone(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """All log-probabilities at each token of a completion after a prompt, without padding or neighbours."""
    ids = torch.tensor([prompt + completion])
    return model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)


def entropy(logp_TV: torch.Tensor) -> torch.Tensor:
    return -(logp_TV.exp() * logp_TV).sum(dim=-1)


# float32 against float64: the error grows with the log-probability. One processor gave 1.007e-4 at -1.89.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def assert_scored(scores, student: list[str], teacher: list[str], models, owners=("teacher",) * 8) -> None:
    """Each row: the student after its prompt, and its teacher after its own, token by token."""
    for row, completion in enumerate(frozen()):
        sampled = torch.tensor(completion).unsqueeze(1)
        for prompt, model, logp_BT, entropy_BT in (
            (student[row], models["student"], scores.student_logp_BT, scores.student_entropy_BT),
            (teacher[row], models[owners[row]], scores.teacher_logp_BT, scores.teacher_entropy_BT),
        ):
            with torch.no_grad():
                logp_TV = alone(model, ids_of(prompt), completion)
            length = len(completion)
            expected = logp_TV.gather(1, sampled).squeeze(1)
            torch.testing.assert_close(logp_BT[row, :length].double(), expected, **ROUNDING)
            torch.testing.assert_close(entropy_BT[row, :length].double(), entropy(logp_TV), **ROUNDING)


def routed(rows: list[dict]) -> list[dict]:
    return [{**row, "teacher_id": "ab"[number % 2]} for number, row in enumerate(rows)]


READ = [row["teacher_prompt"] for row in HINTED]


# A prompt for the teacher alone


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_token_is_scored_after_each_models_own_prompt(budget, models, tmp_path):
    assert_scored(scores_of(tmp_path, HINTED, budget=budget), PROMPTS, READ, models)


@pytest.mark.parametrize("budget", BUDGETS)
def test_each_of_two_teachers_reads_its_own_rows_prompts(budget, models, tmp_path):
    scores = scores_of(tmp_path, routed(HINTED), teacher={"a": TEACHER, "b": STUDENT}, budget=budget)
    assert_scored(scores, PROMPTS, READ, models, owners=("teacher", "student") * 4)


def test_the_hints_make_a_difference(models, tmp_path):
    scores = scores_of(tmp_path, HINTED)
    with pytest.raises(AssertionError, match="not close"):
        assert_scored(scores, PROMPTS, PROMPTS, models)
    with pytest.raises(AssertionError, match="not close"):
        assert_scored(scores, READ, READ, models)


def test_a_row_without_a_prompt_for_the_teacher_is_read_as_the_student_reads_it(models, tmp_path):
    rows = [{**row, "teacher_prompt": row["teacher_prompt"] if n % 3 else None} for n, row in enumerate(HINTED)]
    read = [row["teacher_prompt"] or row["prompt"] for row in rows]
    assert_scored(scores_of(tmp_path, rows), PROMPTS, read, models)


def test_prompts_for_the_teacher_may_be_shorter(models, tmp_path):
    rows = [{"prompt": long, "teacher_prompt": short} for long, short in zip(READ, PROMPTS, strict=True)]
    assert_scored(scores_of(tmp_path, rows), READ, PROMPTS, models)


def test_another_column_can_hold_it(models, tmp_path):
    rows = [{"prompt": row["prompt"], "hint": row["teacher_prompt"], "teacher_prompt": "1"} for row in HINTED]
    assert_scored(scores_of(tmp_path, rows, teacher_prompt_column="hint"), PROMPTS, READ, models)


def test_another_hint_changes_its_own_row_alone(tmp_path):
    rows = [*HINTED[:2], {**HINTED[2], "teacher_prompt": "975;975;975;975;123+456="}, *HINTED[3:]]
    before, after = scores_of(tmp_path, HINTED), scores_of(tmp_path, rows)
    for name in ("teacher_logp_BT", "teacher_entropy_BT"):
        moved_B = (getattr(before, name) - getattr(after, name)).abs().amax(dim=1)
        assert moved_B[2] > 1e-2 and moved_B[[0, 1, 3, 4, 5, 6, 7]].max() < 1e-5
    for name in ("student_logp_BT", "student_entropy_BT"):
        torch.testing.assert_close(getattr(before, name), getattr(after, name), rtol=0, atol=1e-6)


def test_a_prompt_that_is_the_students_own_changes_nothing_to_the_bit(tmp_path):
    plain = [{"prompt": prompt} for prompt in PROMPTS]
    same = [{"prompt": prompt, "teacher_prompt": prompt} for prompt in PROMPTS]
    one, other = scores_of(tmp_path, plain), scores_of(tmp_path, same)
    assert torch.equal(one.teacher_logp_BT, other.teacher_logp_BT)


def test_evaluation_reads_the_teachers_prompts_too(models, tmp_path):
    trainer = trainer_of(tmp_path, HINTED, per_device_eval_batch_size=8)
    answers = {tuple(ids_of(prompt)): completion for prompt, completion in zip(PROMPTS, frozen(), strict=True)}
    trainer._generate_single_turn = lambda prompts, *_, **__: ([answers[tuple(ids)] for ids in prompts], None)
    metrics = trainer.evaluate(trainer.train_dataset)  # in an order of its own
    rows = []
    with torch.no_grad():
        for prompt, read, completion in zip(PROMPTS, READ, frozen(), strict=True):
            sampled = torch.tensor(completion).unsqueeze(1)
            s = alone(models["student"], ids_of(prompt), completion)
            t = alone(models["teacher"], ids_of(read), completion)
            rows.append((s - t).gather(1, sampled).mean())
    rows[1] = 0 * rows[1]  # nothing but its end token: an empty row
    assert metrics["eval_loss"] == pytest.approx(torch.stack(rows).mean().item(), abs=1e-4)


# Whole distributions


@pytest.mark.parametrize(
    ("method", "dense", "kwargs"),
    [
        ("opd_full", dense_opd_full, {}),
        ("tip", dense_tip, {}),
        ("fire_full", dense_fire_full, {}),
        ("eopd", dense_eopd, {"threshold": 0.02, "top_k": TOP_K}),
    ],
)
@pytest.mark.parametrize("two_teachers", [False, True])
def test_losses_over_the_vocabulary_and_their_gradients_are_those_of_a_dense_computation(
    method, dense, kwargs, two_teachers, tmp_path
):
    teacher = {"a": TEACHER, "b": STUDENT} if two_teachers else TEACHER
    config = {"method": method, "method_kwargs": kwargs, "teacher": teacher}
    trainer = trainer_of(tmp_path, routed(HINTED) if two_teachers else HINTED, **config)
    batch, _ = window(trainer)
    loss = sum(trainer.compute_loss(trainer.model, part) for part in trainer._micro_batches(dict(batch)))
    loss.backward()

    student, other, base = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (STUDENT, STUDENT, TEACHER)
    )
    rows = []
    for row, completion in enumerate(frozen()):
        if set(completion) == {1}:  # nothing but its end
            continue
        s = alone(student, ids_of(PROMPTS[row]), completion)
        t = alone(other if two_teachers and row % 2 else base, ids_of(READ[row]), completion).detach()
        rows.append((row, torch.tensor(completion), s, t))
    expected = dense(rows)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    largest = max(parameter.grad.abs().max().item() for parameter in student.parameters())
    for (name, ours), theirs in zip(trainer.model.named_parameters(), student.parameters(), strict=True):
        assert (ours.grad.double() - theirs.grad).abs().max().item() < 1e-4 * largest, name


# Conversations


TEMPLATE = (
    "{% for message in messages %}{{ {'system': ';;', 'user': ','}[message['role']] + message['content'] }}"
    "{% endfor %}{% if enable_thinking %}==;{% endif %}{% if add_generation_prompt %}={% endif %}"
)


OTHER = "{% for message in messages %}0{{ message['content'] }}{% endfor %};{{ '9' * (nines or 0) }}"


CHATS = [{"prompt": asked(prompt)} for prompt in PROMPTS]


def templated(template: str = TEMPLATE):
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    tokenizer.chat_template = template
    return tokenizer


def teacher_with(template: str, folder) -> str:
    """The embedded teacher with a chat template of its own."""
    shutil.copytree(TEACHER, folder)
    templated(template).save_pretrained(folder)
    return str(folder)


def chat_scores(folder, rows=CHATS, **kwargs):
    return scores_of(folder, rows, tokenizer=templated(), **kwargs)


STUDENTS = [f",{prompt}=" for prompt in PROMPTS]


THINKING = [f",{prompt}==;=" for prompt in PROMPTS]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_teacher_thinks_and_the_student_does_not(budget, models, tmp_path):
    scores = chat_scores(
        tmp_path, budget=budget, chat_template_kwargs={"enable_thinking": False},
        teacher_chat_template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    assert_scored(scores, STUDENTS, THINKING, models)


def test_the_student_thinks_and_the_teacher_does_not(models, tmp_path):
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}, "teacher_chat_template_kwargs": {"unread": 1}}
    assert_scored(chat_scores(tmp_path, **kwargs), THINKING, STUDENTS, models)


def test_without_a_setting_the_teacher_reads_the_students_tokens(models, tmp_path):
    scores = chat_scores(tmp_path, chat_template_kwargs={"enable_thinking": True})
    assert_scored(scores, THINKING, THINKING, models)


def test_each_teacher_has_its_own_variables(models, tmp_path):
    kwargs = {"a": {"enable_thinking": True}, "b": {"enable_thinking": False}}
    teachers = {"a": TEACHER, "b": STUDENT}
    scores = chat_scores(tmp_path, routed(CHATS), teacher=teachers, teacher_chat_template_kwargs=kwargs)
    read = [(STUDENTS if row % 2 else THINKING)[row] for row in range(8)]
    assert_scored(scores, STUDENTS, read, models, owners=("teacher", "student") * 4)


def test_a_setting_for_one_teacher_leaves_the_other_as_it_was(models, tmp_path):
    teachers, kwargs = {"a": TEACHER, "b": STUDENT}, {"b": {"enable_thinking": True}}
    scores = chat_scores(tmp_path, routed(CHATS), teacher=teachers, teacher_chat_template_kwargs=kwargs)
    read = [(THINKING if row % 2 else STUDENTS)[row] for row in range(8)]
    assert_scored(scores, STUDENTS, read, models, owners=("teacher", "student") * 4)


@pytest.mark.parametrize("form", ["text", "file", "own"])
def test_a_template_is_a_text_a_file_or_the_teachers_own(form, models, tmp_path):
    path = tmp_path / "other.jinja"
    path.write_text(OTHER, encoding="utf-8")
    teacher = teacher_with(OTHER, tmp_path / "teacher") if form == "own" else TEACHER
    scores = chat_scores(
        tmp_path, teacher=teacher, teacher_chat_template={"text": OTHER, "file": str(path), "own": "own"}[form],
        teacher_chat_template_kwargs={"nines": 2},
    )  # fmt: skip
    assert_scored(scores, STUDENTS, [f"0{prompt};99" for prompt in PROMPTS], models)


def test_a_template_without_variables_of_its_own_has_the_students(models, tmp_path):
    scores = chat_scores(tmp_path, teacher_chat_template=OTHER, chat_template_kwargs={"nines": 3})
    assert_scored(scores, STUDENTS, [f"0{prompt};999" for prompt in PROMPTS], models)


def test_each_teacher_has_its_own_template(models, tmp_path):
    teachers = {"a": TEACHER, "b": teacher_with(OTHER, tmp_path / "teacher")}
    scores = chat_scores(tmp_path, routed(CHATS), teacher=teachers, teacher_chat_template={"b": "own"})
    read = [f"0{prompt};" if row % 2 else STUDENTS[row] for row, prompt in enumerate(PROMPTS)]
    assert_scored(scores, STUDENTS, read, models)


def test_messages_for_the_teacher_alone_are_rendered_and_texts_are_taken_as_they_are(models, tmp_path):
    rows, read = [], []
    for row, (prompt, hint) in enumerate(zip(PROMPTS, HINTS, strict=True)):
        rows.append({**CHATS[row], "teacher_prompt": [{"role": "system", "content": hint}, *asked(prompt)]})
        read.append(f";;{hint},{prompt}=")
    rows[3]["teacher_prompt"], read[3] = None, STUDENTS[3]
    assert_scored(chat_scores(tmp_path, rows), STUDENTS, read, models)
    texts = [{**CHATS[row], "teacher_prompt": hint + "=="} for row, hint in enumerate(HINTS)]
    thinks = {"teacher_chat_template_kwargs": {"enable_thinking": True}}
    assert_scored(chat_scores(tmp_path, texts, **thinks), STUDENTS, [hint + "==" for hint in HINTS], models)


def test_messages_for_the_teacher_alone_are_rendered_with_its_own_template(models, tmp_path):
    rows = [{**CHATS[row], "teacher_prompt": asked(f"{hint}{PROMPTS[row]}")} for row, hint in enumerate(HINTS)]
    scores = chat_scores(tmp_path, rows, teacher_chat_template=OTHER, teacher_chat_template_kwargs={"nines": 1})
    assert_scored(scores, STUDENTS, [f"0{text};9" for text in READ], models)


# What is refused


THINKS = {"teacher_chat_template_kwargs": {"enable_thinking": True}}


IMAGES = [{**CHATS[0], "images": []}]


HINTED_TWO = [{"prompt": "1+1=", "teacher_prompt": hint} for hint in ("2;1+1=", "1+1=")]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"teacher_chat_template": TEMPLATE}, "teacher_chat_template"),
        (THINKS, "teacher_chat_template_kwargs"),
        ({"teacher_chat_template": TEMPLATE, **THINKS}, "teacher_chat_template, teacher_chat_template_kwargs"),
    ],
)
def test_a_template_on_texts_is_refused(config, what):
    assert fault(looked(**config)) == (
        f"{what} has no effect: the prompts are texts, which no chat template renders. Give `prompt` or "
        "'teacher_prompt' as messages, or remove it."
    )


def test_a_template_on_texts_is_refused_where_the_teachers_prompts_are_texts_too():
    assert "has no effect" in fault(looked(rows=HINTED_TWO, **THINKS))


@pytest.mark.parametrize("template", ["chatml", "gone.jinja"])
def test_a_template_that_is_neither_a_file_nor_a_template_is_refused(template):
    checked = looked(rows=CHATS, tokenizer=templated(), teacher_chat_template=template)
    assert fault(checked) == (
        f"teacher_chat_template={template!r} is neither a file nor a template. Give 'own', the path of a .jinja file, "
        "or the text of a template."
    )


def test_own_wants_a_template_of_the_teachers():
    assert fault(looked({"a": TEACHER}, CHATS, tokenizer=templated(), teacher_chat_template="own")) == (
        "teacher_chat_template='own': teacher 'a' has no chat template of its own. Give a template (a .jinja file or "
        "its text), or leave it unset: the teacher then reads the student's prompt."
    )


@pytest.mark.parametrize("template", ["{% if messages %}", "{{ raise_exception('no system role') }}"])
def test_a_template_that_does_not_render_is_a_fault_like_any_other(template):
    checked = looked(rows=CHATS, tokenizer=templated(), teacher_chat_template=template, gradient_accumulation_steps=99)
    assert len(checked.faults) == 2 and "one window takes 99 prompts" in checked.faults[1]


def test_columns_that_trl_would_remove_are_refused():
    message = (
        "remove_unused_columns=True would remove {}, which says whose teacher a row has, or what it reads. Set it to "
        "False."
    )
    assert fault(looked(rows=HINTED_TWO, remove_unused_columns=True)) == message.format("'teacher_prompt'")
    both = [{**row, "teacher_id": "a"} for row in HINTED_TWO]
    checked = looked({"a": TEACHER, "b": TEACHER}, both, remove_unused_columns=True)
    assert fault(checked) == message.format("'teacher_id', 'teacher_prompt'")
    assert looked(remove_unused_columns=True).faults == []


def test_an_environment_leaves_no_room_for_another_prompt():
    others = {"environment_factory": object}
    message = "an environment writes the prompts as it goes, so the teacher can have no other."
    checked = looked(rows=CHATS, tokenizer=templated(), others=others, **THINKS)
    assert fault(checked) == f"teacher_chat_template_kwargs: {message}"
    assert fault(looked(rows=HINTED_TWO, others=others)) == f"the column 'teacher_prompt': {message}"


def test_images_leave_no_room_for_another_prompt():
    message = "a prompt with images cannot be rendered anew for the teacher. Remove it."
    assert fault(looked(rows=IMAGES, tokenizer=templated(), **THINKS)) == f"teacher_chat_template_kwargs: {message}"
    hinted = [{**HINTED_TWO[0], "image": None}]
    assert fault(looked(rows=hinted)) == f"the column 'teacher_prompt': {message}"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "`teacher_prompt` is empty. Give a string or a list of messages, or remove the row."),
        ("words", "the prompt of teacher 'teacher' has no token. Remove the row."),
        ([{"role": "robot", "content": "1"}], "the role 'robot' is unknown. Use one of: system, developer, user, "
         "assistant, tool, ipython, function."),
        ([{"role": "user", "content": None}], "the message {'content': None, 'role': 'user'} has no `content`. Give "
         "each a `role` and a `content`."),
        ([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}], "the last message is the "
         "assistant's. The student writes it; end with the user's."),
        ([], "`teacher_prompt` is []. Give a string or a non-empty list of messages."),
    ],
)  # fmt: skip
def test_a_bad_prompt_for_the_teacher_is_named_with_its_row(prompt, message):
    fine = asked("1+1=") if isinstance(prompt, list) else "1+1="
    rows = [{"prompt": "1+1=", "teacher_prompt": given} for given in (fine, None, prompt)]
    said_of_it = fault(looked(rows=rows, tokenizer=templated()))
    assert said_of_it.replace("{'role': 'user', 'content': None}", "{'content': None, 'role': 'user'}") == (
        f"train_dataset row 2: {message}"
    )


def test_a_prompt_too_long_for_the_teacher_is_named_or_left_out():
    rows = [{"prompt": "1+1=", "teacher_prompt": "1" * length} for length in (95, 96, 3)]  # 128 - 33 fit
    assert fault(looked({"a": TEACHER}, rows)) == (
        "train_dataset row 1: the prompt of teacher 'a' has 96 tokens, and 95 fit (max_prompt_length, or the models' "
        "context beside max_completion_length). Prompts are never cut: shorten it, lower max_completion_length, or "
        "set overlong_prompts='drop'."
    )
    with pytest.warns(
        UserWarning, match=re.escape("train_dataset: 1 of 3 rows left out, their prompts are longer than")
    ):
        checked = looked({"a": TEACHER}, rows, overlong_prompts="drop")
    assert [len(row["teacher_prompt"]) for row in checked.train_dataset] == [95, 3]
    assert said(checked)["dataset"][1].startswith("3 rows, 1 left out as too long")


def test_the_students_limit_is_not_the_teachers():
    rows = [{"prompt": "1+1=", "teacher_prompt": "1" * 60}]
    assert looked(rows=rows, max_prompt_length=10).faults == []


# The work that was announced


def test_at_most_as_many_forwards_as_announced(tmp_path):
    """Also for a teacher whose prompts are longer than the student's."""
    trainer = trainer_of(tmp_path, HINTED, budget=120)
    announced = int(re.search(r"at most (\d+) forward", said(trainer.checked)["work"][1])[1])
    trainer._generate_single_turn = lambda *_, **__: ([[5] * 33] * 8, None)
    calls = []
    trainer.teachers["teacher"].module.model.register_forward_hook(lambda *_: calls.append(1))
    window(trainer)
    assert len(calls) <= announced
