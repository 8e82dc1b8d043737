"""The command line of a training: recipes by name, a help in groups, hints at what was meant."""

import os
import re

import pytest
from support.commands import CONFIGS, SCRIPT

from fire_opd_trl.preflight import packaged


@pytest.fixture(scope="module")
def parser():
    return packaged.load_module(SCRIPT).make_parser("fire-opd train")


@pytest.mark.parametrize("given", [["--config", "smoke"], ["--config=smoke"], ["--config", "{path}"]])
def test_a_recipe_may_be_given_by_name_or_by_path(given):
    smoke = CONFIGS / "recipes" / "smoke.yaml"
    given = [word.format(path=smoke) for word in given]
    parser = packaged.load_module(SCRIPT).make_parser()  # a recipe changes its defaults
    _, args, _, _ = parser.parse_args_and_config([*given, "--max_steps", "7", "--use_cpu"])
    assert (args.max_completion_length, args.output_dir, args.max_steps) == (32, "outputs/smoke", 7)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--config", "smok"], "--config smok is neither a file nor a recipe. Did you mean 'smoke'"),
        (["--config"], "--config needs the name of a recipe, or of a YAML file."),
        (["--config", "smoke", "--config", "opd"], "--config is given 2 times: smoke, opd. Give it once"),
        (["--config", "broken.yaml"], "--config broken.yaml is no YAML file: line 2, column 1: "),
        (["--config", "gone.yaml"], "--config gone.yaml: there is no such file."),
        (
            ["--config", "strange.yaml"],
            "--config strange.yaml: there is no argument drop_fractoin. Did you mean 'drop_fraction'?",
        ),
        (["--config", "environment.yaml"], "--config environment.yaml: env='A=1' is no mapping of names to values."),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(parser, tmp_path, monkeypatch, given, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("method: [fire\n")
    (tmp_path / "strange.yaml").write_text("drop_fractoin: 0.1\n")
    (tmp_path / "environment.yaml").write_text("env: A=1\n")
    with pytest.raises(ValueError, match=sentence):
        parser.parse_args_and_config(given)


def test_what_a_recipe_says_in_yaml_reaches_the_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THIS_TEST", "before")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: smoke\nenv: {OF_THIS_TEST: 7}\nreward_funcs: trl.rewards.accuracy_reward\nseed: 3\n")
    parser = packaged.load_module(SCRIPT).make_parser()
    script, args, _, _ = parser.parse_args_and_config(["--config", str(recipe), "--learning_rate", "0.5"])
    assert os.environ["OF_THIS_TEST"] == "7" and script.reward_funcs == ["trl.rewards.accuracy_reward"]
    assert (args.seed, args.learning_rate, args.output_dir, args.max_steps) == (3, 0.5, "outputs/mine", 2)


def test_help_is_in_groups_and_what_is_ours_comes_first(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = parser.format_help()
    titles = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert [title.split("(")[-1].rstrip(")") for title in titles] == [
        *("what runs usually set", "FiReOPDConfig", "prompts and rewards", "TRL's ModelConfig"),
        *("TRL's DatasetMixtureConfig", "TRL's GRPOConfig", "transformers' TrainingArguments"),
    ]
    first = shown.split("FiReOPDConfig")[0]
    for name in ("model_name_or_path", "teacher_model_name_or_path", "dataset_name", "output_dir", "method"):
        assert f"--{name} " in first
    assert first.count("\n") <= 85 and "true goes on from the last checkpoint" in " ".join(first.split())
    for action in parser._actions:  # each once, under one name
        assert len(re.findall(rf"^  --{action.dest}\b", shown, re.MULTILINE)) == (action.dest != "help"), action.dest
    assert max(map(len, shown.splitlines())) <= 80 and "(default: None)" not in shown


def test_unknown_arguments_are_answered_with_what_was_meant(parser):
    assert parser.unknown(["--drop_fractoin", "0.3"]) == (
        "There is no argument --drop_fractoin. Did you mean '--drop_fraction'?"
    )
    assert parser.unknown(["--with_model"]).endswith("Did you mean '--with-models'?")
    assert parser.unknown(["--accelerate_confg=zero3"]).endswith("Did you mean '--accelerate_config'?")
    assert parser.unknown(["--zzz"]) == "There is no argument --zzz."


@pytest.mark.parametrize("word", ["{% if true %}1={% endif %}", "{{ bos_token }}", "own", '{"a": "own"}'])
def test_a_template_is_no_json_and_json_is(parser, word):
    assert parser.parse_known_args(["--teacher_chat_template", word])[0].teacher_chat_template == word


@pytest.mark.parametrize(("setting", "kind"), [("max_steps: [1]", "list"), ("learning_rate: {a: 1}", "dict")])
def test_a_value_of_another_type_in_a_recipe_is_refused(parser, tmp_path, setting, kind):
    (tmp_path / "mine.yaml").write_text(setting)
    with pytest.raises(ValueError, match=rf"mine.yaml: {setting.split(':')[0]} is .*\. It takes no {kind}\."):
        parser.parse_args_and_config(["--config", str(tmp_path / "mine.yaml")])
