"""What the pages tell a reader to type: every `fire-opd` command is understood, and their Python runs or compiles."""

import argparse
import ast
import importlib
import os
import re
import subprocess
import sys
from functools import partial

import pytest
from accelerate.commands.launch import launch_command_parser
from support.documents import PAGES, ROOT, blocks, commands, named

from fire_opd_trl.cli import COMMANDS
from fire_opd_trl.data import command as data
from fire_opd_trl.methods import METHODS
from fire_opd_trl.preflight import packaged, plan_arguments


COMMAND_LINES = [
    pytest.param(words, id=f"{named(page)}: {' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page.read_text())
]
# The Python of these pages is executed, from top to bottom. Elsewhere it must compile; a page of sketches has `...`.
EXECUTED = ("which_method", "several_teachers", "add_a_method", "methods")
SKETCHES = ("teachers", "vllm")


def left_over_by_the_training(words: list[str]) -> list[str]:
    """The words that neither the launch nor the training takes; models and data are not looked at."""
    launch = argparse.ArgumentParser(allow_abbrev=False)
    launch.add_argument("--accelerate_config")
    launch.add_argument("--num_processes", type=int)
    launch.add_argument("--config")
    options, rest = launch.parse_known_args(words)
    for name, known in (
        (options.accelerate_config, packaged.accelerate_configs()),
        (options.config, packaged.recipes()),
    ):
        assert name is None or name.endswith(".yaml") or name in known
    return packaged.load_module(ROOT / "examples" / "train_fire.py").make_parser().parse_known_args(rest)[1]


def left_over(verb: str, words: list[str]) -> list[str]:
    """The words that the command's own parser does not understand; it exits for a wrong value."""
    if verb == "train":
        launched, left = launch_command_parser().parse_known_args([*left_over_by_the_training(words), "script.py"])
        return left + launched.training_script_args
    if verb == "preflight":
        return [word for word in left_over_by_the_training(words) if word != "--with-models"]
    if verb == "plan":
        return left_over_by_the_training(plan_arguments.make_parser().parse_known_args(words)[1])
    if verb == "methods":
        return [word for word in words if word not in (*METHODS, "NAME")]
    if verb == "recipes":
        return [word for word in words if word not in (*packaged.recipes(), "NAME")]
    if verb == "env":
        return [word for word in words if word != "--json"]
    if verb == "data":
        name, *words = words
        script = ROOT / "examples" / "datasets" / f"{name.replace('-', '_')}.py"
        parser = data.check_parser() if name == "check" else packaged.load_module(script).make_parser()
        return parser.parse_known_args(words)[1]
    return importlib.import_module(f"fire_opd_trl.{COMMANDS[verb][0]}").build_parser().parse_known_args(words)[1]


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_every_command_of_a_page_is_understood(words):
    verb, *rest = (word for word in words if word != "...")  # a page leaves out what it has said before
    if not verb.startswith("--") and "--help" not in rest:
        assert verb in COMMANDS
        assert left_over(verb, rest) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_python_of_a_page_compiles(page):
    for block in blocks(page.read_text(), "python"):
        if page.stem not in SKETCHES:
            ast.parse(block.code)


@pytest.mark.parametrize("name", EXECUTED)
def test_the_python_of_a_journey_runs(name, tmp_path, monkeypatch):
    from fire_opd_trl import FiReOPDConfig

    monkeypatch.chdir(tmp_path)
    names = {"FiReOPDConfig": partial(FiReOPDConfig, use_cpu=True, bf16=False)}
    sources = [block.code for block in blocks((ROOT / "docs" / f"{name}.md").read_text(), "python")]
    assert sources
    for source in sources:
        exec(source, names)
    if "trainer" in names:
        assert names["trainer"].state.global_step == names["trainer"].args.max_steps


@pytest.mark.nightly
def test_the_first_run_runs_as_it_is_written(tmp_path):
    """Every command of docs/first_run.md, one after the other, from a folder in which nothing is."""
    shim = tmp_path / "bin" / "fire-opd"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m fire_opd_trl.cli "$@"\n')
    shim.chmod(0o755)
    page = (ROOT / "docs" / "first_run.md").read_text()
    script = "set -euxo pipefail\nexport PATH=$PWD/bin:$PATH PYTHONPATH=$REPOSITORY\n"
    script += "".join(block.code for block in blocks(page, "bash") if block.run)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "REPOSITORY": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    own = tmp_path / "first" / "own"
    assert (tmp_path / "first" / "demo" / "inspect.html").exists() and (own / "run" / "inspect.html").exists()
    (difference,) = re.findall(r"^run +embedded +student +\+([\d.]+) .* above", done.stdout, re.MULTILINE)
    assert float(difference) > 10
