"""What the pages tell a reader to type: every `fire-opd` command is understood, and their Python runs or compiles."""

import argparse
import ast
import importlib
import re
import subprocess
import sys

import pytest
from support.documents import PAGES, ROOT, blocks, commands, named

from fire_opd_trl.cli import COMMANDS
from fire_opd_trl.methods import METHODS
from fire_opd_trl.preflight import packaged


COMMAND_LINES = [
    pytest.param(words, id=f"{named(page)}: {' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page.read_text())
]
JOURNEYS = "first_run which_method several_teachers add_a_method"
# The Python of these pages is executed, from top to bottom. Elsewhere it must compile; a page of sketches has `...`.
EXECUTED = ("which_method", "several_teachers", "add_a_method", "methods")
SKETCHES = ("teachers",)
LAUNCH = ("--accelerate_config", "--num_processes")


def understood_by_the_training(verb: str, words: list[str]) -> list[str]:
    """The words that neither the launch nor the training takes; models and data are not looked at."""
    launch = argparse.ArgumentParser(allow_abbrev=False)
    launch.add_argument("--accelerate_config")
    launch.add_argument("--num_processes", type=int)
    launch.add_argument("--config")
    launch.add_argument("--with-models", action="store_true")
    options, rest = launch.parse_known_args(words)
    if options.accelerate_config and not options.accelerate_config.endswith(".yaml"):
        assert options.accelerate_config in packaged.accelerate_configs()
    if options.config and not options.config.endswith(".yaml"):
        assert options.config in packaged.recipes()
    assert verb == "preflight" or not options.with_models
    return packaged.load_module(ROOT / "examples" / "train_fire.py").make_parser().parse_known_args(rest)[1]


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_every_command_of_a_page_is_understood(words):
    verb, *rest = words
    if "--help" in rest or verb.startswith("--"):
        return
    assert verb in COMMANDS, f"there is no command {verb!r}"
    if verb in ("train", "preflight"):
        assert understood_by_the_training(verb, rest) == []
    elif verb == "methods":
        assert len(rest) <= 1 and set(rest) <= {*METHODS, "NAME"}
    else:
        importlib.import_module(f"fire_opd_trl.{COMMANDS[verb][0]}").build_parser().parse_args(rest)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_python_of_a_page_compiles(page):
    for block in blocks(page.read_text(), "python"):
        if page.stem not in SKETCHES:
            ast.parse(block.code)


@pytest.mark.parametrize("name", EXECUTED)
def test_the_python_of_a_journey_runs(name, tmp_path, monkeypatch):
    from fire_opd_trl import FiReOPDConfig

    monkeypatch.chdir(tmp_path)
    names = {"FiReOPDConfig": FiReOPDConfig}
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
        env={**__import__("os").environ, "REPOSITORY": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    own = tmp_path / "first" / "own"
    assert (tmp_path / "first" / "demo" / "inspect.html").exists() and (own / "run" / "inspect.html").exists()
    (difference,) = re.findall(r"^run +embedded +student +\+([\d.]+) .* above", done.stdout, re.MULTILINE)
    assert float(difference) > 10
