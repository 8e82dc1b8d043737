"""`fire-opd preflight`: the arguments of `fire-opd train`; finds what is wrong before a GPU is taken."""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from ..config import FiReOPDConfig
from ..refusals import chosen_method
from ..teachers.deepspeed import deepspeed_file
from ..teachers.sources import teacher_sources
from .findings import Checked
from .inspection import inspect_run
from .packaged import accelerate_config, accelerate_configs, training_script
from .tryout import try_answers


def main(argv: list[str]) -> int:
    """Run `fire-opd preflight`: find what is wrong before the GPUs start; the exit code is 1 if there is a fault."""
    configs = accelerate_configs()
    parser = argparse.ArgumentParser(
        prog="fire-opd preflight",
        usage="%(prog)s [--config FILE] [--ARGUMENT VALUE ...] [--with-models]",
        description="Find what is wrong before the GPUs start: the arguments of `train`, a table, an exit code.",
        epilog="All other arguments are those of `fire-opd train`. Exit code 0: training can start; 1: it cannot.",
        allow_abbrev=False,
    )
    parser.add_argument("--accelerate_config", help=f"of the planned run: {', '.join(configs)}, or a file")
    parser.add_argument("--num_processes", type=int, help="of the planned run, by default that of accelerate_config")
    parser.add_argument(
        "--with-models", action="store_true", help="load the models, and compare them on a few answers of the student"
    )
    options, rest = parser.parse_known_args(argv)
    config = None
    if options.accelerate_config is not None:
        config = accelerate_config(options.accelerate_config, parser)

    return run(training_script(), rest, config, options.num_processes, options.with_models)


def planned_config(processes: int) -> type[FiReOPDConfig]:
    """Returns the config's class as it will be on `processes` processes, since windows depend on their number."""
    return type("FiReOPDConfig", (FiReOPDConfig,), {"world_size": property(lambda self: processes)})


def planned_run(accelerate_config: Path | None, processes: int | None) -> tuple[int, dict[str, Any]]:
    """
    Returns the run's number of processes, and what it is that this process is not: the `engine` that trains the
    student on them and the `mixed_precision`. Both stand in a configuration of accelerate.
    """
    planned = {} if accelerate_config is None else yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
    if not isinstance(planned, dict):
        raise ValueError(f"{accelerate_config} is no configuration of accelerate.")
    kind, deepspeed = planned.get("distributed_type"), planned.get("deepspeed_config") or {}
    stage = deepspeed.get("zero_stage")
    if (file := deepspeed.get("deepspeed_config_file")) is not None:
        stage = (deepspeed_file(file) or {}).get("zero_optimization", {}).get("stage")
    engines = {"DEEPSPEED": "ZeRO-3" if stage == 3 else "DeepSpeed", "FSDP": "FSDP"}
    known = {"engine": engines.get(str(kind)), "mixed_precision": planned.get("mixed_precision", "no")}
    return processes or planned.get("num_processes") or 1, {} if accelerate_config is None else known


def run(script: Any, rest: list[str], accelerate_config: Path | None, processes: int | None, with_models: bool) -> int:
    """
    Check, print the table, and return the exit code: 0 if training can start, 1 if there is a fault.

    Args:
        script (`module`): examples/train_fire.py, which knows the arguments and what becomes of them.
        rest (`list[str]`): The arguments of the training.
        accelerate_config (`Path`, *optional*): The run's configuration of accelerate.
        processes (`int`, *optional*): The run's number of processes, by default that of `accelerate_config`.
        with_models (`bool`): Whether to load the models and try a few answers, in this process.
    """
    warnings.simplefilter("ignore")  # what is to be said is in the table
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    checked, parts = Checked(), {}
    with checked.check("settings", whatever=True):
        processes, others = planned_run(accelerate_config, processes)
        parts = trainer_arguments(script, rest, processes)
        args = parts["args"]
        method = chosen_method(None, args, rewarded=bool(parts["reward_funcs"]))
        teachers = teacher_sources(None, parts["model"], args, parts["peft_config"] is not None)
        others.update({name: parts[name] for name in ("peft_config", "quantization_config")})
        data = parts["train_dataset"], parts["eval_dataset"]
        checked = inspect_run(parts["model"], teachers, args, method, *data, None, others)
    example = checked.example
    if with_models and not checked.faults:
        with checked.check("models", whatever=True), tempfile.TemporaryDirectory() as folder:
            answers = script.make_trainer(arguments_to_try(parts, folder)).scored_answers
            example += "\n" + try_answers(answers, list(teachers), args.teacher_column, checked)
    print(checked.table())
    print(example)
    faults, doubts = len(checked.faults), sum(finding.outcome == "warning" for finding in checked.findings)
    if faults:
        print(f"\n{faults} fault{'s' * (faults > 1)}: training would not start.")
        return 1
    seen = "" if with_models else " Weights were not looked at: --with-models does."
    print(f"\nTraining can start; {doubts or 'no'} warning{'s' * (doubts != 1)}.{seen}")
    return 0


def trainer_arguments(script: Any, rest: list[str], processes: int) -> dict[str, Any]:
    """
    Returns what the trainer would take, from the arguments of `fire-opd train`; those of accelerate do not matter.
    """
    parser = script.make_parser("fire-opd preflight", planned_config(processes))
    if not torch.cuda.is_available():
        rest = [*rest, "--use_cpu", "true"]  # looking needs no GPU
    *arguments, unknown = parser.parse_args_and_config(rest, return_remaining_strings=True)
    if unknown:
        from accelerate.commands.launch import launch_command_parser  # brings DeepSpeed, and what it has to say

        unknown = launch_command_parser().parse_known_args([*unknown, "script"])[1]
    if unknown:
        raise ValueError(f"no such arguments: {' '.join(unknown)}.")
    return script.trainer_arguments(*arguments)


def arguments_to_try(parts: dict[str, Any], folder: str) -> dict[str, Any]:
    """
    Returns the trainer's arguments for this one process: its models and its mathematics, but not where they will run.
    """
    args = parts["args"]
    args.output_dir, args.preflight, args.push_to_hub, args.report_to = folder, False, False, []
    args.use_vllm, args.teacher_placement, args.teacher_deepspeed = False, "auto", None
    if parts["peft_config"] is None and parts["quantization_config"] is None:
        args.model_init_kwargs["dtype"] = "float32"  # this process has no engine that would keep copies
    return parts
