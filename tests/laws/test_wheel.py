"""
The wheel holds what the folders hold, and works where no checkout is: it is built, installed into an environment of
its own, which has the dependencies of this one, and used from an empty folder.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import fire_opd_trl


pytestmark = pytest.mark.launch
CHECKOUT = Path(fire_opd_trl.__file__).parents[1]
# configs/ and examples/ lie at the top of the checkout and inside the installed package.
FOLDERS = {"fire_opd_trl": "fire_opd_trl", "configs": "fire_opd_trl/configs", "examples": "fire_opd_trl/examples"}
NO_DATA = {"__pycache__", ".ipynb_checkpoints"}


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, without anything that leads back to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HOME=str(cwd / "hf"))
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the checkout: a build writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    aside = shutil.ignore_patterns(".*", "__pycache__", "outputs", "build", "dist", "*.egg-info")
    shutil.copytree(CHECKOUT, folder / "checkout", ignore=aside)
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "-w", folder, folder / "checkout", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of an environment with the wheel and, by a path alone, the dependencies that are installed here."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=folder)
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    # A path in such a file is searched, but the files of this kind in it, an editable install's, are not read.
    here = "\n".join(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
    Path(sysconfig.get_path("purelib", vars=paths), "dependencies.pth").write_text(here)
    return python.parent


def test_the_wheel_holds_what_the_folders_hold_and_nothing_else(wheel):
    expected = {
        f"{inside}/{path.relative_to(CHECKOUT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and not NO_DATA & set(path.parts)
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_what_is_installed_is_not_the_checkout(installed, tmp_path):
    code = "import fire_opd_trl, importlib.util as u; print(fire_opd_trl.__file__, u.find_spec('benchmarks'))"
    file, benchmarks = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent) and benchmarks == "None"
    assert not Path(file).is_relative_to(CHECKOUT)


def test_the_command_says_its_version_and_explains_a_method(installed, tmp_path):
    assert run(installed / "fire-opd", "--version", cwd=tmp_path).split() == ["fire-opd", fire_opd_trl.__version__]
    assert "2606.02684" in run(installed / "fire-opd", "methods", "fire", cwd=tmp_path)


# What a user does with the package, in one process: its imports take longer than all of it. Each part prints into its
# own list, so that one that fails says so alone.
USED = """
import contextlib, io, json, sys, traceback
from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file

from fire_opd_trl import cli
from fire_opd_trl.preflight import packaged, recipes

configs, said = packaged.packaged_folder("configs"), {}


def configs_loaded():
    for file in (configs / "accelerate").glob("*.yaml"):
        print("accelerate", file.stem, load_config_from_file(str(file)).num_processes)
    parser = packaged.load_module(packaged.packaged_folder("examples") / "train_fire.py").make_parser()
    for name in packaged.recipes():
        assert parser.set_defaults_with_config(**recipes.read_recipe(name)) == [], name
        print("recipes", name)


parts = {
    "help": lambda: cli.main(["train", "--help"]),
    "configs": configs_loaded,
    "preflight": lambda: cli.main(["preflight", "--config", "smoke"]),
    "demo": lambda: cli.main(["demo", "--steps", "2", "--problems", "8", "--output_dir", "demo"]),
}
for name, part in parts.items():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            code = part()
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = traceback.format_exc()
    said[name] = [code or 0, printed.getvalue()]
Path("said.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def used(installed, tmp_path_factory) -> tuple[dict, Path]:
    """What each part of `USED` printed, and the folder in which it ran."""
    folder = tmp_path_factory.mktemp("used")
    run(installed / "python", "-c", USED, cwd=folder)
    return json.loads((folder / "said.json").read_text()), folder


def test_the_command_explains_training(used):
    code, shown = used[0]["help"]
    assert code == 0 and "--drop_fraction" in shown and "zero3_offload" in shown


def test_the_smoke_recipe_passes_preflight_with_the_embedded_models(used):
    code, said = used[0]["preflight"]
    assert code == 0 and "teacher, tokens" in said and "fault" not in said


def test_the_demo_takes_two_steps_and_ends_with_its_page(used):
    said, folder = used
    code, shown = said["demo"]
    assert code == 0 and "before: student" in shown
    assert (folder / "demo" / "metrics.json").is_file() and any((folder / "demo" / "student").iterdir())
    page = (folder / "demo" / "inspect.html").read_text()
    assert "report: demo/inspect.html" in shown.splitlines()[-3] and "browser" in shown.splitlines()[-1]
    assert "</html>" in page and len(page) < 3_000_000


def test_every_packaged_config_loads(used):
    code, shown = used[0]["configs"]
    loaded = {tuple(line.split()[:2]) for line in shown.splitlines()}
    folders = ("accelerate", "recipes")
    assert code == 0
    assert loaded == {(name, file.stem) for name in folders for file in (CHECKOUT / "configs" / name).rglob("*.yaml")}
