"""The rules of the house, read from its source: who imports whom, how long a file is, what a config explains."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import fire_opd_trl


PACKAGE = Path(fire_opd_trl.__file__).parent
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
    "evaluation",
    "cli",
}
# What a room of pure mathematics may import of the package. The standard library and torch are free to all.
PURE = {
    **{name: {"stages"} for name in MODULES if name.startswith("stages/")},
    "pipeline": {"stages"},
    "methods": {"stages", "pipeline"},
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
        self.names |= (
            {".".join([*module, alias.name]) for alias in node.names} if not node.module else {".".join(module)}
        )


def imports(module: str, source: str | None = None) -> set[str]:
    visitor = Imports(module)
    visitor.visit(ast.parse(source if source is not None else MODULES[module].read_text()))
    return visitor.names


def outside(names: set[str]) -> set[str]:
    """Top-level packages that are neither ours nor of the standard library."""
    return {name.split(".")[0] for name in names} - {"fire_opd_trl"} - set(sys.stdlib_module_names)


def rooms(names: set[str]) -> set[str]:
    """Our own modules among the imports: `stages` for everything below it, the empty name for the package itself."""
    ours = [name.split(".") for name in names if name.split(".")[0] == "fire_opd_trl"]
    return {parts[1] if len(parts) > 1 else "" for parts in ours}


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
    assert rooms(names) == {"stages", "pipeline", "cli"}
    assert rooms(imports("config", "from . import METHODS\nimport fire_opd_trl")) == {"METHODS", ""}


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_imports_torch_alone_and_only_what_comes_before_it(module):
    names = imports(module)
    assert outside(names) <= {"torch"}
    assert rooms(names) <= PURE[module]


def test_all_rooms_of_the_mathematics_exist():
    assert set(PURE) <= set(MODULES) and sum(name.startswith("stages/") for name in PURE) >= 9


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
    own = [field for field in fields(config) if field.name in vars(config)["__annotations__"]]
    assert len(own) >= 15 and "drop_fraction" in [field.name for field in own]
    for field in own:
        assert len(field.metadata.get("help", "").split()) >= 3, field.name


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()
