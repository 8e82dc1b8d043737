"""The rules of the house, read from its source: who imports whom, what is tested where, what a map names."""

import ast
import inspect
import itertools
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import fire_opd_trl


PACKAGE = Path(fire_opd_trl.__file__).parent
TESTS = Path(__file__).parents[1]
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("configs", "examples")  # shipped with the package, no part of it
}
HEAVY = {"trl", "transformers", "accelerate"}
MAY_IMPORT_HEAVY = {
    "config",
    "rollouts",
    "scoring",
    "teachers",
    "preflight",
    "trainer",
    "demo",
    "real_pair",
    "evaluation",
    "data",
    "cli",
}
# All modules. Each imports only what stands before it: rooms before rooms, and modules before modules of their room. A
# folder of a room is a room of its own: the demo ends with evaluation's report of a run, and the comparison trains on
# the demo's task.
ORDER = """
stages/world stages/records stages/rollout stages/group stages/scope stages/score stages/filter stages/reweight
stages/advantage stages/divergence stages/loss stages/soundness stages/metrics stages/watchdogs stages/select
stages/repetition stages/__init__
spelling
pipeline
methods
refusals
config
rollouts/__init__ rollouts/prompts rollouts/layout rollouts/from_trl rollouts/packing rollouts/exchange rollouts/images
rollouts/micro_batches rollouts/ranks rollouts/engine_gap rollouts/token_texts rollouts/records
rollouts/drawn_rows
scoring/__init__ scoring/clock scoring/forward_cost scoring/heads scoring/forward scoring/token_scores
scoring/divergences scoring/window
teachers/__init__ teachers/setup teachers/vocabulary teachers/prompts teachers/sources teachers/routing
teachers/deepspeed teachers/offload teachers/placement teachers/health
preflight/plan/__init__ preflight/plan/cost preflight/plan/shapes preflight/plan/run preflight/plan/hardware
preflight/plan/memory preflight/plan/seconds preflight/plan/fit preflight/plan/report preflight/plan/of_arguments
preflight/plan/calibrate
preflight/__init__ preflight/environment preflight/packaged preflight/recipes preflight/findings preflight/packages
preflight/loading preflight/dataset preflight/streams preflight/prompts preflight/rewards preflight/window
preflight/models preflight/precision preflight/inspection preflight/fit preflight/tryout preflight/command
preflight/plan_command preflight/arguments preflight/plan_arguments
trainer/callbacks trainer/sampling trainer/logs trainer/progress trainer/record trainer/recorder trainer/watchdogs
trainer/card trainer/ending trainer/launched trainer/arguments trainer/trainer trainer/one_window trainer/command
trainer/__init__
__init__
evaluation/__init__ evaluation/files evaluation/statistics evaluation/style evaluation/templates evaluation/workers
evaluation/inspect/__init__ evaluation/inspect/verdict evaluation/inspect/pair evaluation/inspect/visible
evaluation/inspect/token_types evaluation/inspect/run evaluation/inspect/curves evaluation/inspect/facts
evaluation/inspect/figures evaluation/inspect/page evaluation/inspect/report evaluation/inspect/text
evaluation/inspect/command
demo/__init__ demo/task demo/make_models demo/curves demo/run
real_pair/__init__ real_pair/sums real_pair/models
evaluation/evaluate/problems evaluation/evaluate/answers evaluation/evaluate/prompts
evaluation/evaluate/tasks evaluation/evaluate/grading evaluation/evaluate/sandbox evaluation/evaluate/code
evaluation/evaluate/inside evaluation/evaluate/samples evaluation/evaluate/summary evaluation/evaluate/results
evaluation/evaluate/words evaluation/evaluate/terminal evaluation/evaluate/picture evaluation/evaluate/page
evaluation/evaluate/settings evaluation/evaluate/model_facts evaluation/evaluate/backend evaluation/evaluate/decoding
evaluation/evaluate/provider evaluation/evaluate/vllm
evaluation/evaluate/engine evaluation/evaluate/accuracy evaluation/evaluate/run
evaluation/evaluate/__init__ evaluation/evaluate/command
data/__init__ data/sources data/mixing data/prompts data/similar data/against data/readers data/check data/command
evaluation/compare/__init__ evaluation/compare/presets evaluation/compare/records evaluation/compare/embedded
evaluation/compare/real evaluation/compare/baselines evaluation/compare/runs evaluation/compare/summary
evaluation/compare/answers evaluation/compare/pictures evaluation/compare/report evaluation/compare/command
cli
""".split()
# The standard library and torch are all that these rooms may import beside the package.
PURE = [name for name in ORDER if name.split("/")[0] in ("stages", "pipeline", "methods")] + ["rollouts/packing"]
# Modules without a test file of their name, and where they are tested instead.
TESTED_ELSEWHERE = {
    "__init__": "here: every public name can be reached",
    "stages/__init__": "here and in all of tests/stages: it only names what the room offers",
    "trainer/__init__": "trainer/test_trainer.py: it only names what the room offers",
    "teachers/setup": "teachers/test_placement.py: a record of what placement needs of a run",
    "preflight/tryout": "preflight/test_command.py: it tries models, under --with-models",
    "demo/make_models": "it trains the embedded models for minutes; all tests of training start from what it made",
    "trainer/one_window": "evaluation/inspect/test_pair.py: a look at a pair from end to end",
    "evaluation/style": "data alone: colours",
    "evaluation/inspect/verdict": "evaluation/inspect/test_pair.py: what is said at its end",
    "evaluation/evaluate/__init__": "evaluation/evaluate/test_run.py: it only names what the room offers",
    "evaluation/evaluate/inside": "evaluation/evaluate/test_code.py: it runs inside of the sandboxes",
    "evaluation/compare/embedded": "evaluation/compare/test_baselines.py: runs of the embedded task",
    "evaluation/compare/pictures": "evaluation/compare/test_report.py: a report draws them",
    "evaluation/compare/runs": "evaluation/compare/test_command.py: a comparison from end to end",
    "evaluation/compare/summary": "evaluation/compare/test_report.py: the report's table",
}


class Imports(ast.NodeVisitor):
    """Absolute names of all that a module imports, at the top or inside functions, except to check types."""

    def __init__(self, module: str):
        folder = module.split("/")[:-1]
        self.package, self.names = ["fire_opd_trl", *folder], set()

    def visit_If(self, node: ast.If):
        names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
        for child in node.orelse if "TYPE_CHECKING" in names else (*node.body, *node.orelse):
            self.visit(child)

    def visit_Import(self, node: ast.Import):
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom):
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        module = [*base, *(node.module.split(".") if node.module else [])]
        # `from . import cli` imports a module; `from .stages import World` a name.
        for alias in node.names:
            inside = ".".join([*module, alias.name])
            self.names.add(
                inside if our_module(inside) not in (None, our_module(".".join(module))) else ".".join(module)
            )


def our_module(name: str) -> str | None:
    """The key in MODULES of an absolute name: of a module, of a room, or of what lies in either."""
    if name.split(".")[0] != "fire_opd_trl":
        return None
    parts = name.split(".")[1:]
    while "/".join(parts) not in MODULES and "/".join([*parts, "__init__"]) not in MODULES:
        parts.pop()
    key = "/".join(parts)
    return key if key in MODULES else "/".join([*parts, "__init__"])


def imports(module: str, source: str | None = None) -> set[str]:
    visitor = Imports(module)
    visitor.visit(ast.parse(source if source is not None else MODULES[module].read_text()))
    return visitor.names


def outside(names: set[str]) -> set[str]:
    """Top-level packages that are neither ours nor of the standard library."""
    return {name.split(".")[0] for name in names} - {"fire_opd_trl"} - set(sys.stdlib_module_names)


def ours(names: set[str]) -> set[str]:
    """Our own modules among the imports: a room's name stands for its `__init__`."""
    return {module for name in names if (module := our_module(name)) is not None}


def test_the_reader_of_imports_sees_what_it_must():
    source = """
import torch.nn
from typing import TYPE_CHECKING
from .filter import keep_all
from ..pipeline import distil
from .. import cli
if TYPE_CHECKING:
    import trl
else:
    import numpy
def late():
    from transformers.utils import logging
"""
    names = imports("stages/loss", source)
    assert outside(names) == {"torch", "numpy", "transformers"}
    assert ours(names) == {"stages/filter", "pipeline", "cli"}
    assert ours(imports("config", "from . import METHODS\nimport fire_opd_trl")) == {"__init__"}
    assert ours(imports("cli", "from .demo import run\nfrom .stages import World")) == {"demo/run", "stages/__init__"}


def test_every_module_has_its_place_in_the_order():
    assert len(ORDER) == len(set(ORDER)) and set(ORDER) == set(MODULES)
    rooms = [name.rpartition("/")[0] or name for name in ORDER]
    assert [room for room, _ in itertools.groupby(rooms)] == list(dict.fromkeys(rooms))  # none is left and entered


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    later = [other for other in ours(imports(module)) if ORDER.index(other) >= ORDER.index(module)]
    assert not later, f"{module} imports {later}, which come after it"


@pytest.mark.parametrize("module", MODULES)
def test_the_package_imports_nothing_that_shows_or_tests_it(module):
    names = imports(module)
    assert not outside(names) & {"benchmarks", "examples", "tests", "support", "pytest"}
    assert not [name for name in names if name.startswith(("fire_opd_trl.examples", "fire_opd_trl.configs"))]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("trainer/")])
def test_nothing_outside_the_trainers_room_borrows_a_trainer(module):
    borrowers = [
        f"line {node.lineno}: {getattr(node, 'name', 'lambda')}"
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and "trainer" in [argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)]
    ]
    assert not borrowers


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_imports_torch_alone(module):
    assert outside(imports(module)) <= {"torch"}


def test_all_rooms_of_the_mathematics_exist():
    assert sum(name.startswith("stages/") for name in PURE) >= 9 and {"pipeline", "methods"} <= set(PURE)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_rooms_at_the_seam_import_trl_transformers_or_accelerate(module):
    if module.split("/")[0] not in MAY_IMPORT_HEAVY:
        assert not outside(imports(module)) & HEAVY


def test_the_algorithm_fits_on_one_screen():
    functions = ast.parse(MODULES["pipeline"].read_text()).body
    (distil,) = [node for node in functions if isinstance(node, ast.FunctionDef) and node.name == "distil"]
    assert distil.end_lineno - distil.lineno < 45


def test_the_package_imports_without_trl_or_transformers():
    code = (
        "import sys, fire_opd_trl as f; f.METHODS['fire'](); f.distil; f.Context();"
        f"print(sorted({HEAVY!r} & set(sys.modules)), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["[]", "True"]


def test_every_public_name_can_be_reached():
    for name in set(fire_opd_trl.__all__) - {"METHODS"}:
        assert getattr(fire_opd_trl, name).__name__ == name
    with pytest.raises(AttributeError, match="NoSuchName"):
        fire_opd_trl.NoSuchName  # noqa: B018


def test_every_field_of_the_config_explains_itself():
    config = fire_opd_trl.FiReOPDConfig
    own = [field for field in fields(config) if field.name in inspect.get_annotations(config)]
    assert len(own) >= 15 and "drop_fraction" in [field.name for field in own]
    for field in own:
        assert len(field.metadata.get("help", "").split()) >= 3, field.name


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


# Tests


def test_of(module: str) -> Path:
    return TESTS / Path(module).with_name(f"test_{Path(module).name}.py")


test_of.__test__ = False


def has_code(module: str) -> bool:
    """Whether there is more in a file than its docstring."""
    return len(ast.parse(MODULES[module].read_text()).body) > 1


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test_of_its_name_or_a_reason(module):
    assert test_of(module).is_file() + (module in TESTED_ELSEWHERE) == has_code(module)


def test_no_reason_is_left_over():
    assert set(TESTED_ELSEWHERE) <= set(MODULES) and all(TESTED_ELSEWHERE.values())
    named = {name for reason in TESTED_ELSEWHERE.values() for name in re.findall(r"[\w/]+\.py", reason)}
    assert [name for name in named if not (TESTS / name).is_file()] == []


def test_every_folder_of_tests_is_named_after_what_it_tests():
    rooms = {name.rpartition("/")[0] for name in MODULES} - {""}
    others = {"laws", "paper", "engine", "engine/plugin", "examples", "benchmarks", "support"}
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py")} - {"."}
    assert folders <= rooms | others


# Maps


def rooms_and_files() -> list[str]:
    """What the maps name, in the order of imports: rooms, those inside of rooms too, and files at the top."""
    return [name for name in dict.fromkeys(name.rpartition("/")[0] or name for name in ORDER) if name != "__init__"]


def test_the_map_in_the_package_is_the_order_of_imports():
    assert re.findall(r"^ {4}([\w/]+) +\S", fire_opd_trl.__doc__, re.MULTILINE) == rooms_and_files()


def test_the_map_in_the_readme_names_the_rooms_and_files():
    readme = (PACKAGE.parent / "README.md").read_text()
    cells = [line.split("|")[1] for line in readme.splitlines() if line.startswith("|")]
    named = [name for cell in cells for name in re.findall(r"\]\(fire_opd_trl/([\w/]+)(?:\.py)?\)", cell)]
    assert sorted(named) == sorted(rooms_and_files())  # a reader meets the algorithm first
