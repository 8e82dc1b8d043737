"""The README: short, with a picture, and what it shows runs: its Python, its change from GRPO, its command lines."""

import ast
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

import fire_opd_trl
from fire_opd_trl import METHODS, FiReOPDConfig
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.inspect import command


ROOT = Path(fire_opd_trl.__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODELS = {'"Qwen/Qwen3-0.6B"': model_path("student"), '"Qwen/Qwen3-4B"': model_path("teacher")}
# Beside these every setting is the README's. The embedded student may answer with 33 tokens.
ON_A_CPU = {"max_steps": 1, "max_completion_length": 33, "use_cpu": True, "bf16": False, "preflight": False}


def blocks(language: str, heading: str) -> list[str]:
    """The fenced blocks of a section."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def command_lines(heading: str) -> list[list[str]]:
    """The words of each command of a section."""
    lines = "".join(blocks("bash", heading)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Executes a source of the README with the embedded models, for one step; the trainer that it makes."""
    dataset = task.dataset("train", 64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: dataset)
    monkeypatch.setattr(fire_opd_trl, "FiReOPDConfig", partial(FiReOPDConfig, **ON_A_CPU), raising=False)

    def train(source: str):
        for name, path in MODELS.items():
            assert name in source
            source = source.replace(name, repr(path))
        names = {"dataset": dataset}
        exec(source, names)
        return names["trainer"]

    return train


def test_the_first_screen_has_a_sentence_a_picture_and_the_install_line():
    screen = "\n".join(README.splitlines()[:40])
    (picture,) = re.findall(r'<img src="([^"]+)"[^>]* alt="[^"]{20,}"', screen)
    assert 1_000 < (ROOT / picture).stat().st_size < 200_000
    assert README.splitlines()[2].startswith("**") and "pip install -e ." in screen
    assert README.count("\n") < 200  # what is looked up rather than read has a page in docs/


def test_the_readme_counts_the_methods():
    assert "Seventeen methods" in README and len(METHODS) == 17


def test_the_readmes_python_trains(trained):
    (source,) = blocks("python", "Start")
    assert len(source.replace("\n\n", "\n").splitlines()) <= 10
    trainer = trained(source)
    assert trainer.state.global_step == 1 and trainer.method.name == "fire"
    assert any(log.get("fire/rows") == 64 for log in trainer.state.log_history)  # 4 x 16


def test_a_script_for_grpo_distils_after_a_change_of_two_lines(trained):
    from trl import GRPOTrainer

    (diff,) = blocks("diff", "Coming from GRPO: change two lines")
    lines = diff.splitlines()
    assert [sum(line.startswith(sign) for line in lines) for sign in "-+"] == [2, 2]
    before, after = ("\n".join(line[1:] for line in lines if not line.startswith(sign)) for sign in "+-")
    ast.parse(before)
    assert "from trl import GRPOConfig, GRPOTrainer" in before
    trainer = trained(after)
    assert trainer.state.global_step == 1 and isinstance(trainer, GRPOTrainer)


def test_the_readmes_looks_at_a_run_are_understood():
    looks = command_lines("See what a run does")
    assert len(looks) == 3 and {(name, verb) for name, verb, *_ in looks} == {("fire-opd", "inspect")}
    options = [vars(command.build_parser().parse_args(arguments)) for _, _, *arguments in looks]
    assert [bool(one["run"]) for one in options] == [True, True, False]
    assert options[1]["compare"] and options[2]["student"] and options[2]["teacher"] and options[2]["prompts"]
