"""The page on GRPO's options says of each what becomes of it, and what it says is so."""

import ast
import dataclasses
import inspect
import re
import warnings
from pathlib import Path

import pytest
from support.configs import config
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

import fire_opd_trl
from fire_opd_trl import FiReOPDConfig
from fire_opd_trl.refusals import chosen_method


ROOT = Path(fire_opd_trl.__file__).parent.parent
PAGE = (ROOT / "docs" / "grpo_options.md").read_text()
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, code without its marks."""
    lines = re.findall(r"^\| (`.*) \|$", SECTIONS[section], re.MULTILINE)
    return [[re.sub(r"^`(.*)`$", r"\1", cell) for cell in line.split(" | ")] for line in lines]


REFUSED, DEFAULTS = rows("Refused"), rows("Another default")
TOGETHER, TESTED = rows("Right alone, wrong together"), rows("As in GRPO, with a test here")
INHERITED = re.findall(r"`(\w+)`", SECTIONS["As in GRPO, inherited"].split("\n\n")[0])
ARGUMENTS = rows("Arguments of the trainer")
FIELDS = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}


def test_every_field_of_grpo_stands_on_the_page_once():
    own = (FIELDS.keys() - {field.name for field in dataclasses.fields(TrainingArguments)}) | {
        "learning_rate", "remove_unused_columns"}  # fmt: skip
    treated = [name for name, *_ in (*REFUSED, *TOGETHER, *TESTED)] + INHERITED
    treated += [name for name, *_ in DEFAULTS if name not in treated]
    assert sorted(treated) == sorted(own | {"logging_nan_inf_filter", "logging_first_step"})


@pytest.mark.parametrize(("name", "value", "reason"), REFUSED)
def test_what_is_refused_is_refused_with_the_reason_of_the_page(name, value, reason):
    with pytest.raises(ValueError) as error:
        config(**{name: ast.literal_eval(value)})
    assert str(error.value) == f"{name}={value} is refused. {reason}"


def test_defaults_differ_where_the_page_says_and_nowhere_else():
    ours = {field.name: field.default for field in dataclasses.fields(FiReOPDConfig)}
    differ = {name: (default, ours[name]) for name, default in FIELDS.items() if ours[name] != default}
    assert differ == {name: (ast.literal_eval(grpo), ast.literal_eval(here)) for name, grpo, here, _ in DEFAULTS}


@pytest.mark.parametrize(("name", "example", "outcome"), [row[:3] for row in TOGETHER])
def test_what_is_wrong_together_is_refused_or_warned_of(name, example, outcome):
    kwargs = ast.literal_eval(example)
    assert name in kwargs and outcome in ("refused", "warned")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            chosen_method(None, config(**kwargs), rewarded=False)
        except ValueError as error:
            assert outcome == "refused" and "is refused." in str(error)
        else:
            assert outcome == "warned" and any(name in str(warning.message) for warning in said)


@pytest.mark.parametrize(("name", "test"), TESTED)
def test_a_test_that_the_page_names_exists(name, test):
    file, function = re.findall(r"[\w/.]+", test.replace("`", ""))
    assert f"def {function}(" in (ROOT / file).read_text()


def test_every_argument_of_the_trainer_stands_on_the_page():
    assert {name for name, _ in ARGUMENTS} == inspect.signature(GRPOTrainer.__init__).parameters.keys() - {"self"}
