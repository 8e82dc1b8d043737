"""Which teachers there are, and where each of them comes from. No weight is loaded here."""

import copy
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.peft_utils import find_adapter_config_file

from ..config import FiReOPDConfig
from ..pipeline import Method
from ..rollouts.prompts import UNNAMED
from .vocabulary import Teacher


SELF = "self"  # as a teacher: the student without its adapter
HEADS = {"lm_head", "embed_out"}


@dataclass(frozen=True)
class Source:
    """
    Where a teacher comes from.

    Args:
        name (`str`): What it is called.
        base (`str` or `PreTrainedModel`, *optional*): The model; `None` for the student without its adapter.
        adapter (`str`, *optional*): A PEFT adapter on it: folder or id.
        hub (`dict`): Arguments of whatever is loaded from the base's folder or repository.
        adapter_hub (`dict`): The same for the adapter's.
        init_kwargs (`dict`): Arguments of `from_pretrained` that the user gave.
        number (`int`): Its place among the teachers.
    """

    name: str
    base: Teacher | None
    adapter: str | None = None
    hub: dict[str, Any] = field(default_factory=dict)
    adapter_hub: dict[str, Any] = field(default_factory=dict)
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    number: int = 0

    @property
    def adapter_name(self) -> str:
        """The name under which PEFT holds its adapter."""
        return f"teacher{self.number}"

    @property
    def key(self) -> str:
        """Equal for teachers that can share one base in memory."""
        base = self.base if isinstance(self.base, str | None) else id(self.base)
        return repr((base, self.hub, sorted(self.init_kwargs.items(), key=str)))


def teacher_sources(
    teacher_model: Teacher | dict[str, Teacher] | None, student: Teacher, args: FiReOPDConfig, adapted: bool
) -> dict[str, Source]:
    """
    The trainer and preflight call this first. It returns the teachers by name; a single teacher without a name, given
    here or in the config, is called `"teacher"`.

    Args:
        adapted (`bool`): Whether the student is a model with an adapter.
    """
    if teacher_model is None:
        teacher_model = args.teacher_model_name_or_path
    elif args.teacher_model_name_or_path is not None:
        raise ValueError(
            f"teacher_model_name_or_path={args.teacher_model_name_or_path!r} is set, and a teacher_model is given to "
            "the trainer. Name the teacher in one place."
        )
    if teacher_model is None or isinstance(teacher_model, str | dict) and not teacher_model:
        raise ValueError(
            "teacher_model is missing: distillation needs a teacher. Pass teacher_model=... to the trainer, or set "
            "teacher_model_name_or_path."
        )
    teachers = teacher_model if isinstance(teacher_model, dict) else {UNNAMED: teacher_model}
    if strange := [name for name in teachers if not isinstance(name, str) or not name]:
        raise ValueError(f"teacher_model: {strange[0]!r} is no name for a teacher. Give each a text.")
    for name, teacher in teachers.items():
        if not isinstance(teacher, str | os.PathLike | torch.nn.Module) or not teacher and isinstance(teacher, str):
            raise ValueError(
                f"teacher_model {name!r} is {teacher!r}. Give a model id, a local folder, or a model; for several "
                "teachers a dict of them by name. A reward function goes to reward_funcs=."
            )
    teachers = {name: os.fspath(t) if isinstance(t, os.PathLike) else t for name, t in teachers.items()}
    if taken := [name for name in teachers if name in ("student", "reference")]:
        raise ValueError(
            f"teacher_model: a teacher may not be called {taken[0]!r}, which names another model in the logs."
        )
    if any(teacher is student for teacher in teachers.values() if not isinstance(teacher, str)):
        raise ValueError(
            "teacher_model is the very module that is trained. Pass a copy of it (copy.deepcopy), or, for a student "
            f"with an adapter, teacher_model={SELF!r}: the student with its adapter switched off."
        )
    if SELF in teachers.values() and not adapted:
        raise ValueError(
            f"teacher_model={SELF!r} is the student with its adapter switched off, and this student has none: it "
            "would be its own teacher, with nothing to learn. Pass a peft_config, or name a teacher."
        )
    return {name: teacher_source(name, teacher, args, list(teachers)) for name, teacher in teachers.items()}


def teacher_source(name: str, teacher: Teacher, args: FiReOPDConfig, names: list[str]) -> Source:
    """Returns where one teacher comes from. A folder or id may be that of an adapter, which then names its base."""
    code = {"trust_remote_code": args.trust_remote_code}
    revision = args.of_teacher("teacher_model_revision", name, names)
    given = dict(args.of_teacher("teacher_model_init_kwargs", name, names) or {})
    hub = {"revision": given.pop("revision", revision)}
    if not isinstance(teacher, str):
        for config in getattr(teacher, "peft_config", {}).values():
            refuse_virtual_tokens(name, "in memory", vars(config))
        return Source(name, teacher)
    if teacher == SELF:
        return Source(name, None)
    adapter = read_adapter_config(teacher, hub["revision"])
    if adapter is None:
        return Source(name, teacher, hub={**code, **hub}, init_kwargs=given)
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"teacher_model {name!r}: the adapter {teacher!r} does not name its base. Set base_model_name_or_path in "
            "its adapter_config.json, or merge it into its base and name the result."
        )
    refuse_virtual_tokens(name, repr(teacher), adapter)
    changed = [*(adapter.get("modules_to_save") or []), *as_list(adapter.get("target_modules"))]
    if heads := HEADS & {module.rsplit(".", 1)[-1] for module in changed}:
        raise ValueError(
            f"teacher_model {name!r}: the adapter {teacher!r} changes {', '.join(sorted(heads))}, which the fused "
            "head reads directly. Merge it into its base (merge_and_unload), save that, and name it."
        )
    base_hub = {**code, "revision": adapter.get("revision")}
    return Source(name, base, teacher, hub=base_hub, adapter_hub=hub, init_kwargs=given)


def refuse_virtual_tokens(name: str, where: str, adapter: dict[str, Any]) -> None:
    """Refuses an adapter that changes what a model reads: it may only change what a model computes."""
    if adapter.get("num_virtual_tokens") is not None:
        raise ValueError(
            f"teacher_model {name!r}: the adapter {where} ({adapter.get('peft_type')}) writes virtual tokens before "
            "the prompt, so that positions do not agree with the student's. Use a LoRA adapter."
        )


def read_adapter_config(path: str, revision: str | None) -> dict[str, Any] | None:
    """Returns the adapter_config.json of a folder or repository that holds an adapter, else `None`."""
    try:
        file = find_adapter_config_file(path, revision=revision)
    except OSError:  # whatever it is, it cannot be reached; loading its config says so
        return None
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {found!r}. It must be the configuration of an adapter.")
    return found


def as_list(names: list[str] | str | None) -> list[str]:
    """Returns a list, since PEFT takes one name or a list of them."""
    return [names] if isinstance(names, str) else names or []


def reference_source(model: Teacher, method: Method, args: FiReOPDConfig) -> Teacher | None:
    """Returns the reference model of a method that has one: the one named, or the student as it is before training."""
    named = args.reference_model_name_or_path
    if "reference_logp_BT" not in method.signals:
        if named is not None:
            raise ValueError(
                f"reference_model_name_or_path={named!r} has no effect on method={method.name!r} as it is set. "
                "Remove it, or use exopd with an extrapolation other than 1."
            )
        return None
    if named is not None or isinstance(model, str):
        return named or model
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            f"method={method.name!r} needs the student as it starts, and under ZeRO-3 a module cannot be copied. Pass "
            "the student by name, or set reference_model_name_or_path."
        )
    reference: Any = copy.deepcopy(model)  # a module: before the trainer changes it
    return reference.merge_and_unload() if hasattr(reference, "merge_and_unload") else reference
