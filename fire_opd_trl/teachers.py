"""Teachers: load, compare tokenizers, freeze, place beside the student, route rows to them."""

import copy
import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate.utils import gather_object
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, get_config_model_id

from .config import FiReOPDConfig
from .heads import make_observable
from .pipeline import Method, Rollout, Scores, Signal
from .prompts import refuse_unrouted
from .stages import usable_B


Teacher: TypeAlias = str | PreTrainedModel


def named_teachers(
    teacher_model: Teacher | dict[str, Teacher] | None, student: Teacher, args: FiReOPDConfig
) -> dict[str, Teacher]:
    """The teachers by name; a single one, given here or in the config, is called `"teacher"`."""
    if teacher_model is None:
        teacher_model = args.teacher_model_name_or_path
    elif args.teacher_model_name_or_path is not None:
        raise ValueError(
            f"teacher_model_name_or_path={args.teacher_model_name_or_path!r} is set, and a teacher_model is given to "
            "the trainer. Name the teacher in one place."
        )
    if not teacher_model:
        raise ValueError(
            "teacher_model is missing: distillation needs a teacher. Pass teacher_model=... to the trainer, or set "
            "teacher_model_name_or_path."
        )
    teachers = teacher_model if isinstance(teacher_model, dict) else {"teacher": teacher_model}
    if taken := [name for name in teachers if name in ("student", "reference")]:
        raise ValueError(
            f"teacher_model: a teacher may not be called {taken[0]!r}, which names another model in the logs."
        )
    if any(teacher is student for teacher in teachers.values() if not isinstance(teacher, str)):
        raise ValueError("teacher_model is the very module that is trained. Pass a copy of it (copy.deepcopy).")
    return teachers


def from_pretrained_kwargs(args: FiReOPDConfig) -> dict[str, Any]:
    """Arguments with which a teacher is loaded: its own dtype, no remote code unless the config allows it."""
    given = args.teacher_model_init_kwargs or {}
    assert isinstance(given, dict)  # TrainingArguments has parsed the CLI's JSON
    return placeable(args, {"dtype": "auto", "revision": args.teacher_model_revision, **given})


def placeable(args: FiReOPDConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a frozen model of this run."""
    defaults: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED", "FSDP"):
        defaults["device_map"] = None  # "auto" would spread one copy over the cards of other ranks
    return {key: value for key, value in {**defaults, **given}.items() if value is not None or key == "device_map"}


def config_of(model: Teacher, **hub_kwargs) -> PretrainedConfig:
    """A model's config, without loading its weights."""
    if not isinstance(model, str):
        return model.config
    try:
        return AutoConfig.from_pretrained(model, **hub_kwargs)
    except OSError as error:
        why = " HF_HUB_OFFLINE is set: only local folders and models in the cache can be loaded." if offline() else ""
        raise ValueError(
            f"{model!r} could not be loaded: it is neither a local folder with a config.json nor a model that can be "
            f"reached on the Hub.{why}"
        ) from error


def offline() -> bool:
    """Whether the Hub is switched off for this process."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def tokenizer_of(teacher: Teacher, **hub_kwargs) -> PreTrainedTokenizerBase | None:
    """A teacher's tokenizer, from where its weights came; `None` for a module that was built in memory."""
    source = teacher if isinstance(teacher, str) else get_config_model_id(teacher.config)
    if not source or not (isinstance(teacher, str) or Path(source).is_dir()):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **hub_kwargs)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        if not isinstance(teacher, str):
            return None
        raise ValueError(
            f"teacher {source!r} has no tokenizer that could be loaded. The teacher must read the student's token "
            "ids, so its tokenizer is compared with the student's; put the tokenizer files beside its weights."
        ) from error


def refuse_other_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None, teacher_rows: int, name: str
) -> None:
    """
    The teacher scores the student's token ids, so each id the student can produce must mean the same to it. Sizes need
    not agree: vocabularies are padded to different multiples.
    """
    ids = {index: token for token, index in student.get_vocab().items()}
    if teacher is not None:
        theirs = {index: token for token, index in teacher.get_vocab().items()}
        for index in sorted(ids):
            if ids[index] != theirs.get(index):
                raise ValueError(
                    f"{name} has another tokenizer than the student: id {index} is {ids[index]!r} to the student and "
                    f"{theirs.get(index)!r} to the teacher. Sampled-token distillation needs one tokenizer; for two, "
                    "see TRL's GOLD trainer."
                )
    if max(ids) >= teacher_rows:
        raise ValueError(
            f"{name} has {teacher_rows} token rows, too few for the student's id {max(ids)} ({ids[max(ids)]!r}). "
            "Use a teacher of the same tokenizer."
        )


def reads_whole_distributions(method: Method) -> bool:
    """Whether a method compares student and teacher over the whole vocabulary."""
    divergence = method.divergence
    return "reverse_kl_BT" in method.signals or (divergence is not None and not divergence.top_k)


def checked_configs(
    teachers: dict[str, Teacher],
    tokenizer: PreTrainedTokenizerBase,
    args: FiReOPDConfig,
    student_rows: int,
    method: Method,
) -> list[PretrainedConfig]:
    """The teachers' configs, once each is known to read the student's tokens; no weight is loaded."""
    whole = reads_whole_distributions(method)
    hub = {"trust_remote_code": args.trust_remote_code, "revision": args.teacher_model_revision}
    configs = []
    for name, teacher in teachers.items():
        configs.append(config_of(teacher, **hub))
        rows = configs[-1].get_text_config().vocab_size
        refuse_other_tokens(tokenizer, tokenizer_of(teacher, **hub), rows, f"teacher_model {name!r}")
        if whole and rows < student_rows:
            raise ValueError(
                f"teacher_model {name!r} has {rows} token rows and the student {student_rows}: method={method.name!r} "
                "compares whole distributions, which must be over the same tokens. Cut the student's embeddings to "
                "the teacher's rows (resize_token_embeddings), or use a method of the sampled token."
            )
    named = args.reference_model_name_or_path
    if named is not None:
        code = {"trust_remote_code": args.trust_remote_code}
        rows = config_of(named, **code).get_text_config().vocab_size
        refuse_other_tokens(tokenizer, tokenizer_of(named, **code), rows, f"reference_model_name_or_path={named!r}")
    return configs


def placed_teachers(teachers: dict[str, Teacher], student_rows: int, trainer) -> dict[str, torch.nn.Module]:
    """
    The teachers as frozen modules in evaluation mode where the student is: partitioned by ZeRO-3 or FSDP when the
    student is, a replica otherwise; without optimizer.

    Args:
        student_rows (`int`): Token rows of the student; a teacher padded to more loses them, so that rows no token
            stands for take no probability.
        trainer ([`FiReOPDTrainer`]): Knows the accelerator, the temperature, the arguments, the method.
    """
    if reads_whole_distributions(trainer.method) and trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            f"method={trainer.method.name!r} reads the heads of whole models, which FSDP 1 keeps in pieces. Use FSDP "
            "2 (fsdp_version: 2) or DeepSpeed ZeRO-3."
        )
    placed = {}
    for name, teacher in teachers.items():
        if isinstance(teacher, str):
            teacher = create_model_from_path(teacher, **from_pretrained_kwargs(trainer.args))
        teacher = teacher.requires_grad_(False).eval()
        if teacher.config.get_text_config().vocab_size > student_rows:
            teacher.resize_token_embeddings(student_rows, mean_resizing=False)
        add_fused_lm_head(  # before wrapping, so that [B, T, V] never exists
            teacher,
            temperature=trainer.temperature,
            cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32,
            outputs=("log_probs", "entropy") if "teacher_entropy_BT" in trainer.method.signals else ("log_probs",),
        )
        make_observable(teacher, trainer.args.cast_lm_head_to_fp32)
        placed[name] = beside_student(teacher, trainer)
    return placed


def beside_student(model: PreTrainedModel, trainer) -> torch.nn.Module:
    """A frozen model where the student is: partitioned when the student is, a replica otherwise."""
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


def reference_of(model: Teacher, method: Method, args: FiReOPDConfig) -> Teacher | None:
    """The reference model of a method that has one: the one named, or the student as it is before training."""
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


def placed_reference(reference: Any, student_rows: int, trainer) -> torch.nn.Module | None:
    """The reference model, frozen beside the student; loaded as the student was, unless it has a name of its own."""
    args = trainer.args
    if reference is None:
        return None
    if isinstance(reference, str):
        given = {"dtype": "float32", **(args.model_init_kwargs or {})}
        if args.reference_model_name_or_path is not None:
            given.pop("revision", None)  # that of another repository
        reference = create_model_from_path(reference, **placeable(args, given))
    if reference.config.get_text_config().vocab_size > student_rows:
        reference.resize_token_embeddings(student_rows, mean_resizing=False)
    add_fused_lm_head(reference, trainer.temperature, args.cast_lm_head_to_fp32)
    return beside_student(reference.requires_grad_(False).eval(), trainer)


def route_B(inputs: list[dict[str, Any]], names: list[str], column: str) -> list[int]:
    """Number of each row's teacher; with one teacher no column is needed."""
    if len(names) == 1:
        return [0] * len(inputs)
    for index, row in enumerate(inputs):  # a stream is not checked beforehand
        refuse_unrouted(row, index, "window", column, names)
    return [names.index(row[column]) for row in inputs]


def refuse_broken_teacher(
    trainer, inputs: list[dict[str, Any]], rollout: Rollout, scores: Scores, signal: Signal
) -> None:
    """A teacher whose values are not finite in too large a share of a window stops all ranks, naming the prompts."""
    share, limit = signal.metrics["nonfinite_teacher"] / signal.metrics["rows"], trainer.args.teacher_nonfinite_limit
    if share <= limit:
        return
    broken_B = rollout.alive_B & ~usable_B(rollout, scores, trainer.method.signals)
    prompts = gather_object([inputs[row]["prompt"] for row in broken_B.nonzero().flatten().tolist()])
    shown = ", ".join(repr(prompt)[:80] for prompt in prompts[:8])
    raise FloatingPointError(
        f"step {trainer.state.global_step}: the teacher's values are NaN or infinite in {share:.0%} of the window "
        f"(teacher_nonfinite_limit={limit}), for the prompts {shown}. Check the teacher's weights and its precision "
        "(teacher_model_init_kwargs={'dtype': 'float32'})."
    )
