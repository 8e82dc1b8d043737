"""Teachers in DeepSpeed engines of their own: configuration, loading, mixtures of experts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import patch_environment
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed
from trl.models.utils import prepare_deepspeed

from .setup import RunSetup


def deepspeed_file(given: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Returns the teacher's own DeepSpeed configuration from a dict or a JSON file."""
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"teacher_deepspeed={given!r} is not a JSON file that can be read: {error}.") from error
    assert not isinstance(given, str)
    if given is not None and not (isinstance(given, dict) and isinstance(given.get("zero_optimization", {}), dict)):
        raise ValueError(
            f"teacher_deepspeed holds {given!r}. It must be a DeepSpeed configuration: an object whose "
            "`zero_optimization` is one too."
        )
    return given


def deepspeed_stage(given: dict[str, Any] | str | None) -> int | None:
    """Returns the ZeRO stage of the teacher's own configuration, if it has one."""
    config = deepspeed_file(given)
    if config is None:
        return None
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (0, 3):
        raise ValueError(
            f"teacher_deepspeed has the ZeRO stage {stage!r}. A frozen teacher is partitioned (3) or whole (0): set "
            "zero_optimization.stage to one of them."
        )
    return stage


def teacher_deepspeed_config(setup: RunSetup, where: str) -> dict[str, Any] | None:
    """Returns what DeepSpeed is told of a teacher: the teacher's own file, or what it is told of the student."""
    if not setup.deepspeed:
        return None
    student = setup.accelerator.state.deepspeed_plugin.deepspeed_config
    own = deepspeed_file(setup.args.teacher_deepspeed)
    if own is None:
        config = deepcopy(student)
    else:  # batch sizes are not the teacher's own, and neither is the precision unless the file says so
        batch = {key: value for key, value in student.items() if "batch_size" in key or key.startswith("gradient_acc")}
        precision = {key: student[key] for key in ("bf16", "fp16") if key in student and not drop_auto(own).get(key)}
        config = deepcopy({**drop_auto(own), **batch, **precision})
    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = 0 if where == "replicated" or not hf_deepspeed.is_deepspeed_zero3_enabled() else 3
    if where == "offload" and zero.get("offload_param", {}).get("device", "none") == "none":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return config


def drop_auto(config: dict[str, Any]) -> dict[str, Any]:
    """Drops the values that transformers would fill in, so that DeepSpeed's own defaults hold."""
    kept = {key: drop_auto(value) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in kept.items() if value != "auto"}


@contextmanager
def loading_under(config: dict[str, Any] | None, setup: RunSetup) -> Iterator[None]:
    """
    transformers loads a model as the DeepSpeed configuration in force says. In this context that is the teacher's, not
    the student's. FSDP's efficient loading is switched off: only the first rank would have the weights, and nobody
    would send them to the others.
    """
    if config is None:
        with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
            yield
        return
    hf_deepspeed.unset_hf_deepspeed_config()
    whole = config["zero_optimization"]["stage"] != 3
    current = None if whole else hf_deepspeed.HfDeepSpeedConfig(config)  # in force for as long as it lives
    try:
        yield
    finally:
        del current
        setup.accelerator.state.deepspeed_plugin.set_deepspeed_weakref()


def wrap_in_deepspeed(model: PreTrainedModel, setup: RunSetup, config: dict[str, Any]) -> torch.nn.Module:
    """Puts a frozen model into a DeepSpeed engine of its own."""
    sharded = config["zero_optimization"]["stage"] == 3
    if sharded:
        keep_mixtures_whole(model)
    # TRL's helper reads of the accelerator nothing but the configuration
    plugin = SimpleNamespace(deepspeed_config=config)
    engine = prepare_deepspeed(model, SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)))
    if not sharded and hf_deepspeed.is_deepspeed_zero3_enabled():
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        head = setup.base_of(engine).get_output_embeddings()
        for parameter in head.parameters():  # the fused head would gather it, as it does the student's
            parameter.ds_status = ZeroParamStatus.AVAILABLE
    return engine


def keep_mixtures_whole(model: torch.nn.Module) -> None:
    """
    Lets ZeRO-3 gather all experts of a mixture together. If it gathered them one by one, ranks whose tokens go to
    different experts would wait for each other for ever.
    """
    from deepspeed.utils import set_z3_leaf_modules

    mixtures = {
        type(module) for module in model.modules() if isinstance(getattr(module, "experts", None), torch.nn.Module)
    }
    if mixtures:
        set_z3_leaf_modules(model, list(mixtures))
