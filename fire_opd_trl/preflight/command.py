"""What `fire-opd preflight` does: it finds what is wrong before a GPU is taken, and says it in one table."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from ..config import FiReOPDConfig
from ..methods import METHODS
from ..refusals import chosen_method, refuse_unread_weights
from ..teachers.sources import Source, teacher_sources
from .dataset import bars_off
from .findings import Checked
from .inspection import inspect_run
from .packaged import strangers
from .plan.of_arguments import plan_of_arguments
from .plan.report import too_long, verdict
from .plan.run import read_accelerate
from .tryout import try_answers


def planned_config(processes: int, faults: list[str]) -> type[FiReOPDConfig]:
    """
    Returns the config's class as it will be on `processes` processes, since windows depend on their number. What it
    would refuse joins `faults`; `method_refused` says whether the method's name is among it. Looking needs no GPU:
    without one all is read as on the CPU, and `on_cpu` says whether the run itself will be there.
    """

    def as_here(config: FiReOPDConfig) -> None:
        config.on_cpu = bool(config.use_cpu)
        config.use_cpu = config.use_cpu or not torch.cuda.is_available()
        asked = config.method
        FiReOPDConfig.__post_init__(config)
        config.method_refused = config.method != asked  # the default is in its place

    changes = {
        "__post_init__": as_here,
        "world_size": property(lambda self: processes),
        "_refuse": lambda self, wrong: faults.extend(wrong),
    }
    return type("FiReOPDConfig", (FiReOPDConfig,), changes)


def planned_run(accelerate_config: Path | None, processes: int | None) -> tuple[int, dict[str, Any]]:
    """
    Returns the run's number of processes, and what it is that this process is not: the `engine` that trains the
    student on them and the `mixed_precision`. Both stand in a configuration of accelerate.
    """
    planned = read_accelerate(accelerate_config)
    known = {name: planned[name] for name in ("engine", "mixed_precision")} | {"zero_stage": planned["zero"]["stage"]}
    return processes or planned["gpus"], {} if accelerate_config is None else known


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
        parts = trainer_arguments(script, rest, processes, checked)
    if not parts:
        checked.record("the rest", "not checked, since the settings cannot be read", "warning")
    with checked.check("preflight", whatever=True):
        if parts:
            others.update(
                {name: parts[name] for name in ("peft_config", "quantization_config", "tools", "reward_funcs")}
            )
            checked = inspect_arguments(parts, others, checked)
    example = checked.example
    if with_models and not checked.faults:
        with checked.check("models", whatever=True), tempfile.TemporaryDirectory() as folder:
            answers = script.make_trainer(arguments_to_try(parts, folder)).scored_answers
            names, column = list(checked.renderers), parts["args"].teacher_column
            example += "\n" + try_answers(answers, names, column, checked)
    if parts and not checked.faults:
        record_plan(parts, accelerate_config, processes, checked)
    print(checked.table())
    print(example)
    faults, doubts = len(checked.faults), sum(finding.outcome == "warning" for finding in checked.findings)
    if faults:
        print(f"\n{faults} fault{'s' * (faults > 1)}: training would not start.")
        return 1
    seen = "" if with_models else " Weights were not looked at: --with-models does."
    print(f"\nTraining can start; {doubts or 'no'} warning{'s' * (doubts != 1)}.{seen}")
    return 0


def record_plan(parts: dict[str, Any], accelerate_config: Path | None, processes: int, checked: Checked) -> None:
    """
    Add the plan's verdict, in a line. What does not fit is a warning: a plan is computed, and may be wrong. So is a
    model of which none can be made, whatever the reason.
    """
    try:
        plan = plan_of_arguments(parts, accelerate_config, processes, prompts=checked.prompts)
    except Exception as error:
        checked.record("plan", f"none could be made: {type(error).__name__}: {error}", "warning")
        return
    checked.record("plan", verdict(plan), "ok" if plan.fits and not too_long(plan) else "warning")


def unknown_to_both(words: list[str]) -> list[str]:
    """Returns those options among the words that a training has left over which `accelerate launch` has not either."""
    if not words:
        return []
    from accelerate.commands.launch import launch_command_parser  # brings DeepSpeed, and what it has to say

    return strangers(words, launch_command_parser())


def trainer_arguments(script: Any, rest: list[str], processes: int, checked: Checked) -> dict[str, Any]:
    """
    Returns what the trainer would take, from the arguments of `fire-opd train`; those of accelerate do not matter.
    What is wrong is recorded. Where it can be left out, or has a default, the rest is returned all the same.
    """
    faults: list[str] = []
    parser = script.make_parser("fire-opd preflight", planned_config(processes, faults))
    *arguments, unknown = parser.parse_args_and_config(rest, return_remaining_strings=True)
    if unknown := unknown_to_both(unknown):
        parser.error(parser.unknown(unknown))  # one line, as `train` says it
    for fault in faults:
        checked.record("settings", fault, "fault")
    if faults:
        checked.record("the rest", "checked with the default in place of each wrong value", "warning")
    with bars_off(True):
        return script.trainer_arguments(*arguments, checked)


def inspect_arguments(parts: dict[str, Any], others: dict[str, Any], checked: Checked) -> Checked:
    """Returns what `inspect_run` finds of the trainer's arguments, after what was found of them before."""
    args, adapted = parts["args"], parts["peft_config"] is not None
    # Where its arguments are refused, it has those by default. In place of a method that does not exist stands `opd`,
    # which drops nothing and reads nothing besides log-probabilities, so that nothing is said of it.
    method = METHODS["opd" if args.method_refused else args.method]()
    with checked.check("settings"):
        if not args.method_refused:
            method = chosen_method(None, args, rewarded=bool(parts["reward_funcs"]))
        if not parts["reward_funcs"]:
            refuse_unread_weights(args)
    sources: dict[str, Source] = {}
    if args.teacher_model_name_or_path:
        with checked.check("teacher"):
            sources = teacher_sources(None, parts["model"], args, adapted)
    found = inspect_run(
        parts["model"], sources, args, method, parts["train_dataset"], parts["eval_dataset"], None, others
    )
    found.findings = list(dict.fromkeys([*checked.findings, *found.findings]))
    return found


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
