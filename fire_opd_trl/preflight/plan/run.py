"""A run as a plan sees it: every number that memory and time depend on, and what was assumed of them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PretrainedConfig

from ...config import FiReOPDConfig
from ...pipeline import Method
from ...rollouts.prompts import UNNAMED
from ...teachers.offload import empty_model
from ...teachers.placement import choose_placement
from ...teachers.sources import Source, reference_source, teacher_sources
from .shapes import ModelShape, config_for, file_of, shape_of


PROMPT, LONGEST_PROMPT = 256, 1024  # tokens
LONGEST_TO_MEAN = 4  # of completions, as in `make bench`
SERVER_SHARE = 0.9  # of a GPU that a vLLM server takes by default; TRL's setting is for colocation alone


@dataclass(frozen=True)
class Assumed:
    """
    A number that no configuration says.

    Args:
        name (`str`): What it is.
        value (`float`): Its value.
        why (`str`): Where the value comes from.
        option (`str`): The option of `fire-opd plan` that sets it.
    """

    name: str
    value: float
    why: str
    option: str


@dataclass(frozen=True)
class Placed:
    """
    A frozen model, and where it is.

    Args:
        shape ([`ModelShape`]): The model.
        bits (`float`): Of one of its weights.
        placement (`str`): `"sharded"`, `"replicated"`, `"offload"`; `"student"` for the student without its adapter.
    """

    shape: ModelShape
    bits: float = 16
    placement: str = "replicated"


@dataclass(frozen=True)
class Engine:
    """
    vLLM, which samples.

    Args:
        mode (`str`): `"colocate"`, on the GPUs of training, or `"server"`, on GPUs of its own.
        memory (`float`): Share of a GPU that it takes (`vllm_gpu_memory_utilization`).
        tensor_parallel (`int`): GPUs that share one copy of the student.
        sleeps (`bool`): Whether it gives its memory back while the student trains.
        length (`int`): Longest prompt and completion that it is set up for.
        gpus (`int`): GPUs of the server; 0 for colocate.
    """

    mode: str
    memory: float = 0.3
    tensor_parallel: int = 1
    sleeps: bool = False
    length: int = 0
    gpus: int = 0


@dataclass(frozen=True)
class PlannedRun:
    """
    All that a plan knows of a run.

    Args:
        student ([`ModelShape`]): The student.
        teachers (`dict[str, Placed]`): The teachers by name.
        gpus (`int`): Processes that train.
        gpus_per_node (`int`): For how many a machine has room: 8 where nothing says of more machines.
        device (`str`): `"cuda"` or `"cpu"`: heads have other tiles on either.
        sharding (`str`): What trains the student: `"none"` (one process, or DDP), `"zero1"`, `"zero2"`, `"zero3"` or
            `"fsdp2"`.
        offload_optimizer, offload_parameters (`bool`): Whether these are on the host.
        student_bits (`float`): Of one of the student's weights, as they are loaded.
        compute_bytes (`int`): Of a number of an activation: 2 in 16 bits, also with autocast; 4 in float32.
        autocast (`bool`): Whether weights of 32 bits are cast for every product.
        adapter (`int`): Parameters of the adapter that is trained; 0 where all weights are.
        reference (`Placed`, *optional*): A reference model.
        gradient_checkpointing (`bool`): Whether layers are computed again in the backward.
        eager (`bool`): Whether attention has the scores of all pairs of tokens at once (`attn_implementation`).
        rows, accumulation, steps_per_generation, num_generations, num_iterations (`int`): As in the configuration:
            rows of a micro-batch, micro-batches of an optimizer step and of a window, completions of a prompt, and
            how often a window is trained on.
        prompt_mean, prompt_longest, completion_mean, completion_longest (`float`): Tokens.
        teacher_prompts (`bool`): Whether a column has prompts of the teacher's own, which are not planned.
        scoring_token_budget (`int`): Padded tokens of one forward of scoring.
        whole_distributions (`bool`): Whether student and teacher are compared over the whole vocabulary.
        divergence (`bool`): Whether such a comparison, or one with the top k, is part of the loss.
        top_k (`int`): Tokens that are kept of the teacher; 0 for none.
        mixture (`float`): Of the divergence of whole distributions; between 0 and 1 both are projected twice.
        drop_fraction (`float`): Share of the rows that the filter drops.
        offload_teacher_states (`bool`): Whether what was kept of teachers waits on the host.
        engine ([`Engine`], *optional*): What samples; without it transformers' `generate` does.
        reduce_bucket, prefetch_bucket, max_live (`int`): Numbers of DeepSpeed's buckets, and the parameters that it
            keeps gathered.
        assumed (`tuple[Assumed]`): What no configuration says.
    """

    student: ModelShape
    teachers: dict[str, Placed] = field(default_factory=dict)
    gpus: int = 1
    gpus_per_node: int = 8
    device: str = "cuda"
    sharding: str = "none"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    student_bits: float = 32
    compute_bytes: int = 2
    autocast: bool = True
    adapter: int = 0
    reference: Placed | None = None
    gradient_checkpointing: bool = True
    eager: bool = False
    rows: int = 1
    accumulation: int = 1
    steps_per_generation: int = 1
    num_generations: int = 1
    num_iterations: int = 1
    prompt_mean: float = PROMPT
    prompt_longest: int = LONGEST_PROMPT
    completion_mean: float = 64
    completion_longest: int = 256
    teacher_prompts: bool = False
    scoring_token_budget: int = 16384
    whole_distributions: bool = False
    divergence: bool = False
    top_k: int = 0
    mixture: float = 1.0
    drop_fraction: float = 0.0
    offload_teacher_states: bool = False
    engine: Engine | None = None
    reduce_bucket: int = 0
    prefetch_bucket: int = 0
    max_live: int = 0
    assumed: tuple[Assumed, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_longest + self.completion_longest

    @property
    def mean(self) -> float:
        """Tokens of the mean row."""
        return self.prompt_mean + self.completion_mean

    @property
    def window(self) -> int:
        """Rows of a window on all ranks."""
        return self.rows * self.steps_per_generation * self.gpus


def read_accelerate(file: Path | None) -> dict[str, Any]:
    """
    Returns what an accelerate configuration, whose form `packaged.accelerate_config` has checked, says of the run:
    `gpus`, `gpus_per_node`, `device`, `sharding`, the `engine` that trains the student on them, `mixed_precision`,
    `offload_optimizer`, `offload_parameters`, and DeepSpeed's settings of `zero`. Without one it is a single GPU.
    """
    said = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    deepspeed = said.get("deepspeed_config") or {}
    # Where nothing is said, accelerate takes stage 2 (DeepSpeedPlugin), and a file of DeepSpeed's own means 0.
    zero: dict[str, Any] = {"stage": int(deepspeed.get("zero_stage", 2))}
    for what in ("optimizer", "param"):
        zero[f"offload_{what}"] = {"device": deepspeed.get(f"offload_{what}_device", "none")}
    if (own := deepspeed.get("deepspeed_config_file")) is not None:
        settings = json.loads(Path(own).read_text(encoding="utf-8"))["zero_optimization"]
        zero |= {"stage": 0, **settings}
        if zero["stage"] == "auto":
            zero["stage"] = 2
    kind, machines = str(said.get("distributed_type", "NO")), int(said.get("num_machines", 1))
    fsdp = said.get("fsdp_config") or {}
    sharding = {"DEEPSPEED": f"zero{zero['stage']}" if zero["stage"] else "none", "FSDP": "fsdp2"}.get(kind, "none")
    gpus = int(said.get("num_processes", 1))

    def on_host(what: str) -> bool:
        return (zero[f"offload_{what}"] or {}).get("device", "none") not in ("none", "auto")

    return {
        "gpus": gpus,
        "gpus_per_node": max(8, gpus) if machines == 1 else max(1, gpus // machines),
        "device": "cpu" if said.get("use_cpu") else "cuda",
        "sharding": sharding,
        "engine": {"zero3": "ZeRO-3", "fsdp2": "FSDP"}.get(sharding, "DeepSpeed" if kind == "DEEPSPEED" else None),
        "mixed_precision": said.get("mixed_precision") or "no",
        "offload_optimizer": on_host("optimizer") or bool(fsdp.get("fsdp_offload_params")),
        "offload_parameters": on_host("param") or bool(fsdp.get("fsdp_offload_params")),
        "zero": zero,
    }


def run_of_arguments(
    parts: dict[str, Any],
    accelerate: dict[str, Any],
    *,
    gpus: int | None = None,
    prompts: tuple[float, int] | None = None,
    mean_completion: float | None = None,
    mean_prompt: float | None = None,
    longest_prompt: int | None = None,
    engine_gpus: int | None = None,
    engine_tensor_parallel: int | None = None,
    engine_fraction: float | None = None,
) -> PlannedRun:
    """
    Returns the run that the arguments of `fire-opd train` describe. `fire-opd plan` and preflight call this.

    Args:
        parts (`dict`): From `trainer_arguments` of preflight: `model`, `args`, `peft_config`, `quantization_config`.
        accelerate (`dict`): From [`read_accelerate`].
        gpus (`int`, *optional*): Processes, by default those of `accelerate`.
        prompts (`tuple`, *optional*): Mean and longest prompt of the dataset in tokens, where it was read.
        mean_completion, mean_prompt, longest_prompt (*optional*): What a user says of them.
        engine_gpus, engine_tensor_parallel, engine_fraction (*optional*): And of a vLLM server, of which TRL's
            settings for colocation say nothing.
    """
    args: FiReOPDConfig = parts["args"]
    method, adapted = args.build_method(), parts.get("peft_config") is not None
    gpus, assumed = gpus or accelerate["gpus"], []

    def number(given: float | None, read: float | None, name: str, value: float, why: str, option: str) -> float:
        if given is not None or read is not None:
            return read if given is None else given  # type: ignore[return-value]
        assumed.append(Assumed(name, value, why, option))
        return value

    config = config_for(parts["model"], **hub_of(args.model_init_kwargs))
    student = shape_of(config, parts["model"])
    reads = prompts or (None, None)
    room = args.max_prompt_length
    longest_prompt = int(
        number(
            longest_prompt,
            reads[1] if reads[1] is not None else room,
            "longest prompt",
            LONGEST_PROMPT,
            "an assumption; neither a dataset nor max_prompt_length was read",
            "--longest_prompt",
        )
    )
    mean_prompt = number(
        mean_prompt, reads[0], "mean prompt", min(PROMPT, longest_prompt), "an assumption", "--mean_prompt"
    )
    longest = args.max_completion_length
    mean_completion = number(
        mean_completion,
        None,
        "mean completion",
        longest / LONGEST_TO_MEAN,
        f"an assumption: the longest is {LONGEST_TO_MEAN} times the mean, as in `make bench`; a run logs it as "
        "completions/mean_length",
        "--mean_completion",
    )
    engine = None
    if args.use_vllm:
        engine = Engine(
            mode=args.vllm_mode,
            memory=args.vllm_gpu_memory_utilization,
            tensor_parallel=args.vllm_tensor_parallel_size,
            sleeps=bool(args.vllm_enable_sleep_mode),
            length=args.vllm_max_model_length or longest_prompt + longest,
        )
        if args.vllm_mode == "server":
            why = "vLLM's default"
            engine = replace(
                engine,
                memory=number(engine_fraction, None, "share of a GPU", SERVER_SHARE, why, "--engine_fraction"),
                tensor_parallel=int(
                    number(engine_tensor_parallel, None, "GPUs of an engine", 1, why, "--engine_tensor_parallel")
                ),
                gpus=int(number(engine_gpus, None, "GPUs of the server", 1, "an assumption", "--engine_gpus")),
            )
    dtype = (args.model_init_kwargs or {}).get("dtype", "float32")
    bits = weight_bits(config, dtype, parts.get("quantization_config"), student)
    mixed = accelerate["mixed_precision"] != "no" or bool(args.bf16 or args.fp16)
    deepspeed = accelerate["sharding"].startswith("zero")
    if deepspeed and mixed:
        bits = min(bits, 16)  # DeepSpeed casts the module itself
    if accelerate["sharding"] == "fsdp2" and mixed and not adapted:
        bits = 32  # accelerate casts what is trained up, and FSDP gathers 16 bits
    sources = sources_of(parts["model"], args, adapted)
    return PlannedRun(
        student=student,
        teachers={name: placed(source, args, accelerate["engine"], student) for name, source in sources.items()},
        gpus=gpus,
        gpus_per_node=accelerate["gpus_per_node"],
        device=accelerate["device"],
        sharding=accelerate["sharding"],
        offload_optimizer=accelerate["offload_optimizer"],
        offload_parameters=accelerate["offload_parameters"],
        student_bits=bits,
        compute_bytes=2 if mixed or bits == 16 else 4,
        autocast=mixed and not deepspeed and bits == 32,
        adapter=trained_by(parts["peft_config"], config) if adapted else 0,
        reference=reference_of(parts["model"], method, args, student, accelerate, bits, adapted),
        gradient_checkpointing=bool(args.gradient_checkpointing),
        eager=(args.model_init_kwargs or {}).get("attn_implementation") == "eager",
        rows=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        steps_per_generation=args.steps_per_generation,
        num_generations=args.num_generations,
        num_iterations=args.num_iterations,
        prompt_mean=mean_prompt,
        prompt_longest=longest_prompt,
        completion_mean=mean_completion,
        completion_longest=longest,
        teacher_prompts=args.teacher_prompt_column != FiReOPDConfig.teacher_prompt_column,
        scoring_token_budget=args.scoring_token_budget,
        offload_teacher_states=args.offload_teacher_states,
        engine=engine,
        assumed=tuple(assumed),
        **of_method(method, args),
        **buckets(accelerate["zero"], student),
    )


def hub_of(given: dict[str, Any] | None) -> dict[str, Any]:
    """Returns those of the arguments of `from_pretrained` that say where a model's files are."""
    names = ("revision", "trust_remote_code")
    return {name: value for name, value in (given or {}).items() if name in names and value is not None}


def of_method(method: Method, args: FiReOPDConfig) -> dict[str, Any]:
    """Returns what memory and time depend on of a method."""
    drops = method.filter is not None and not {"reward_B", "group_B"} & set(method.needs)
    return {
        "whole_distributions": method.reads_whole_distributions,
        "divergence": method.divergence is not None,
        "top_k": method.divergence.top_k if method.divergence else 0,
        "mixture": method.divergence.mixture if method.divergence else 1.0,
        "drop_fraction": args.drop_fraction if drops else 0.0,
    }


def sources_of(model: str, args: FiReOPDConfig, adapted: bool) -> dict[str, Source]:
    """
    Returns the teachers by name as the trainer finds them, but without asking the Hub whether a known model is an
    adapter.
    """
    given = args.teacher_model_name_or_path
    named = given if isinstance(given, dict) else {UNNAMED: given}
    if any(not isinstance(name, str) or file_of(name) is None for name in named.values()):
        return teacher_sources(None, model, args, adapted)
    names, kwargs = list(named), "teacher_model_init_kwargs"
    return {
        name: Source(name, teacher, init_kwargs=dict(args.of_teacher(kwargs, name, names) or {}))
        for name, teacher in named.items()
    }


def placed(source: Source, args: FiReOPDConfig, engine: str | None, student: ModelShape) -> Placed:
    """Returns a teacher where it will be."""
    if source.base is None:
        return Placed(student, placement="student")
    assert isinstance(source.base, str), "a plan is made of names"
    config = config_for(source.base, **hub_of(source.hub))
    shape, given = shape_of(config, source.base), source.init_kwargs
    bits = weight_bits(config, given.get("dtype", "auto"), given.get("quantization_config"), shape)
    return Placed(shape, bits, choose_placement(args, source, engine, bits < 16))


def reference_of(
    model: str,
    method: Method,
    args: FiReOPDConfig,
    student: ModelShape,
    accelerate: dict[str, Any],
    bits: float,
    adapted: bool,
) -> Placed | None:
    """Returns the reference model of the method, or that of `beta`, which is the student without its adapter."""
    where = "sharded" if accelerate["sharding"] in ("zero3", "fsdp2") else "replicated"
    named = reference_source(model, method, args)
    if named is not None and isinstance(named, str):
        return Placed(student if named == model else shape_of(config_for(named), named), bits, where)
    return Placed(student, bits, where) if args.beta and not adapted else None


def weight_bits(config: PretrainedConfig, dtype: Any, quantization: Any, shape: ModelShape) -> float:
    """
    Returns the bits of a weight as the model will be loaded, in the mean where it is packed. What is not packed has
    16: embeddings and head (`get_keys_to_not_convert` in transformers), and with bitsandbytes all that is no linear
    layer, such as the experts of a mixture. Packing with bits that nobody says is refused.
    """
    packed = quantization or getattr(config, "quantization_config", None)
    if packed is not None:
        said = packed if isinstance(packed, dict) else packed.to_dict()
        how = said.get("quant_method", "bitsandbytes")
        how = str(getattr(how, "value", how)).lower()
        if how == "bitsandbytes":  # a float32 for 64 weights of 4 bits
            bits, inside = 4.5 if said.get("load_in_4bit") else 8.0, shape.in_linear
        else:
            bits, inside = packed_bits(said, how), shape.parameters - shape.outside
        return bits + (16 - bits) * (1 - inside / shape.parameters)
    named = getattr(config, "dtype", None) or "float32" if dtype in ("auto", None) else dtype
    return 8 * getattr(torch, str(named).removeprefix("torch.")).itemsize


def packed_bits(said: dict[str, Any], how: str) -> float:
    """Returns the bits of a packed weight with its scale, which groups of weights share: in 16 bits, and a zero."""
    if "fp8" in how:
        return 8.0
    if how == "mxfp4":
        return 4.25  # 32 weights share a scale of 8 bits
    bits = said.get("bits", said.get("w_bit"))
    if not isinstance(bits, int):
        raise ValueError(f"how many bits a weight has with quantization {how!r} is not known. Plan with 16 bits.")
    group = said.get("group_size", said.get("q_group_size", 128))
    return bits + ((16 + bits) / group if isinstance(group, int) and group > 0 else 0)


def trained_by(peft_config: Any, config: PretrainedConfig) -> int:
    """Returns how many parameters an adapter has, counted from PEFT's own layers on the model without numbers."""
    from peft import get_peft_model

    skeleton = empty_model(config)
    with torch.device("meta"):
        adapted = get_peft_model(skeleton, peft_config)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def buckets(zero: dict[str, Any], student: ModelShape) -> dict[str, Any]:
    """
    Returns the numbers of DeepSpeed's buckets. Where a file says "auto", transformers sets them from the width of the
    hidden states (transformers/integrations/deepspeed.py); where it says nothing, DeepSpeed's own defaults hold
    (deepspeed/runtime/zero/config.py). accelerate's short form, in configs/accelerate, says nothing of them.
    """
    square = student.hidden**2

    def size(name: str, default: int, auto: int) -> int:
        value = zero.get(name, default)
        return auto if value == "auto" else int(float(value))

    if not zero.get("stage"):
        return {}
    found = {"reduce_bucket": size("reduce_bucket_size", 500_000_000, square)}
    if zero["stage"] == 3:
        found["prefetch_bucket"] = size("stage3_prefetch_bucket_size", 50_000_000, int(0.9 * square))
        found["max_live"] = size("stage3_max_live_parameters", 1_000_000_000, 1_000_000_000)
    return found
