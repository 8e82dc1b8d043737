"""`fire-opd preflight`: the arguments of `fire-opd train`; finds what is wrong before a GPU is taken."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from ..config import FiReOPDConfig
from ..refusals import chosen_method
from ..teachers import named_teachers
from .findings import Checked
from .inspection import inspected
from .tryout import tried


def planned_config(processes: int) -> type[FiReOPDConfig]:
    """The config's class as it will be on `processes` processes: windows depend on their number."""
    return type("FiReOPDConfig", (FiReOPDConfig,), {"world_size": property(lambda self: processes)})


def planned_run(accelerate_config: Path | None, processes: int | None) -> tuple[int, str | None]:
    """Number of processes of the run, and what trains the student on them, from a configuration of accelerate's."""
    planned: dict[str, Any] = {}
    if accelerate_config is not None:
        planned = yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
    kind, deepspeed = planned.get("distributed_type"), planned.get("deepspeed_config") or {}
    engine = {"DEEPSPEED": "ZeRO-3" if deepspeed.get("zero_stage") == 3 else "DeepSpeed", "FSDP": "FSDP"}.get(
        str(kind)
    )
    return processes or planned.get("num_processes") or 1, engine


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
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    processes, engine = planned_run(accelerate_config, processes)
    parser = script.make_parser("fire-opd preflight", planned_config(processes))
    if not torch.cuda.is_available():
        rest = [*rest, "--use_cpu", "true"]  # looking needs no GPU
    checked, example = Checked(), ""
    with checked.check("settings"):
        *arguments, unknown = parser.parse_args_and_config(rest, return_remaining_strings=True)
        if unknown:
            raise ValueError(f"no such arguments: {' '.join(unknown)}.")
        parts = script.assembled(*arguments)
        args = parts["args"]
        method = chosen_method(None, args, rewarded=bool(parts["reward_funcs"]))
        teachers = named_teachers(None, parts["model"], args, parts["peft_config"] is not None)
        others = {"engine": engine}
        data = parts["train_dataset"], parts["eval_dataset"]
        checked = inspected(parts["model"], teachers, args, method, *data, None, others)
        example = checked.example
    if with_models and not checked.faults:
        with checked.check("models"):
            from ..trainer import FiReOPDTrainer

            transformers.utils.logging.disable_progress_bar()
            args.preflight, args.report_to = False, []
            example += "\n" + tried(FiReOPDTrainer(**parts), checked)
    print(checked.table())
    print(example)
    faults, doubts = len(checked.faults), sum(finding.outcome == "warning" for finding in checked.findings)
    if faults:
        print(f"\n{faults} fault{'s' * (faults > 1)}: training would not start.")
        return 1
    seen = "" if with_models else " Weights were not looked at: --with-models does."
    print(f"\nTraining can start; {doubts or 'no'} warning{'s' * (doubts != 1)}.{seen}")
    return 0
