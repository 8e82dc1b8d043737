"""Where teachers run: each is loaded, frozen, and then partitioned, replicated or left on the host."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models.utils import prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, use_adapter

from ..config import FiReOPDConfig
from ..scoring.heads import base_of, make_observable
from .deepspeed import deepspeed_stage, loading_under, teacher_deepspeed_config, wrap_in_deepspeed
from .offload import streaming_arguments
from .setup import RunSetup
from .sources import Source
from .vocabulary import config_of


@dataclass(frozen=True)
class PlacedTeacher:
    """
    A teacher where it runs.

    Args:
        setup ([`RunSetup`]): The run.
        module (`torch.nn.Module`, *optional*): The model that scores; `None`: the student, without its adapter.
        student (`Callable`, *optional*): Gives the student as it is wrapped now, where it is the teacher.
        adapter (`str`, *optional*): The adapter of `module` that is this teacher.
        shared (`bool`): Whether `module` has adapters, of which this teacher is one, or its base.
        unknown (`frozenset[int]`): Ids that mean nothing to it.
    """

    setup: RunSetup
    module: torch.nn.Module | None
    student: Callable[[], torch.nn.Module] | None = None
    adapter: str | None = None
    shared: bool = False
    unknown: frozenset[int] = frozenset()

    @contextmanager
    def active(self) -> Iterator[torch.nn.Module]:
        """The wrapped module, with its adapters switched so that it is this teacher."""
        unwrap = self.setup.accelerator.unwrap_model
        if self.module is None:
            assert self.student is not None
            with use_adapter(unwrap(self.student()), None):
                yield self.student()
        elif not self.shared:
            yield self.module
        else:
            try:
                with use_adapter(unwrap(self.module), self.adapter):
                    yield self.module
            finally:
                self.module.requires_grad_(False)  # PEFT makes the adapter that it switches on trainable

    def base(self) -> PreTrainedModel:
        """The model itself, inside all wrappers: its head, its config."""
        if self.module is not None:
            return self.setup.base_of(self.module)
        assert self.student is not None
        return self.setup.base_of(self.student())


# Where


def sharding_engine(args: FiReOPDConfig) -> str | None:
    """
    Returns what trains the student on its ranks: `"ZeRO-3"`, `"DeepSpeed"` of a lower stage, `"FSDP"`, or `None`.
    """
    if args.deepspeed_plugin is not None:
        return "ZeRO-3" if is_deepspeed_zero3_enabled() else "DeepSpeed"
    return "FSDP" if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else None


def choose_placement(args: FiReOPDConfig, source: Source, engine: str | None, quantized: bool | None = None) -> str:
    """
    Returns where a teacher goes: `"sharded"`, `"replicated"` or `"offload"`. A placement that cannot be is refused.

    Args:
        engine (`str`, *optional*): See [`sharding_engine`].
        quantized (`bool`, *optional*): Whether its weights are packed, by default what its files say.
    """
    chosen, name, stage = args.teacher_placement, source.name, deepspeed_stage(args.teacher_deepspeed)
    sharding = engine in ("ZeRO-3", "FSDP")
    if stage is not None and engine not in ("ZeRO-3", "DeepSpeed"):
        raise ValueError(
            "teacher_deepspeed is set, and this run is not one of DeepSpeed's. Launch it with a DeepSpeed "
            "configuration (configs/accelerate/zero3.yaml), or remove teacher_deepspeed."
        )
    quantized = is_quantized(source) if quantized is None else quantized
    whole = "sharded" if sharding and not quantized else "replicated"
    if chosen == "auto" and stage is not None:
        chosen = "sharded" if stage == 3 else "replicated"
    chosen = whole if chosen == "auto" else chosen
    if chosen == "sharded" and not sharding:
        said = "teacher_placement='sharded'" if stage is None else "teacher_deepspeed of ZeRO stage 3"
        raise ValueError(
            f"{said} partitions the teacher as the student is, and the student is whole on every "
            "rank. Launch with ZeRO-3 or FSDP 2 (configs/accelerate/zero3.yaml, fsdp2.yaml), or use 'replicated' or "
            "'offload'."
        )
    if quantized and chosen != "replicated":
        raise ValueError(
            f"teacher_placement={chosen!r}: teacher {name!r} is quantized, and its packed weights can be neither "
            "partitioned nor streamed. Use 'replicated'."
        )
    if stage is not None and (stage == 3) != (chosen == "sharded" or chosen == "offload" and engine == "ZeRO-3"):
        raise ValueError(
            f"teacher_deepspeed is of ZeRO stage {stage}, which does not fit teacher_placement={chosen!r}. Sharded "
            "and offloaded teachers want stage 3, replicas stage 0."
        )
    if chosen == "offload" and engine != "ZeRO-3":
        if source.adapter is not None:
            raise ValueError(
                f"teacher_placement='offload': teacher {name!r} is an adapter, whose base is streamed from the host "
                "only under ZeRO-3. Merge it (merge_and_unload), save that and name it, or use 'replicated'."
            )
        if source.base is not None and not isinstance(source.base, str):
            raise ValueError(
                f"teacher_placement='offload': teacher {name!r} is a module that is already in memory. Name its "
                "folder or id, from where it is read layer by layer."
            )
    return chosen


def is_quantized(source: Source) -> bool:
    """Whether a teacher's weights are packed, by its own config or by the arguments that it is loaded with."""
    if source.init_kwargs.get("quantization_config") is not None:
        return True
    return source.base is not None and bool(getattr(config_of(source.base, **source.hub), "quantization_config", None))


# Load and place


def load_teachers(
    sources: dict[str, Source],
    unknown: dict[str, frozenset[int]],
    setup: RunSetup,
    student: Callable[[], torch.nn.Module],
) -> dict[str, PlacedTeacher]:
    """
    The trainer calls this when the student is set up. It loads the teachers as frozen modules in evaluation mode,
    without optimizer. Those that are one base, or adapters of it, share it.

    Args:
        sources (`dict`): The teachers by name.
        unknown (`dict`): Ids that mean nothing to a teacher.
        setup ([`RunSetup`]): The run.
        student (`Callable`): Gives the student as it is wrapped now.
    """
    method = setup.method
    if method.reads_whole_distributions and setup.fsdp and not setup.accelerator.is_fsdp2:
        raise ValueError(
            f"method={method.name!r} reads the heads of whole models, which FSDP 1 keeps in pieces. Use FSDP "
            "2 (fsdp_version: 2) or DeepSpeed ZeRO-3."
        )
    modules: dict[str, torch.nn.Module] = {}
    placed = {}
    # Adapters are numbered, since PEFT cannot take every name that a teacher may have.
    sources = {name: replace(source, number=number) for number, (name, source) in enumerate(sources.items())}
    for name, source in sources.items():
        if source.base is None:
            placed[name] = PlacedTeacher(setup, None, student, unknown=unknown[name])
            continue
        alike = [other for other in sources.values() if other.key == source.key]
        if source.key not in modules:
            modules[source.key] = load_and_place(source, alike, setup)
        placed[name] = PlacedTeacher(
            setup,
            modules[source.key],
            adapter=source.adapter_name if source.adapter else None,
            shared=any(other.adapter for other in alike),
            unknown=unknown[name],
        )
    return placed


def load_and_place(source: Source, alike: list[Source], setup: RunSetup) -> torch.nn.Module:
    """Loads one base with the adapters of all teachers that share it, and puts it where it runs."""
    args, engine = setup.args, sharding_engine(setup.args)
    where = choose_placement(args, source, engine)
    config = teacher_deepspeed_config(setup, where)
    with loading_under(config, setup):
        model = source.base
        if isinstance(model, str):
            given = from_pretrained_kwargs(args, source)
            if where == "offload" and engine != "ZeRO-3":
                folder = given.get("offload_folder")
                given.update(streaming_arguments(model, setup.accelerator.device, source.hub, folder))
            model = create_model_from_path(model, **given)
        assert model is not None
        model = model.requires_grad_(False).eval()
        cut_to_student_rows(base_of(model), setup)
    refuse_unreadable_head(base_of(model), source.name)
    outputs = ("log_probs", "entropy") if setup.teacher_entropies else ("log_probs",)
    add_observable_head(base_of(model), setup, outputs)
    for other in alike:
        if other.adapter is not None:
            model = add_adapter(model, other)
            refuse_unreadable_head(base_of(model), other.name)
    if where == "offload" and engine != "ZeRO-3":
        return model  # its hooks bring each layer to the device
    return wrap_like_student(model.requires_grad_(False).eval(), setup, where, config)


def cut_to_student_rows(model: PreTrainedModel, setup: RunSetup) -> None:
    """Cuts a model that is padded to more token rows than the student has."""
    if model.config.get_text_config().vocab_size > setup.student_rows:
        model.resize_token_embeddings(setup.student_rows, mean_resizing=False)


def add_observable_head(model: PreTrainedModel, setup: RunSetup, outputs: tuple[str, ...]) -> None:
    """
    Gives a model TRL's fused head, so that `[B, T, V]` never exists, and lets it be observed; before it is wrapped.
    """
    float32 = setup.args.cast_lm_head_to_fp32
    add_fused_lm_head(model, temperature=setup.temperature, cast_lm_head_to_fp32=float32, outputs=outputs)
    make_observable(model, float32)


def from_pretrained_kwargs(args: FiReOPDConfig, source: Source) -> dict[str, Any]:
    """
    Returns the arguments of `from_pretrained` for a teacher: its own dtype, remote code only if the config allows it.
    """
    return loading_arguments(args, {"dtype": "auto", **source.hub, **source.init_kwargs})


def loading_arguments(args: FiReOPDConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` for a frozen model of this run."""
    defaults: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED", "FSDP"):
        defaults["device_map"] = None  # "auto" would spread one copy over the cards of other ranks
    return {key: value for key, value in {**defaults, **given}.items() if value is not None or key == "device_map"}


def add_adapter(model: Any, source: Source) -> torch.nn.Module:
    """Returns the model with one more adapter, in the model's own precision."""
    from peft import PeftModel

    given = {"adapter_name": source.adapter_name, "autocast_adapter_dtype": False, **source.adapter_hub}
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(model, source.adapter, **given)
    model.load_adapter(source.adapter, **given)
    return model


def refuse_unreadable_head(model: PreTrainedModel, name: str) -> None:
    """
    Refuses a head whose weight the fused head could not read: it must be plain numbers, and no adapter may change it.
    """
    head = model.get_output_embeddings()
    if type(head).__module__.startswith("peft."):
        raise ValueError(
            f"teacher_model {name!r}: its adapter changes the head ({type(head).__name__}), whose weight the fused "
            "head reads directly. Merge it into its base (merge_and_unload) and use the result."
        )
    weight = head.weight
    if not weight.is_floating_point():
        raise ValueError(
            f"teacher {name!r}: the head is quantized ({weight.dtype}), and the fused head reads its weight. Leave it "
            "out in the quantization_config (llm_int8_skip_modules=['lm_head'])."
        )


def wrap_like_student(
    model: PreTrainedModel, setup: RunSetup, where: str = "auto", config: dict[str, Any] | None = None
) -> torch.nn.Module:
    """Puts a frozen model where the student is: it is partitioned when the student is, and else a replica."""
    accelerator, quantized = setup.accelerator, getattr(model, "is_quantized", False)
    if config is not None or setup.deepspeed:
        return wrap_in_deepspeed(model, setup, config or accelerator.state.deepspeed_plugin.deepspeed_config)
    if setup.fsdp and where != "replicated":
        return wrap_in_fsdp(model, accelerator)
    if setup.fsdp or quantized:
        return model if quantized else model.to(accelerator.device)
    return accelerator.prepare_model(model, evaluation_mode=True)


def keep_outputs_exact(accelerator: Accelerator) -> None:
    """
    The trainer calls this before any model is wrapped. Under FSDP 2 with mixed precision accelerate lets each wrapped
    module cast its outputs to 16 bits (`output_dtype`). That would round the log-probabilities and entropies that the
    heads of student, teachers and references compute in float32, and with them the advantage, by several percent.
    """
    if accelerator.is_fsdp2 and (policy := accelerator.state.fsdp_plugin.mixed_precision_policy) is not None:
        accelerator.state.fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def wrap_in_fsdp(model: PreTrainedModel, accelerator: Accelerator) -> torch.nn.Module:
    """
    Wraps a frozen model in FSDP, under version 2 layer by layer: TRL's helper alone would gather all of it at once.
    """
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
        settings = {
            "reshard_after_forward": plugin.reshard_after_forward,
            "offload_policy": plugin.cpu_offload,
            "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
            "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
        }
        kinds = base_of(model)._no_split_modules or ()
        for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
            fully_shard(layer, **settings)
    return prepare_fsdp(model, accelerator)


def load_reference(reference: Any, setup: RunSetup) -> torch.nn.Module | None:
    """
    The trainer calls this when the student is set up. It loads the reference model of a method that has one and
    freezes it beside the student, with the student's own arguments unless the reference has a name of its own.
    """
    args = setup.args
    if reference is None:
        return None
    if isinstance(reference, str):
        given = {"dtype": "float32", **(args.model_init_kwargs or {})}
        if args.reference_model_name_or_path is not None:
            given.pop("revision", None)  # that of another repository
        reference = create_model_from_path(reference, **loading_arguments(args, given))
    cut_to_student_rows(reference, setup)
    add_observable_head(reference, setup, ("log_probs",))
    return wrap_like_student(reference.requires_grad_(False).eval(), setup)
