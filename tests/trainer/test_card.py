"""The model card says what was distilled into what, how, and with which result; and never `None`."""

from dataclasses import replace

import pytest
from datasets import DatasetInfo
from huggingface_hub import ModelCard
from support.trainers import loaded, sampling_trainer

from fire_opd_trl import METHODS
from fire_opd_trl.demo import task
from fire_opd_trl.trainer.card import bibtex, described, public


def card(tmp_path, **kwargs) -> str:
    return (tmp_path / "README.md").read_text()


def test_a_card_of_local_models_and_data_names_no_path_and_no_none(tmp_path):
    trainer = sampling_trainer(tmp_path, preflight=False, max_steps=2)
    trainer.create_model_card()  # before anything is trained
    assert "not begun" in card(tmp_path) and "None" not in card(tmp_path)
    trainer.train()
    trainer.create_model_card(model_name="mine")
    text = card(tmp_path)
    assert "None" not in text and "models/student" not in text and str(tmp_path) not in text
    assert "# mine" in text and "a local model (Qwen3ForCausalLM, 186 k parameters in float32)" in text
    assert "| data | 64 prompts |" in text and "2 of 2 optimizer steps" in text
    assert "drop_lowest(fraction=0.2, scope='batch')" in text and "learning rate 0.001" in text
    assert "| last log |" in text and "2606.02684" in text and "Yuying Li" in text and "vonwerra2020trl" in text
    assert 'pipeline("text-generation", model=".")' in text and "{{" not in text.replace("{{TRL", "").replace(
        "{{F", ""
    )


def test_a_card_names_teachers_data_and_the_paper_of_its_method(tmp_path):
    student, teacher = loaded("student"), loaded("teacher")
    student.config._name_or_path, teacher.config._name_or_path = "org/student", "org/math"
    dataset = task.dataset("train", 64, seed=0).add_column("teacher_id", ["math", "other"] * 32)
    dataset.info.update(DatasetInfo(download_checksums={"hf://datasets/org/sums@abc/data.parquet": {}}))
    from support.trainers import FiReOPDConfig, FiReOPDTrainer, model_path

    trainer = FiReOPDTrainer(
        student,
        {"math": teacher, "other": model_path("teacher")},
        FiReOPDConfig(str(tmp_path), use_cpu=True, bf16=False, max_completion_length=33, hub_model_id="org/new"),
        train_dataset=dataset,
        processing_class=task.build_tokenizer(),
        method=replace(METHODS["tip"](), name="mine"),
    )
    trainer.create_model_card(tags=["sums"])
    text, head = card(tmp_path), ModelCard.load(tmp_path / "README.md").data
    assert "| teacher `math` | [org/math](https://huggingface.co/org/math)" in text
    assert "| teacher `other` | a local model (" in text and "None" not in text
    assert "[org/sums](https://huggingface.co/datasets/org/sums), 64 prompts" in text
    assert "`mine`, from [TIP: Token Importance" in text and "title = {{TIP: Token" in text
    assert 'model="org/new")' in text
    assert head.base_model == "org/student" and head.datasets == ["org/sums"]
    assert {"sums", "fire-opd", "trl", "on-policy-distillation"} <= set(head.tags)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "org/m", "is": "Qwen3, 4 B"}, "[org/m](https://huggingface.co/org/m) (Qwen3, 4 B)"),
        ({"name": "/home/me/m", "is": ""}, "a local model"),
        (
            {"name": "org/m", "adapter": "/home/me/a", "is": ""},
            "a local adapter on [org/m](https://huggingface.co/org/m)",
        ),
        ({"name": "the student without its adapter", "is": ""}, "the student without its adapter"),
    ],
)
def test_a_model_in_words(model, words):
    assert described(model) == words


def test_a_local_path_is_no_name():
    assert [public(name) for name in (None, "", ".", "./a", "~/a", "/a/b", "C:\\a")] == [""] * 7


def test_a_citation_names_title_first_author_and_number():
    assert "@misc{xu2026,\n  title = {{TIP: Token Importance" in bibtex("2604.14084")
