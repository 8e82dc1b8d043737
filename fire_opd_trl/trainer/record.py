"""What a run leaves in its output folder: run.json, which says what ran and how it ended, and metrics.jsonl."""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from ..config import FiReOPDConfig
from ..methods import METHODS, first_sentence
from ..pipeline import Method
from ..preflight.environment import LEFT_OUT, SECRET_NAME, git_state, without_secrets
from ..preflight.findings import Checked, title_of
from ..stages import mean_teacher_logp
from ..teachers.sources import Source


PACKAGES = (
    "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "peft", "deepspeed", "vllm",
    "bitsandbytes", "flash-attn", "liger-kernel",
)  # fmt: skip
INSPECTING, INSPECTED = "inspecting", "inspected"  # the status of a look at one window, during it and after


# What was distilled into what


def facts_of(student: PreTrainedModel, sources: dict[str, Source], checked: Checked, method: Method) -> dict[str, Any]:
    """The trainer calls this when it is made; returns what run.json and the model card say of what is distilled."""
    about = {finding.subject: model_in_short(finding.text) for finding in checked.findings}
    return {
        "student": {
            "name": student.config._name_or_path,
            "is": about.get("student", ""),
            "chats": checked.tokenizer.chat_template is not None,
            "sees": checked.tokenizer is not checked.processing_class,
        },
        "teachers": {
            name: {"name": name_of(source), "adapter": source.adapter, "is": about.get(title_of(name), "")}
            for name, source in sources.items()
        },
        "data": data_of(checked.train_dataset),
        "method": {
            "name": method.name,
            "does": first_sentence(METHODS[base]) if (base := method.name.split(",")[0]) in METHODS else "",
            "paper": method.paper,
            "stages": stages_of(method),
        },
    }


def model_in_short(text: str) -> str:
    """Returns a model's class and size out of what the checks say of it."""
    text = re.sub(r"^adapter .*? on ", "", text.split(";")[0])
    return ", ".join(text.split(" (")[0].split(", ")[:2])


def name_of(source: Source) -> str:
    """Returns what a teacher was given as: an id, a folder, or what a module says of itself."""
    if source.base is None:
        return "the student without its adapter"
    return source.base if isinstance(source.base, str) else source.base.config._name_or_path


def data_of(dataset: Any) -> dict[str, Any]:
    """Returns how many prompts there are, and the repositories of the Hub that they come from, if any."""
    info = getattr(dataset, "info", None)  # a dataset of another library has none
    files = " ".join(getattr(info, "download_checksums", None) or {})
    rows = len(dataset) if hasattr(dataset, "__len__") else None
    return {"rows": rows, "hub": sorted(set(re.findall(r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)@", files)))}


def stages_of(method: Method) -> dict[str, str]:
    """Returns the functions that a method chose for its stages, with their arguments."""
    divergence = method.divergence
    stages: dict[str, Any] = {
        "filter": method.filter,
        "score": method.score or (mean_teacher_logp if method.filter else None),
        "reweight": method.reweight,
        "row_weight": method.row_weight,
        "advantage": method.advantage,
    }
    called = {stage: call_to(function) for stage, function in stages.items() if function is not None}
    if divergence is not None:
        kind = f"teacher's top {divergence.top_k}" if divergence.top_k else f"mixture={divergence.mixture}"
        called["divergence"] = f"{kind}, weight={call_to(divergence.weight)}" if divergence.weight else kind
    return called


def call_to(function: Callable) -> str:
    """Returns a function with the arguments that a recipe has given it, as one would write it."""
    if isinstance(function, partial):
        values = {name: call_to(v) if callable(v) else repr(v) for name, v in function.keywords.items()}
        return f"{call_to(function.func)}({', '.join(f'{name}={value}' for name, value in values.items())})"
    return getattr(function, "__name__", type(function).__name__)


# How it ran


def command_line(arguments: list[str]) -> str:
    """Returns the command that started this process, without its secrets."""
    shown, secret = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_option = name.startswith("-")
        if secret and not is_option:
            shown.append(LEFT_OUT)
        else:
            hidden = is_option and equals and SECRET_NAME.search(name.replace("-", "_"))
            shown.append(f"{name}={LEFT_OUT}" if hidden else without_secrets(argument))
        secret = is_option and not equals and bool(SECRET_NAME.search(name.replace("-", "_")))
    return shlex.join(shown)


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this library, and of the packages that a run depends on, where installed."""
    found = {"python": platform.python_version(), "fire_opd_trl": sys.modules["fire_opd_trl"].__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, **({"cuda": torch.version.cuda} if torch.version.cuda else {})}


def world_of(args: FiReOPDConfig) -> dict[str, Any]:
    """Returns on how many processes it runs, under what, and on which device."""
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    kind = str(args.distributed_state.distributed_type).removeprefix("DistributedType.")
    return {"processes": args.world_size, "distributed": kind, "device": device}


def now() -> str:
    """Returns the time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def first_and_last(history: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the first and the last log of training, and the last one of an evaluation, of a run's logs."""
    trained = [log for log in history if "loss" in log]
    evaluated = [log for log in history if any(name.startswith("eval_") for name in log)]
    named = {"first": trained[:1], "last": trained[-1:], "evaluation": evaluated[-1:]}
    return {name: logs[0] for name, logs in named.items() if logs}


def step_of(line: str) -> int | None:
    """Returns the step of a line that is whole."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else None
    except (ValueError, TypeError, KeyError):
        return None


def keep_lines_until(step: int, path: str) -> None:
    """
    Leaves the lines of metrics.jsonl up to a step: a run that goes on from there writes the later ones again. Lines
    that a crash has broken go, too. The file of an earlier run stays under another name.
    """
    lines = []
    if not step and os.path.exists(path) and os.path.getsize(path):
        os.replace(path, path.replace(".jsonl", f"-before-{now().replace(':', '')}.jsonl"))
    if step and os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if (of_line := step_of(line)) is not None and of_line <= step]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)


class RunRecord(TrainerCallback):
    """
    Writes run.json when training starts, when it ends, and when it fails, and a line of metrics.jsonl for each log; on
    the main process. Nothing of it is sent anywhere.

    Args:
        facts (`dict`): From [`facts_of`].
    """

    def __init__(self, facts: dict[str, Any]):
        self.facts = facts
        self.run: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin(args, state, "running")

    def begin(self, args: FiReOPDConfig, state: TrainerState, status: str) -> None:
        """Called when something starts that leaves a record: a training, or a look at one window."""
        self.run = {}
        if not state.is_world_process_zero:
            return
        self.run = {
            "status": status,
            "started": now(),
            "ended": None,
            "steps": state.global_step,
            "max_steps": state.max_steps,
            "resumed_at_step": state.global_step or None,
            **without_secrets(self.facts),
            "metrics": {},
            "command": command_line(sys.orig_argv),
            "git": git_state(),
            "versions": versions(),
            "world": world_of(args),
            "settings": without_secrets(args.to_dict()),
        }
        self.write(args.output_dir)
        keep_lines_until(state.global_step, self.metrics_file(args))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.run:
            with open(self.metrics_file(args), "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}, default=str) + "\n")
            self.run |= {"steps": state.global_step, "metrics": first_and_last(state.log_history)}

    def on_train_end(self, args, state, control, **kwargs):
        self.end(args, "finished" if state.global_step >= state.max_steps else "stopped")

    def end(self, args: FiReOPDConfig, status: str, **found: Any) -> None:
        """Called at the end of what `begin` began, with what else is to be recorded."""
        if self.run:
            self.run |= {"status": status, "ended": now(), **found}
            self.write(args.output_dir)

    def note(self, args: FiReOPDConfig, **facts: Any) -> None:
        """Another callback calls this with what run.json must say too."""
        if self.run:
            self.run |= facts
            self.write(args.output_dir)

    @contextmanager
    def of_failure(self, args: FiReOPDConfig) -> Iterator[None]:
        """Training runs inside this: what stops it is recorded, and raised all the same."""
        try:
            yield
        except BaseException as error:
            if self.run.get("status") in ("running", "stopped", INSPECTING):
                interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
                said = without_secrets(f"{type(error).__name__}: {error}"[:1000])
                self.run |= {"status": "interrupted" if interrupted else "failed", "ended": now(), "error": said}
                self.write(args.output_dir)
            raise

    def metrics_file(self, args: FiReOPDConfig) -> str:
        """Where each log becomes a line."""
        return os.path.join(args.output_dir, "metrics.jsonl")

    def write(self, folder: str) -> None:
        """Puts run.json in the place of the last one at once, so that no reader sees half of it."""
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "run.json")
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            json.dump(self.run, file, indent=1, default=str)
        os.replace(f"{path}.part", path)
