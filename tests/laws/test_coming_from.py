"""The page for those who come from another trainer: it leaves out no field, names what exists, and its scripts run."""

import ast
import dataclasses
import inspect
import re
import shlex
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from support.trainers import furthest, loaded
from transformers import AutoTokenizer, TrainingArguments
from trl import DistillationConfig, DistillationTrainer, GRPOTrainer, ModelConfig, ScriptArguments
from trl.experimental.gkd import GKDConfig, GKDTrainer

import fire_opd_trl
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path


ROOT = Path(fire_opd_trl.__file__).parent.parent
SECTIONS = dict(part.split("\n", 1) for part in (ROOT / "docs" / "coming_from.md").read_text().split("\n## ")[1:])
DISTILLATION, GKD, VERL, SWIFT = (
    SECTIONS[name]
    for name in ("TRL's DistillationTrainer", "TRL's GKDTrainer", "verl's OPD", "ms-swift's GKD and OPD-RL")
)
OURS = {field.name: field.default for field in dataclasses.fields(FiReOPDConfig)}
TRAINING = {field.name for field in dataclasses.fields(TrainingArguments)}
# Beside these every setting is the page's; the embedded student may answer with 33 tokens.
ON_A_CPU = {"max_steps": 1, "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}


def names_of(section: str, column: int) -> list[str]:
    """What is code in one of the first two columns of a section's table; `–` stands for no counterpart."""
    lines = re.findall(r"^\| ([`–].*) \|$", section, re.MULTILINE)
    cells = [line.split(" | ")[column].replace(" (column)", "") for line in lines]
    return [name for cell in cells for name in re.findall(r"[^`|, ]+", cell)]


def blocks(section: str, language: str) -> list[str]:
    """The scripts of a section: before, and after."""
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def same(section: str) -> list[str]:
    """The names that a section lists as the same."""
    (listed,) = re.findall(r"The same name, meaning and default: (.*?)\.\n\n", section, re.DOTALL)
    return re.findall(r"`(\w+)`", listed)


def test_every_field_of_the_distillation_config_stands_on_the_page_once():
    fields = {field.name: field.default for field in dataclasses.fields(DistillationConfig)}
    mapped = names_of(DISTILLATION, 0)
    assert sorted(mapped + same(DISTILLATION)) == sorted(fields.keys() - TRAINING)
    assert {name: fields[name] for name in same(DISTILLATION)} == {name: OURS[name] for name in same(DISTILLATION)}
    differ = {name for name in TRAINING & OURS.keys() if name in fields and fields[name] != OURS[name]}
    assert differ == {"logging_first_step", "logging_nan_inf_filter"}  # as the page says


def test_every_field_of_the_gkd_config_stands_on_the_page_once():
    fields = {field.name for field in dataclasses.fields(GKDConfig)} - TRAINING
    assert sorted(names_of(GKD, 0)) == sorted(fields)


@pytest.mark.parametrize("section", [DISTILLATION, GKD, VERL, SWIFT])
def test_what_stands_on_our_side_of_a_table_exists(section):
    of_the_script = {field.name for config in (ModelConfig, ScriptArguments) for field in dataclasses.fields(config)}
    known = OURS.keys() | of_the_script | {"accelerate_config"}
    names = names_of(section, 1)
    assert len(names) >= 10 and set(names) - known <= {"–"}


def test_the_arguments_of_the_trainers_are_where_the_page_says():
    ours = {*inspect.signature(FiReOPDTrainer).parameters, *inspect.signature(GRPOTrainer).parameters}
    assert inspect.signature(DistillationTrainer).parameters.keys() <= ours
    missing = inspect.signature(GKDTrainer.__init__).parameters.keys() - ours - {"self"}
    (sentence,) = re.findall(r"Of the trainer's arguments, (.*?) have no counterpart", GKD, re.DOTALL)
    assert missing == set(re.findall(r"`(\w+)`", sentence))


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Executes a Python script of the page with the embedded models, for one step; the trainer that it makes."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"

    def run(source: str, dataset: Dataset, trainer_class, config_class):
        monkeypatch.setattr("datasets.load_dataset", lambda name, split: dataset)
        tree = ast.parse(source)
        for name, path in (("Qwen/Qwen3-0.6B", "student"), ("Qwen/Qwen3-4B", "teacher")):
            assert name in source
            source = source.replace(name, model_path(path))
        source = source.replace(f"{config_class.__name__}(", "make_config(").replace(
            f"{trainer_class.__name__}(", "make_trainer("
        )
        own = {"max_new_tokens": 8} if config_class is GKDConfig else {"max_completion_length": 8}
        names = {
            "make_config": lambda folder, **given: config_class(folder, **{**given, **ON_A_CPU, **own}),
            "make_trainer": lambda **given: trainer_class(processing_class=tokenizer, **given),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(source, names)
        assert len(tree.body) >= 5
        return names["trainer"]

    return run


def test_the_scripts_of_the_distillation_trainer_run(train):
    before, after = blocks(DISTILLATION, "python")
    prompts = task.dataset("train", 32)
    assert train(before, prompts, DistillationTrainer, DistillationConfig).state.global_step == 1
    trainer = train(after, prompts, FiReOPDTrainer, FiReOPDConfig)
    assert trainer.state.global_step == 1 and trainer.method.name == "opd_full" and trainer.args.loss_type == "dapo"


def test_the_scripts_of_the_gkd_trainer_run(train):
    before, after = blocks(GKD, "python")
    chats = [
        [{"role": "user", "content": task.prompt(*pair)}, {"role": "assistant", "content": task.working(*pair)}]
        for pair in task.problems("train", 64)
    ]
    dataset = Dataset.from_dict({"messages": chats})
    assert train(before, dataset, GKDTrainer, GKDConfig).state.global_step == 1
    trainer = train(after, dataset, FiReOPDTrainer, FiReOPDConfig)
    assert trainer.state.global_step == 1 and trainer.method.name == "opd_full"
    assert all(len(row["prompt"]) == 1 for row in trainer.train_dataset)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_same_answers_give_the_step_of_the_distillation_trainer(beta, tmp_path, monkeypatch):
    """Rows are of unequal lengths, in two micro-batches, so that the mean is over tokens or it is not the same."""
    tokenizer, prompts = AutoTokenizer.from_pretrained(model_path("student")), task.dataset("train", 8)

    def said(self, prompt_ids, *args, **kwargs):
        answers = [[2 + (ids[0] + place * place) % 14 for place in range(3 + sum(ids) % 9)] for ids in prompt_ids]
        return answers if type(self) is DistillationTrainer else (answers, None)

    def trained(trainer_class, config_class, **settings):
        monkeypatch.setattr(
            f"trl.{trainer_class.__mro__[trainer_class is FiReOPDTrainer].__name__}._generate_single_turn", said
        )
        args = config_class(
            str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=0.1,
            optim="sgd", max_grad_norm=1e6, lr_scheduler_type="constant", max_completion_length=16,
            shuffle_dataset=False, gradient_checkpointing=False, **ON_A_CPU, **settings,
        )  # fmt: skip
        trainer = trainer_class(
            loaded("student"), loaded("teacher"), args, train_dataset=prompts, processing_class=tokenizer
        )
        trainer.train()
        return dict(trainer.model.state_dict())

    theirs = trained(DistillationTrainer, DistillationConfig, beta=beta)
    settings = {"method": "opd_full", "preflight": False, "method_kwargs": {"mixture": beta}}
    ours = trained(FiReOPDTrainer, FiReOPDConfig, loss_type="dapo", **settings)
    moved = furthest(theirs, dict(loaded("student").state_dict()))
    assert furthest(theirs, ours) < 1e-6 < moved / 100


def test_the_commands_of_verl_and_of_swift_are_whole_and_their_arguments_stand_in_the_tables():
    for section, program in ((VERL, "python3"), (SWIFT, "swift")):
        before, _ = blocks(section, "bash")
        words = [word for word in shlex.split(before.replace("\\\n", " ")) if "NPROC" not in word]
        assert words[0] == program
        known = {*names_of(section, 0)} | TRAINING
        names = [word.partition("=")[0] for word in words[3:] if "=" in word] if program == "python3" else [
            word for word in words if word.startswith("--")]  # fmt: skip
        names = [re.sub(r"teacher_models\.\w+\.", "teacher_models.NAME.", name) for name in names]
        assert len(names) > 12 and [name for name in names if name not in known and name[2:] not in known] == []
