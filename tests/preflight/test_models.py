"""What is wrong with a model, said before its weights are read."""

import re

import pytest
from datasets import Dataset
from support.folders import rescaled_folder
from support.inspections import TEACHER, adapter, fault, looked, said, without_weights
from transformers import AutoModelForCausalLM

from fire_opd_trl.teachers.vocabulary import config_of


def test_a_teacher_in_memory_says_what_is_not_known_of_it():
    teacher = AutoModelForCausalLM.from_config(config_of(TEACHER))
    teacher.config._name_or_path = ""
    findings = said(looked(teacher))
    assert findings["teacher, tokens"] == (
        "ok", "a module in memory, whose tokenizer is not known: only its number of token rows was compared"
    )  # fmt: skip
    text = findings["teacher"][1]
    assert "790 k parameters" in text and text.endswith("; replicated")
    assert "0 tokens" not in text and "ends with ;" not in text  # neither is known


def test_a_context_without_room_for_a_prompt_is_refused(tmp_path):
    short = without_weights(tmp_path / "short", max_position_embeddings=33)
    assert fault(looked(short)) == (
        "max_completion_length=33 leaves no room for a prompt in the context of teacher, 33 tokens. Lower it."
    )
    assert fault(looked(model=without_weights(tmp_path / "s", "student", max_position_embeddings=20))) == (
        "max_completion_length=33 leaves no room for a prompt in the context of the student, 20 tokens. Lower it."
    )


def test_an_adapter_is_its_base_with_a_tokenizer(tmp_path):
    findings = said(looked(adapter(tmp_path / "adapter")))
    assert {outcome for outcome, _ in findings.values()} == {"ok"}
    assert findings["teacher"][1].startswith(f"adapter {tmp_path / 'adapter'} on Qwen3ForCausalLM, 790 k")


def test_an_adapter_without_a_base_is_refused(tmp_path):
    path = adapter(tmp_path / "adapter", base_model_name_or_path=None)
    message = (
        f"teacher_model 'a': the adapter {path!r} does not name its base. Set base_model_name_or_path in its "
        "adapter_config.json, or merge it into its base and name the result."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        looked({"a": path})


def test_an_adapter_of_virtual_tokens_is_refused(tmp_path):
    path = adapter(tmp_path / "adapter", peft_type="PROMPT_TUNING", num_virtual_tokens=8)
    message = (
        f"teacher_model 'teacher': the adapter {path!r} (PROMPT_TUNING) writes virtual tokens before the prompt, so "
        "that positions do not agree with the student's. Use a LoRA adapter."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        looked(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": "lm_head"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["model.lm_head"]},
    ],
)
def test_an_adapter_on_the_head_is_refused(changed, tmp_path):
    path = adapter(tmp_path / "adapter", **changed)
    message = (
        f"teacher_model 'teacher': the adapter {path!r} changes lm_head, which the fused head reads directly. Merge "
        "it into its base (merge_and_unload), save that, and name it."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        looked(path)


def test_an_adapter_whose_base_is_not_here_is_refused(tmp_path):
    assert fault(looked(adapter(tmp_path / "adapter", base_model_name_or_path="nobody/nothing"))).startswith(
        "'nobody/nothing' could not be loaded: it is neither a local folder"
    )


PACKED = {"quantization_config": {"load_in_8bit": True}}


@pytest.fixture
def under_fsdp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")


def test_a_quantized_teacher_is_replicated(under_fsdp, tmp_path):
    for teacher, config in (
        (TEACHER, {"teacher_model_init_kwargs": PACKED}),
        ({"teacher": TEACHER}, {"teacher_model_init_kwargs": {"teacher": PACKED}}),
        (without_weights(tmp_path / "packed", **PACKED), {}),
    ):
        for placement in ("sharded", "offload"):
            assert fault(looked(teacher, teacher_placement=placement, **config)) == (
                f"teacher_placement={placement!r}: teacher 'teacher' is quantized, and its packed weights can be "
                "neither partitioned nor streamed. Use 'replicated'."
            )
        assert said(looked(teacher, **config))["teacher"][1].endswith("; replicated")
    assert said(looked())["teacher"][1].endswith("; sharded")


def test_whole_distributions_over_fewer_tokens_are_refused(tmp_path):
    student = without_weights(tmp_path / "student", "student", vocab_size=64)
    assert looked(model=student).faults == []
    for method in ("opd_full", "tip"):
        assert fault(looked(model=student, method=method)) == (
            f"teacher_model 'teacher' has 16 token rows and the student 64: method={method!r} compares whole "
            "distributions, which must be over the same tokens. Cut the student's embeddings to the teacher's rows "
            "(resize_token_embeddings), or use a method of the sampled token."
        )


APART = " apart from shorter rows, whose scores do not depend on them"
SAMPLING = {
    False: "Sampling cannot: when the longest row of a batch grows beyond 24, all change their frequencies, so that "
    "some tokens are off policy. If that is too much, keep prompt and completion within 24 tokens.",
    True: "vLLM samples every row with the frequencies of long rows where its context is longer than 24 "
    "(vllm_max_model_length), so that its short rows are off policy (fire/sampling_gap). If that is too much, keep "
    "prompt and completion within 24 tokens.",
}


def test_of_longrope_it_is_said_which_rows_are_kept_apart_and_where_they_cannot_be(tmp_path):
    models = {name: rescaled_folder(tmp_path / name, name) for name in ("student", "teacher")}
    longrope = "longrope: it reads rows of more than 24 tokens with other frequencies. Scoring"
    for vllm in (False, True):
        findings = said(
            looked(models["teacher"], model=models["student"], gradient_accumulation_steps=2, use_vllm=vllm)
        )
        assert findings["teacher, positions"] == ("ok", f"{longrope} keeps them{APART}")
        assert findings["student, positions"] == (
            "warning", f"{longrope} and update keep them{APART}. {SAMPLING[vllm]}"
        )  # fmt: skip
    alone = said(looked(models["teacher"], model=models["student"]))["student, positions"][1]
    assert "with gradient_accumulation_steps=1 the update cannot do so where all rows of a rank are one" in alone
    # The longest of the two prompts has 8 tokens: with 16 more no row is longer than 24.
    short = said(looked(models["teacher"], model=models["student"], max_completion_length=16))
    assert "student, positions" not in short and "teacher, positions" not in short


def test_of_dynamic_ntk_it_is_said_where_rows_may_be_longer_than_its_context(tmp_path):
    dynamic = rescaled_folder(tmp_path / "dynamic", rope_type="dynamic", factor=4.0)
    assert "student, positions" not in said(looked(model=dynamic))  # a prompt that does not fit is refused
    stream = Dataset.from_list([{"prompt": "12+34="}]).to_iterable_dataset()
    outcome, text = said(looked(model=dynamic, rows=stream, max_steps=1))["student, positions"]
    assert (
        outcome == "warning" and "it is not known how long the prompts are. Let no prompt have more than 95 " in text
    )
    assert "teacher, positions" not in said(looked(model=dynamic, rows=stream, max_steps=1))
