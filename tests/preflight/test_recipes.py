"""Recipes that extend others: what they inherit, what is refused in a line, and how they are shown."""

import re

import pytest
import yaml
from support.commands import CONFIGS

from fire_opd_trl import cli
from fire_opd_trl.preflight import packaged, recipes
from fire_opd_trl.preflight.recipes import read_recipe, resolved_text
from fire_opd_trl.refusals import KNOBS


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes recipes into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)

    return write


def test_a_recipe_inherits_what_it_does_not_set(written):
    written(
        base="seed: 1\nmax_steps: 2\nteacher_model_name_or_path: {a: x, b: y}\n",
        middle="extends: base.yaml\nmax_steps: 3\n",
        last="extends: middle.yaml\nteacher_model_name_or_path: {c: z}\nseed: null\n",
    )
    read = read_recipe("last.yaml")
    # A mapping is replaced as a whole, and a null is a value.
    assert read == {
        "seed": None, "max_steps": 3, "teacher_model_name_or_path": {"c": "z"}, "output_dir": "outputs/last"
    }  # fmt: skip


def test_a_base_is_looked_for_beside_the_file_and_then_among_the_packaged_ones(written, tmp_path):
    written(base="seed: 1\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "base.yaml").write_text("seed: 2\n")
    (tmp_path / "inner" / "mine.yaml").write_text("extends: base.yaml\n")
    assert read_recipe("inner/mine.yaml")["seed"] == 2
    written(mine="extends: strong-to-weak\n")
    assert read_recipe("mine.yaml")["learning_rate"] == 1e-6


def test_another_method_inherits_no_argument_of_the_method_that_it_replaces(written):
    assert set(recipes.OF_THE_METHOD) == {"method", "method_kwargs", "control", *KNOBS}
    written(
        base="method: fire\ndrop_fraction: 0.3\ncontrol: filter\nseed: 1\n",
        other="extends: base.yaml\nmethod: tip\nmethod_kwargs: {keep: 0.2}\n",
        same="extends: base.yaml\nconfidence: 0.5\n",
    )
    assert read_recipe("other.yaml") == {
        "method": "tip", "method_kwargs": {"keep": 0.2}, "seed": 1, "output_dir": "outputs/other"
    }  # fmt: skip
    assert read_recipe("same.yaml")["drop_fraction"] == 0.3 and read_recipe("same.yaml")["control"] == "filter"


def test_a_run_does_not_write_into_the_folder_of_the_one_that_it_extends(written):
    written(
        base="output_dir: outputs/base\n",
        mine="extends: base.yaml\n",
        named="extends: base.yaml\noutput_dir: elsewhere\n",
        alone="seed: 1\n",
    )
    folders = [read_recipe(f"{name}.yaml").get("output_dir") for name in ("base", "mine", "named", "alone")]
    assert folders == ["outputs/base", "outputs/mine", "elsewhere", None]


def test_paths_of_the_package_are_paths_wherever_they_stand(written):
    written(
        mine="a: package://demo/problems.jsonl\nb: [package://examples/rewards.py:final_answer]\nc: {d: package://configs}\n"
    )
    read = read_recipe("mine.yaml")
    assert read["a"] == str(packaged.packaged_folder("demo") / "problems.jsonl")
    assert read["b"] == [f"{packaged.packaged_folder('examples') / 'rewards.py'}:final_answer"]
    assert read["c"] == {"d": str(CONFIGS)}


FORM = "A recipe has lines of `argument: value`."
WRONG = {
    "extends: strong-to-week": "it.yaml: extends strong-to-week is neither a file nor a recipe. Did you mean "
    "'strong-to-weak'? `fire-opd recipes` lists them.",
    "extends: gone.yaml": "it.yaml: extends gone.yaml: there is no such file.",
    "extends: [a, b]": "it.yaml: extends is ['a', 'b']. Give the name of one recipe, or its YAML file.",
    "extends: it.yaml": "it.yaml: a circle of extends: it.yaml -> it.yaml.",
    "extends: other.yaml": "it.yaml: a circle of extends: it.yaml -> other.yaml -> it.yaml.",
    "extends: list.yaml": f"list.yaml holds a list. {FORM}",
    "- a": f"it.yaml holds a list. {FORM}",
    "": f"it.yaml is empty. {FORM}",
    "seed: 1\nmethod: [fire": "it.yaml is no YAML file: line 2, column 14: expected ',' or ']', but got "
    "'<stream end>'.",
    "seed: 1\nseed: 2": "it.yaml: seed stands there twice.",
    "seed: \0": "it.yaml is no YAML file: special characters are not allowed.",
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.items())
@pytest.mark.parametrize("verb", [["recipes"], ["preflight", "--config"], ["train", "--config"]])
def test_what_is_wrong_in_a_recipe_is_said_in_a_line(written, capsys, verb, text, sentence):
    written(it=text, other="extends: it.yaml\n", list="- a\n")
    try:
        code = cli.main([*verb, "it.yaml"])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and said.splitlines()[-1] == f"fire-opd {verb[0]}: error: --config {sentence}"


@pytest.mark.parametrize("verb", ["preflight", "train", "plan"])
def test_a_key_that_is_no_argument_is_misuse(written, capsys, verb):
    written(it="extends: smoke\ndrop_fractoin: 0.3\n")
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--config", "it.yaml"])
    sentence = "--config it.yaml: there is no argument drop_fractoin. Did you mean 'drop_fraction'?"
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1] == f"fire-opd {verb}: error: {sentence}"


def test_a_renamed_recipe_says_its_new_name(capsys):
    for old, new in packaged.RENAMED.items():
        assert old not in packaged.recipes() and new in packaged.recipes()
        with pytest.raises(ValueError, match=f"--config {old} is called {new} now"):
            packaged.recipe(old)


def test_the_list_has_each_recipe_in_a_line(capsys):
    assert cli.main(["recipes"]) == 0
    shown = capsys.readouterr().out
    listed = re.findall(r"^  (\S+) +(\S.*)$", shown, re.MULTILINE)
    assert [name for name, _ in listed] == list(packaged.recipes())
    assert max(map(len, shown.splitlines())) <= 119 and all(len(about.split()) > 3 for _, about in listed)


@pytest.mark.parametrize("name", packaged.recipes())
def test_what_is_printed_is_the_recipe_with_a_comment_at_each_value(name, capsys, tmp_path):
    assert cli.main(["recipes", name]) == 0
    printed = capsys.readouterr().out
    (tmp_path / f"{name}.yaml").write_text(printed)
    assert read_recipe(tmp_path / f"{name}.yaml") == read_recipe(name)
    assert list(yaml.safe_load(printed)) == list(read_recipe(name))
    if name != "strong-to-weak":  # its other commands and legend are not repeated
        assert "fire-opd train" not in printed


def test_a_recipe_without_comments_is_printed_too(written):
    written(
        flow="{seed: 1, max_steps: 2}\n",
        base="# Mine. It is.\nseed: 1 # why\n\n# All of it.\nmethod: fire\n",
        mine="extends: base.yaml\nmax_steps: 3\nseed: 4\n",
    )
    assert yaml.safe_load(resolved_text("flow.yaml")) == {"seed": 1, "max_steps": 2}
    assert resolved_text("base.yaml") == "# Mine.\n\nseed: 1 # why\n\n# All of it.\nmethod: fire\n"
    printed = resolved_text("mine.yaml")
    assert printed == (
        "# mine.\n# It extends base.\n\nseed: 4\n\n# All of it.\nmethod: fire\nmax_steps: 3\n"
        "output_dir: outputs/mine\n"
    )
