"""
Token truth: every id that can occur means the same to student and teacher. Added tokens that a teacher lacks cost the
rows that hold one; another base vocabulary or an unknown end token is refused; rows of padding take no probability.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from support.inspections import asked, fault, looked, said
from support.prompts import HINTED, PROMPTS, frozen, scores_of, window
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.teachers.vocabulary import Vocabulary, end_ids, end_token_warning, tokenizer_of, unknown_ids


TEACHER, STUDENT = model_path("teacher"), model_path("student")


def vocabulary(tokens="abc!", added=(), rows=None, ends=(3,)) -> Vocabulary:
    """One token a character; `!` is the end."""
    named = dict(enumerate(tokens))
    return Vocabulary(named, frozenset(added), len(named) if rows is None else rows, frozenset(ends))


def refusal(*args) -> str:
    with pytest.raises(ValueError) as error:
        unknown_ids(*args)
    return str(error.value)


# Which ids a teacher does not know


def test_equal_vocabularies_know_each_other():
    assert unknown_ids(vocabulary(), 4, vocabulary(), "t") == frozenset()


def test_the_sizes_need_not_agree_where_the_tokens_do():
    assert unknown_ids(vocabulary(rows=64), 64, vocabulary(rows=8), "t") == frozenset()  # a padded teacher
    assert unknown_ids(vocabulary(rows=4), 4, vocabulary(rows=64), "t") == frozenset()  # a padded student
    assert unknown_ids(vocabulary("abc!xyz"), 7, vocabulary(), "t") == frozenset()  # a teacher with more tokens


def test_a_teacher_without_a_tokenizer_is_known_by_its_rows():
    student = vocabulary("abc!T", added=(4,))
    assert unknown_ids(None, 5, student, "t") == frozenset()
    assert unknown_ids(None, 4, student, "t") == {4}
    assert refusal(None, 3, vocabulary(), "teacher_model 't'") == (
        "teacher_model 't' has 3 token rows, too few for the student's id 3 ('!'). Use a teacher of the same "
        "tokenizer."
    )


def test_added_tokens_that_the_teacher_lacks_or_calls_otherwise_are_unknown_to_it():
    student = vocabulary("abc!TU", added=(4, 5))
    assert unknown_ids(vocabulary("abc!"), 4, student, "t") == {4, 5}
    assert unknown_ids(vocabulary("abc!", rows=64), 64, student, "t") == {4, 5}  # rows that no token stands for
    assert unknown_ids(vocabulary("abc!UT", added=(4, 5)), 6, student, "t") == {4, 5}
    assert unknown_ids(vocabulary("abc!TX"), 6, student, "t") == {5}


def test_another_base_vocabulary_is_refused_with_its_first_differing_token():
    for theirs, mine in (("bac!", "abc!"), ("bac!T", "abc!TU")):
        assert refusal(vocabulary(theirs), 8, vocabulary(mine, added=(4, 5)), "teacher_model 't'") == (
            "teacher_model 't' has another tokenizer than the student: id 0 is 'a' to the student and 'b' to the "
            "teacher. Sampled-token distillation needs one tokenizer; for two, see TRL's GOLD trainer."
        )
    assert "id 2 is 'c' to the student and None to the teacher" in refusal(
        Vocabulary({0: "a", 1: "b", 3: "!"}, frozenset(), 4, frozenset({3})), 4, vocabulary(), "t"
    )


def test_a_teacher_with_too_few_rows_is_refused():
    assert refusal(vocabulary("ab!", ends=(2,)), 3, vocabulary("ab!cd", ends=(2,)), "teacher_model 't'") == (
        "teacher_model 't' has 3 token rows, too few for the student's id 4 ('d'). Use a teacher of the same "
        "tokenizer."
    )


@pytest.mark.parametrize("theirs", ["abc", "abcX"])
def test_an_end_token_that_the_teacher_does_not_know_is_refused(theirs):
    student = vocabulary("abc!", added=(3,))
    assert refusal(vocabulary(theirs, ends=()), len(theirs), student, "teacher_model 't'") == (
        "teacher_model 't' does not know the student's end token 3 '!', with which every finished answer ends. Let "
        "the student end with a token of both (eos_token_id in its generation_config.json and tokenizer_config.json), "
        "or use a teacher of the same tokenizer."
    )


def test_ids_are_named_and_the_first_eight_of_them():
    assert vocabulary().named({2, 0}) == "0 'a', 2 'c'"
    assert vocabulary("abcdefghijk").named(frozenset(range(11))) == (
        "0 'a', 1 'b', 2 'c', 3 'd', 4 'e', 5 'f', 6 'g', 7 'h' and 3 more"
    )
    assert vocabulary().named({9}) == "9 None"


# Ends


def test_equal_ends_need_no_word():
    assert end_token_warning(vocabulary(), vocabulary(), "teacher 't'") is None


def test_a_teacher_that_ends_otherwise_is_said_with_what_to_set():
    where = (
        " in the student's generation_config.json (or model.generation_config.eos_token_id), which is what ends a "
        "completion."
    )
    goes_on = ", at which the student does not stop, so that it goes on where the teacher has nothing more to say"
    punished = ", which teacher 't' never ends with, so that finishing is punished at every end"
    student, teacher = vocabulary(ends=(3,)), vocabulary(ends=(2, 3))
    assert end_token_warning(teacher, student, "teacher 't'") == (
        f"teacher 't' ends an answer with 2 'c'{goes_on}. Set eos_token_id to [2, 3]{where}"
    )
    assert end_token_warning(student, teacher, "teacher 't'") == (
        f"the student stops at 2 'c'{punished}. Set eos_token_id to [3]{where}"
    )
    assert end_token_warning(vocabulary(ends=(1,)), student, "teacher 't'") == (
        f"teacher 't' ends an answer with 1 'b'{goes_on}; the student stops at 3 '!'{punished}. Set eos_token_id to "
        f"[1]{where[:-1]}, and eos_token in its tokenizer_config.json to one of them."
    )


def test_where_a_model_stops():
    config = AutoConfig.from_pretrained(TEACHER)
    assert end_ids(TEACHER, config) == {1}
    for given, expected in (([1, 5], {1, 5}), (7, {7}), (None, {1})):  # None: as the config says
        module = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=given))
        assert end_ids(module, config) == expected
    config.eos_token_id = None
    assert end_ids(None, config) == set()


def test_the_ends_of_a_folder_are_those_of_its_generation_config_or_else_of_its_config(tmp_path):
    folder = copied(tmp_path / "teacher", ends=[1, 15])
    assert end_ids(folder, AutoConfig.from_pretrained(folder)) == {1, 15}
    (tmp_path / "teacher" / "generation_config.json").unlink()
    assert end_ids(folder, AutoConfig.from_pretrained(folder)) == {1}


def test_a_vocabulary_is_read_off_a_folder_or_a_module():
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    module = AutoModelForCausalLM.from_pretrained(STUDENT)
    for model in (STUDENT, module):
        read = Vocabulary.of(model, AutoConfig.from_pretrained(STUDENT), tokenizer)
        assert read.tokens == dict(enumerate(["<pad>", "<eos>", *"0123456789+=,;"]))
        assert (read.added, read.rows, read.ends) == ({0, 1}, 16, {1})
    assert tokenizer_of(module).get_vocab() == tokenizer.get_vocab()
    module.config._name_or_path = ""
    assert tokenizer_of(module) is None


# Real folders


def copied(folder: Path, name: str = "teacher", ends=None, tokens=(), rows: int | None = None) -> str:
    """A copy of an embedded model: with other ends, more tokens, more rows that would take probability."""
    shutil.copytree(model_path(name), folder)
    if tokens:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(folder)
    if rows:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            model.get_output_embeddings().weight[16:].normal_(std=3.0)
        model.save_pretrained(folder)
    if ends is not None:
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    return str(folder)


def built(folder, student: str, teacher: str, completions, rows=None, **config) -> FiReOPDTrainer:
    args = FiReOPDConfig(
        str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=8, max_completion_length=33, max_steps=1,
        model_init_kwargs={"dtype": "float32"}, teacher_model_init_kwargs={"dtype": "float32"}, disable_tqdm=True,
        preflight=False, logging_steps=1, optim="sgd", learning_rate=0.01, shuffle_dataset=False, **config,
    )  # fmt: skip
    rows = rows or [{"prompt": prompt} for prompt in PROMPTS]
    trainer = FiReOPDTrainer(student, teacher, args, Dataset.from_list(rows))
    trainer._generate_single_turn = lambda *_, **__: (completions, None)
    return trainer


def test_a_teacher_without_an_added_token_warns_and_the_rows_that_hold_it_are_dropped_and_counted(tmp_path):
    student = copied(tmp_path / "student", "student", tokens=["<think>"], rows=17)
    completions = frozen()
    completions[2][4] = completions[5][0] = 16
    message = (
        "teacher, tokens: 16 of the student's 17 ids mean the same to it; it does not know 16 '<think>'. They "
        "were added to the student's tokenizer: an answer that holds one is dropped and counted "
        "(fire/nonfinite_teacher). If the student writes them often, use another chat template or another teacher"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        trainer = built(tmp_path, student, TEACHER, completions, method="opd", teacher_nonfinite_limit=0.3)
    batch, scores = window(trainer)
    assert scores.teacher_logp_BT.isnan().nonzero().tolist() == [[2, 4], [5, 0]]
    assert batch["keep"].tolist() == [
        True,
        False,
        False,
        True,
        True,
        False,
        True,
        True,
    ]  # row 1 is nothing but its end
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    log = trainer.state.log_history[0]
    assert (log["fire/nonfinite_teacher"], log["fire/kept_rows"]) == (2, 5)
    assert any((start[name] != value).any() for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("theirs", [[], ["<other>"]])
def test_a_row_of_a_teacher_that_stands_for_another_token_is_never_read(theirs, tmp_path):
    """The teacher has a row 16, of padding or for a token of its own: its number would be silently wrong."""
    student = copied(tmp_path / "student", "student", tokens=["<think>"], rows=17)
    teacher = copied(tmp_path / "teacher", tokens=theirs, rows=17)
    completions = frozen()
    completions[6][2] = 16
    with pytest.warns(UserWarning, match="it does not know 16 '<think>'"):
        trainer = built(tmp_path, student, teacher, completions, teacher_nonfinite_limit=0.2)
    assert window(trainer)[1].teacher_logp_BT.isnan().nonzero().tolist() == [[6, 2]]


def test_an_added_token_that_both_know_is_scored(tmp_path):
    student = copied(tmp_path / "student", "student", tokens=["<think>"], rows=17)
    teacher = copied(tmp_path / "teacher", tokens=["<think>"], rows=32)
    completions = frozen()
    completions[6][2] = 16
    trainer = built(tmp_path, student, teacher, completions)
    assert trainer.checked.unknown == {"teacher": frozenset()}
    batch, scores = window(trainer)
    assert scores.teacher_logp_BT.isfinite().all() and scores.teacher_logp_BT[6, 2] < 0


def test_too_many_unknown_tokens_stop_the_run_and_say_what_to_look_at(tmp_path):
    student = copied(tmp_path / "student", "student", tokens=["<think>"], rows=17)
    completions = [[16, *ids[1:]] for ids in frozen()]
    with pytest.warns(UserWarning, match="it does not know 16 '<think>'"):
        trainer = built(tmp_path, student, TEACHER, completions)
    with pytest.raises(
        FloatingPointError, match="100% of the window.*whether the student writes tokens that the teacher "
    ):
        trainer.train()


THINKS = "{% for message in messages %}{{ message['content'] }}{% endfor %}<think>"
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %};"


def student_that_thinks(folder: Path) -> str:
    path = copied(folder, "student", tokens=["<think>"], rows=17)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = THINKS
    tokenizer.save_pretrained(path)
    return path


def test_a_prompt_with_a_token_that_the_teacher_does_not_know_is_refused(tmp_path):
    student = student_that_thinks(tmp_path / "student")
    message = (
        "holds the token id 16, which the teacher's tokenizer does not have. Give the teacher a prompt of its own "
        "(teacher_chat_template='own', or the column of teacher_prompt_column), or change chat_template_kwargs."
    )
    rows = [{"prompt": asked("1+1=")}]
    whose = "train_dataset row 0: the prompt of teacher 'teacher' "
    assert fault(looked(TEACHER, rows, model=student)) == whose + message
    # A prompt of its own, by a template or in a column, is what helps.
    assert looked(TEACHER, rows, model=student, teacher_chat_template=PLAIN).faults == []
    assert looked(TEACHER, [{**rows[0], "teacher_prompt": "1+1="}], model=student).faults == []


def test_a_teachers_own_token_in_its_own_prompt_is_its_own(tmp_path):
    """Id 16 is one thing to the student and another to the teacher: in the teacher's prompt it is the teacher's."""
    student = copied(tmp_path / "student", "student", tokens=["<think>"], rows=17)
    teacher = copied(tmp_path / "teacher", tokens=["<other>"], rows=17)
    rows = [{"prompt": "1+1=", "teacher_prompt": "<other>1+1="}]
    checked = looked(teacher, rows, model=student)
    assert checked.unknown == {"teacher": {16}}
    assert checked.renderers["teacher"].ids(rows) == [[16, 3, 12, 3, 13]]
    assert checked.faults == []


def test_a_token_of_the_teachers_beyond_the_students_rows_is_refused(tmp_path):
    teacher = copied(tmp_path / "teacher", tokens=["<other>"], rows=17)
    assert fault(looked(teacher, [{"prompt": "1+1=", "teacher_prompt": "<other>1+1="}])) == (
        "train_dataset row 0: the prompt of teacher 'teacher' holds the token id 16, and teacher and student share 16 "
        "token rows. Use a template without it."
    )


def test_an_end_token_that_the_teacher_lacks_is_refused_before_anything_is_loaded(tmp_path):
    student = copied(tmp_path / "student", "student", tokens=["<end>"], rows=17, ends=[1, 16])
    assert fault(looked(TEACHER, model=student)) == (
        "teacher_model 'teacher' does not know the student's end token 16 '<end>', with which every finished answer "
        "ends. Let the student end with a token of both (eos_token_id in its generation_config.json and "
        "tokenizer_config.json), or use a teacher of the same tokenizer."
    )


def test_swapped_base_tokens_are_refused(tmp_path):
    path = Path(copied(tmp_path / "teacher")) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokens = tokenizer["model"]["vocab"]
    tokens["+"], tokens["="] = tokens["="], tokens["+"]
    path.write_text(json.dumps(tokenizer))
    assert fault(looked(str(tmp_path / "teacher"))) == (
        "teacher_model 'teacher' has another tokenizer than the student: id 12 is '+' to the student and '=' to the "
        "teacher. Sampled-token distillation needs one tokenizer; for two, see TRL's GOLD trainer."
    )


def test_a_teacher_without_a_tokenizer_beside_its_weights_is_refused(tmp_path):
    folder = Path(copied(tmp_path / "teacher"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    message = fault(looked(str(folder)))
    assert message.startswith(f"teacher {str(folder)!r} has no tokenizer that could be loaded.")


def test_a_reference_model_must_know_every_token(tmp_path):
    student = copied(tmp_path / "student", "student", tokens=["<think>"], rows=17)
    teacher = copied(tmp_path / "teacher", tokens=["<think>"], rows=17)
    config = {"method": "exopd", "reference_model_name_or_path": STUDENT}
    assert fault(looked(teacher, model=student, **config)) == (
        f"reference_model_name_or_path={STUDENT!r} does not know the student's 16 '<think>'. Use the student itself."
    )


# Other ends


def test_a_teacher_with_other_ends_warns_with_what_to_set_and_training_works(tmp_path):
    teacher = copied(tmp_path / "teacher", ends=[1, 15])
    message = (
        "teacher, ends: teacher 'teacher' ends an answer with 15 ';', at which the student does not stop, so "
        "that it goes on where the teacher has nothing more to say. Set eos_token_id to [1, 15] in the student's "
        "generation_config.json (or model.generation_config.eos_token_id), which is what ends a completion."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        trainer = built(tmp_path, STUDENT, teacher, frozen(), method="opd")
    trainer.train()
    assert trainer.state.log_history[0]["fire/kept_rows"] == 7


def test_what_the_warning_says_to_set_is_what_ends_a_completion_and_silences_it(tmp_path):
    teacher = copied(tmp_path / "teacher", ends=[1, 15])
    student = copied(tmp_path / "student", "student", ends=[1, 15])
    assert said(looked(teacher, model=student))["teacher, ends"] == ("ok", "as the student: 1 '<eos>', 15 ';'")
    trainer = built(tmp_path, student, teacher, frozen())
    assert set(trainer.eos_token_ids) == {1, 15} == set(trainer.generation_config.eos_token_id)


def test_a_student_that_stops_where_its_teacher_does_not_warns(tmp_path):
    student = copied(tmp_path / "student", "student", ends=[1, 15])
    assert said(looked(TEACHER, model=student))["teacher, ends"] == (
        "warning",
        "the student stops at 15 ';', which teacher 'teacher' never ends with, so that finishing is punished at every "
        "end. Set eos_token_id to [1] in the student's generation_config.json (or model.generation_config."
        "eos_token_id), which is what ends a completion.",
    )


# Rows of padding


@pytest.mark.parametrize("rows", [HINTED, [{"prompt": prompt} for prompt in PROMPTS]])
def test_padded_rows_of_a_teacher_take_no_probability_and_no_entropy(rows, tmp_path):
    plain = scores_of(tmp_path, rows)
    padded = scores_of(tmp_path, rows, teacher=copied(tmp_path / "teacher", rows=64))
    torch.testing.assert_close(padded.teacher_entropy_BT, plain.teacher_entropy_BT, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded.teacher_logp_BT, plain.teacher_logp_BT, rtol=0, atol=1e-6)


def test_padded_rows_of_one_teacher_leave_those_of_the_other(tmp_path):
    rows = [{"prompt": prompt, "teacher_id": "ab"[n % 2]} for n, prompt in enumerate(PROMPTS)]
    plain = scores_of(tmp_path, rows, teacher={"a": TEACHER, "b": STUDENT})
    padded = scores_of(tmp_path, rows, teacher={"a": copied(tmp_path / "teacher", rows=64), "b": STUDENT})
    torch.testing.assert_close(padded.teacher_entropy_BT, plain.teacher_entropy_BT, rtol=0, atol=1e-6)


def test_a_row_with_an_id_beyond_the_teachers_is_dropped_and_counted(tmp_path):
    """A student padded to more rows than its teacher can sample one of them, which no token stands for."""
    student = copied(tmp_path / "student", "student", rows=64)
    completions = frozen()
    completions[4][3] = 40
    trainer = built(tmp_path, student, TEACHER, completions, method="opd", teacher_nonfinite_limit=0.2)
    assert said(trainer.checked)["teacher, tokens"] == ("ok", "16 of the student's 16 ids mean the same to it")
    trainer.train()
    log = trainer.state.log_history[0]
    assert (log["fire/nonfinite_teacher"], log["fire/kept_rows"]) == (1, 6)
