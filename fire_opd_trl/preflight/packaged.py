"""The script and the configurations that this package ships, and what a run reads of them before it starts."""

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ..spelling import did_you_mean


def packaged_folder(name: str) -> Path:
    """`configs` or `examples`: inside the installed package, and beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def training_script() -> ModuleType:
    """examples/train_fire.py, which knows the arguments of a training and what becomes of them."""
    return load_module(packaged_folder("examples") / "train_fire.py")


def accelerate_configs() -> dict[str, Path]:
    """The accelerate configurations of this package, by name."""
    return {file.stem: file for file in sorted((packaged_folder("configs") / "accelerate").glob("*.yaml"))}


def accelerate_config(name: str, parser: argparse.ArgumentParser) -> Path:
    """The file of a configuration that is given by name or path; `parser` refuses what is none."""
    config = accelerate_configs().get(name, Path(name))
    if not config.is_file():
        configs = accelerate_configs()
        parser.error(
            f"--accelerate_config {name} is neither a file nor one of: {', '.join(configs)}."
            f"{did_you_mean(name, configs)}"
        )
    import yaml  # which --help can do without

    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--accelerate_config {name} cannot be read as YAML: {' '.join(str(error).split())}")
    if wrong := wrong_form(settings):
        parser.error(f"--accelerate_config {name} {wrong}")
    return config


# What accelerate knows as `distributed_type`.
ENGINES = (
    "NO", "MULTI_GPU", "DEEPSPEED", "FSDP", "MULTI_CPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA",
    "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON", "XLA", "MEGATRON_LM",
)  # fmt: skip


def wrong_form(settings: Any) -> str:
    """
    Returns what is wrong with the form of a configuration of accelerate, or nothing: what accelerate itself would find
    only in the ranks that it starts.
    """
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        return "is no configuration of accelerate: it names no distributed_type. `accelerate config` makes one."
    if (kind := settings["distributed_type"]) not in (*ENGINES, False):  # without quotes, NO is false in YAML
        return f"has distributed_type: {kind!r}.{did_you_mean(str(kind), ENGINES)} Give one of: {', '.join(ENGINES)}."
    for number in ("num_processes", "num_machines"):
        if not str(count := settings.get(number, 1)).isdigit() or int(count) < 1:
            return f"has {number}: {count!r}. Give a whole number of at least 1."
    for part in ("deepspeed_config", "fsdp_config"):
        if not isinstance(settings.get(part) or {}, dict):
            return f"has {part}: {settings[part]!r}. It must hold settings, each with its name."
    deepspeed = settings.get("deepspeed_config") or {}
    if (file := deepspeed.get("deepspeed_config_file")) is not None:
        return wrong_deepspeed(file)
    stage = deepspeed.get("zero_stage", 2)
    return "" if str(stage) in ("0", "1", "2", "3") else f"has the ZeRO stage {stage!r}. Give 0, 1, 2 or 3."


def wrong_deepspeed(file: Any) -> str:
    """Returns what is wrong with the form of DeepSpeed's own file, as far as a plan reads it, or nothing."""
    said = f"names the deepspeed_config_file {file}, which"
    try:
        zero = json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]
        stage = zero.get("stage", 0)
    except (OSError, ValueError) as error:
        return f"{said} cannot be read as JSON: {error}"
    except (TypeError, KeyError, AttributeError):
        return f"{said} has no settings under `zero_optimization`."
    if stage != "auto" and (type(stage) is not int or stage not in (0, 1, 2, 3)):
        return f"{said} has the ZeRO stage {stage!r}. Give 0, 1, 2 or 3."
    for name in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(name) or {}, dict):
            return f"{said} has {name}: {zero[name]!r}. It must hold settings, each with its name."
    for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters"):
        if zero.get(name, 0) != "auto" and type(zero.get(name, 0)) not in (int, float):
            return f"{said} has {name}: {zero[name]!r}. Give a number, or auto."
    return ""


# Recipes of earlier versions, and those that took their place.
RENAMED = {
    "paper": "strong-to-weak",
    "several_teachers": "multi-teacher",
    "vllm_colocate_sleep": "strong-to-weak",
    "vllm_sharded_teacher": "vllm-awake",
    "vllm_server": "vllm-server",
}


def recipes() -> dict[str, Path]:
    """The recipes of this package, by name: YAML files with arguments of a training; those of baselines come last."""
    folder = packaged_folder("configs") / "recipes"
    return {file.stem: file for part in (folder, folder / "baselines") for file in sorted(part.glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The YAML file of `--config`, which is given by its path, or by name if it is one of this package."""
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    if name in known:
        return known[name]
    if name in RENAMED:
        raise ValueError(f"--config {name} is called {RENAMED[name]} now.")
    if Path(name).suffix in (".yaml", ".yml"):
        raise ValueError(f"--config {name}: there is no such file.{did_you_mean(Path(name).stem, known)}")
    raise ValueError(
        f"--config {name} is neither a file nor a recipe.{did_you_mean(name, known)} `fire-opd recipes` lists them."
    )


def packaged_file(path: str) -> Path:
    """A file of this package by its path in it, such as `demo/models/student` or `examples/tools.py`."""
    folder, _, rest = path.partition("/")
    return packaged_folder(folder) / rest


def strangers(arguments: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Returns the options among some arguments that a parser, here that of `accelerate launch`, does not know."""
    known = {option for action in parser._actions for option in action.option_strings}
    return [word for word in arguments if word.startswith("--") and word.split("=")[0] not in known]


def load_module(file: Path) -> ModuleType:
    """The module in a file, wherever the file lies."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
