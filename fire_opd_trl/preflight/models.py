"""The models are checked by their configs, tokenizers and placement, before any weight is loaded."""

import math
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..config import FiReOPDConfig
from ..pipeline import Method
from ..scoring.forward import length_bounds, rope_kinds
from ..scoring.heads import base_of
from ..teachers.offload import empty_model
from ..teachers.placement import choose_placement, refuse_unreadable_head, sharding_engine
from ..teachers.prompts import prompt_renderer
from ..teachers.sources import Source
from ..teachers.vocabulary import Teacher, Vocabulary, config_of, end_token_warning, tokenizer_of, unknown_ids
from .dataset import Facts, Reader, no_ids
from .findings import Checked, title_of
from .window import bytes_of_states


def room_for_prompt(config: PretrainedConfig, args: FiReOPDConfig, who: str) -> int | None:
    """Returns the prompt tokens that a model's context leaves beside the longest completion, if it has a limit."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and context <= args.max_completion_length:
        raise ValueError(
            f"max_completion_length={args.max_completion_length} leaves no room for a prompt in the context of {who}, "
            f"{context} tokens. Lower it."
        )
    return None if context is None else context - args.max_completion_length


def describe_model(model: Teacher | None, config: PretrainedConfig, vocabulary: Vocabulary, dtype: Any) -> str:
    """Returns a model in one line: its class, size, precision, vocabulary, context and end tokens."""
    kind, text = (config.architectures or [type(config).__name__])[0], config.get_text_config()
    if isinstance(dtype, str) and dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise ValueError(f"dtype={dtype!r} is refused. Use 'auto', 'bfloat16', 'float16' or 'float32'.")
    dtype = named_dtype(config, dtype)
    size = count_parameters(model, config)
    width = torch.finfo(getattr(torch, dtype)).bits / 8 if isinstance(getattr(torch, dtype, None), torch.dtype) else 0
    facts = [kind]
    if size:
        memory = f" in {dtype} ({short_number(size * width)}B)" if width else ""
        facts.append(f"{short_number(size)} parameters{memory}")
    facts.append(f"{len(vocabulary.tokens)} tokens in {vocabulary.rows} rows" if vocabulary.tokens else "")
    if getattr(text, "max_position_embeddings", None):
        facts.append(f"context {text.max_position_embeddings}")
    facts.append(f"ends with {vocabulary.named(vocabulary.ends)}" if vocabulary.ends else "")
    return ", ".join(fact for fact in facts if fact)


def named_dtype(config: PretrainedConfig, dtype: Any) -> str:
    """Returns the precision that a model is loaded in, by name."""
    return str(getattr(config, "dtype", None) or "float32" if dtype == "auto" else dtype).removeprefix("torch.")


def report_states(
    checked: Checked, name: str, config: PretrainedConfig, dtype: Any, args: FiReOPDConfig, method: Method
) -> None:
    """Record how much memory a rank needs for what the loss will read of a teacher, if the method reads any of it."""
    if size := bytes_of_states(config, named_dtype(config, dtype), args, method):
        device = "device memory until then (offload_teacher_states=True: in host memory)"
        top_k = method.divergence.top_k if method.divergence else 0
        checked.record(
            f"{title_of(name)}, states",
            f"{method.name} reads the teacher's {f'top {top_k}' if top_k else 'hidden states'} again in the update: "
            f"at most {short_number(size)}B a rank, in {'host memory' if args.offload_teacher_states else device}",
        )


def count_parameters(model: Teacher | None, config: PretrainedConfig) -> int | None:
    """Returns how many parameters a model has, without its weights; `None` if no config can build its kind."""
    if model is not None and not isinstance(model, str):
        return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    skeleton = empty_model(config)
    return None if skeleton is None else sum(p.numel() for p in skeleton.parameters())


def short_number(number: float) -> str:
    """Returns a large number for a person to read: `4.02 G`."""
    power = min(3, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G'][power]}"


def check_teacher(
    checked: Checked,
    source: Source,
    names: list[str],
    student_config: PretrainedConfig,
    student: Vocabulary,
    args: FiReOPDConfig,
    method: Method,
    others: dict[str, Any],
) -> Reader:
    """`inspect_run` calls this for each teacher: check it, and return how it reads the prompts of the dataset."""
    name, subject = source.name, title_of(source.name)
    reader, tokenizer = Reader(no_ids, None), None
    with checked.check(subject):
        if source.base is None:
            refuse_self_without_effect(names, args, method)
            checked.unknown[name], reader.limit = frozenset(), room_for_prompt(student_config, args, subject)
            checked.record(subject, "the student with its adapter switched off: no second model")
            report_states(
                checked, name, student_config, (args.model_init_kwargs or {}).get("dtype", "float32"), args, method
            )
        else:
            config = config_of(source.base, **source.hub)
            if not isinstance(source.base, str):
                refuse_unreadable_head(base_of(source.base), name)
            tokenizer = teacher_tokenizer(source)
            rows = config.get_text_config().vocab_size
            theirs = None
            if tokenizer is not None:
                theirs = Vocabulary.of(source.base, config, tokenizer, revision=source.hub.get("revision"))
            checked.unknown[name] = unknown_ids(theirs, rows, student, f"teacher_model {name!r}")
            reader.limit, reader.unknown = room_for_prompt(config, args, subject), checked.unknown[name]
            reader.rows = min(rows, student.rows)
            if method.reads_whole_distributions and rows < student.rows:
                raise ValueError(
                    f"teacher_model {name!r} has {rows} token rows and the student {student.rows}: method="
                    f"{method.name!r} compares whole distributions, which must be over the same tokens. Cut the "
                    "student's embeddings to the teacher's rows (resize_token_embeddings), or use a method of the "
                    "sampled token."
                )
            engine = others.get("engine", sharding_engine(args))
            report_teacher(checked, source, config, theirs, student, args, engine)
            report_states(checked, name, config, source.init_kwargs.get("dtype", "auto"), args, method)
    with checked.check(f"{subject}, prompt"):
        renderer = prompt_renderer(name, names, args, checked.tokenizer, tokenizer)
        tools = others.get("tools")
        reader.ids = lambda rows: renderer.ids(rows, tools)
        reader.depends = (*vars(renderer).values(), tools)
        checked.renderers[name] = renderer
    return reader


def refuse_self_without_effect(names: list[str], args: FiReOPDConfig, method: Method) -> None:
    """Refuse settings that have no effect on a teacher that is the student without its adapter."""
    if "reference_logp_BT" in method.signals and args.reference_model_name_or_path is None:
        raise ValueError(
            f"method={method.name!r} goes beyond the teacher, away from the student as it starts, and teacher 'self' "
            "is just that. Set reference_model_name_or_path, or use another teacher."
        )
    if len(names) == 1 and (args.teacher_placement != "auto" or args.teacher_deepspeed is not None):
        raise ValueError(
            "teacher_placement and teacher_deepspeed have no effect on teacher 'self', which is where the student is. "
            "Remove them."
        )


def teacher_tokenizer(source: Source) -> PreTrainedTokenizerBase | None:
    """Returns the adapter's own tokenizer if there is one, else the tokenizer of its base model."""
    assert source.base is not None
    if source.adapter is not None:
        try:
            return tokenizer_of(source.adapter, **source.adapter_hub)
        except ValueError:
            pass
    return tokenizer_of(source.base, **source.hub)


def report_teacher(
    checked: Checked,
    source: Source,
    config: PretrainedConfig,
    theirs: Vocabulary | None,
    student: Vocabulary,
    args: FiReOPDConfig,
    engine: str | None,
) -> None:
    """Record size, placement, tokens and end tokens of a teacher that was not refused."""
    subject, unknown = title_of(source.name), checked.unknown[source.name]
    where = choose_placement(args, source, engine)
    about = f"adapter {source.adapter} on " if source.adapter else ""
    dtype = source.init_kwargs.get("dtype", "auto")
    vocabulary = theirs or Vocabulary({}, frozenset(), config.get_text_config().vocab_size, frozenset())
    checked.record(subject, f"{about}{describe_model(source.base, config, vocabulary, dtype)}; {where}")
    if theirs is None:
        text = "a module in memory, whose tokenizer is not known: only its number of token rows was compared"
        checked.record(f"{subject}, tokens", text)
        return
    agreed = f"{len(student.tokens) - len(unknown)} of the student's {len(student.tokens)} ids mean the same to it"
    if unknown:
        agreed += (
            f"; it does not know {student.named(unknown)}. They were added to the student's tokenizer: an answer that "
            "holds one is dropped and counted (fire/nonfinite_teacher). If the student writes them often, use another "
            "chat template or another teacher"
        )
    checked.record(f"{subject}, tokens", agreed, "warning" if unknown else "ok")
    if ends := end_token_warning(theirs, student, f"teacher {source.name!r}"):
        checked.record(f"{subject}, ends", ends, "warning")
    else:
        checked.record(f"{subject}, ends", f"as the student: {student.named(student.ends)}")


def check_reference(checked: Checked, student: Vocabulary, args: FiReOPDConfig) -> None:
    """Check the reference model, which scores the student's tokens and must know them all."""
    named, code = args.reference_model_name_or_path, {"trust_remote_code": args.trust_remote_code}
    with checked.check("reference"):
        config, what = config_of(named, **code), f"reference_model_name_or_path={named!r}"
        theirs = Vocabulary.of(named, config, tokenizer_of(named, **code))
        if unknown := unknown_ids(theirs, theirs.rows, student, what):
            raise ValueError(f"{what} does not know the student's {student.named(unknown)}. Use the student itself.")
        checked.record("reference", describe_model(named, config, theirs, "float32"))


def report_positions(checked: Checked, models: dict[str, PretrainedConfig], args: FiReOPDConfig, facts: Facts) -> None:
    """
    `inspect_run` calls this when the dataset is read. It says of student and teachers whether what they say of a row
    depends on the rows beside it, since some choose the frequencies of their rotary embeddings for a whole forward.

    Args:
        models (`dict`): Configs by the subject under which the model is reported, `"student"` among them.
    """
    longest = facts.longest_read + args.max_completion_length if facts.longest_read else math.inf
    for subject, config in models.items():
        text = config.get_text_config()
        context = text.max_position_embeddings if "max_position_embeddings" in text else math.inf
        for bound in length_bounds(text):
            if min(longest, context) > bound:
                checked.record(f"{subject}, positions", *describe_longrope(bound, subject == "student", args))
        if longest > context and any("dynamic" in kind for kind in rope_kinds(text)):
            dynamic = (
                f"dynamic NTK: it reads a forward of more than {context} tokens with frequencies that depend on its "
                "longest row, so that a row's score depends on the rows beside it, and it is not known how long the "
                f"prompts are. Let no prompt have more than {context - args.max_completion_length} tokens "
                "(max_prompt_length), or use a model with yarn or llama3 scaling."
            )
            checked.record(f"{subject}, positions", dynamic, "warning")


def describe_longrope(bound: int, student: bool, args: FiReOPDConfig) -> tuple[str, str]:
    """Returns what becomes of rows beyond the bound of a model with `longrope`, and whether that is a warning."""
    said = f"longrope: it reads rows of more than {bound} tokens with other frequencies. Scoring "
    said += "and update keep them" if student else "keeps them"
    said += " apart from shorter rows, whose scores do not depend on them"
    if not student:
        return said, "ok"
    if args.gradient_accumulation_steps == 1:
        said += (
            "; with gradient_accumulation_steps=1 the update cannot do so where all rows of a rank are one "
            "micro-batch: set it to 2 or more"
        )
    if args.use_vllm:
        said += (
            f". vLLM samples every row with the frequencies of long rows where its context is longer than {bound} "
            "(vllm_max_model_length), so that its short rows are off policy (fire/sampling_gap)"
        )
    else:
        said += (
            f". Sampling cannot: when the longest row of a batch grows beyond {bound}, all change their frequencies, "
            "so that some tokens are off policy"
        )
    return f"{said}. If that is too much, keep prompt and completion within {bound} tokens.", "warning"
