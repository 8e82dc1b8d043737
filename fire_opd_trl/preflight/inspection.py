"""All checks run here in order. A fault in one does not hide the others."""

import warnings
from contextlib import suppress
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoProcessor, PreTrainedTokenizerBase

from ..config import FiReOPDConfig
from ..pipeline import Method
from ..rollouts.prompts import UNNAMED
from ..teachers.placement import sharding_engine
from ..teachers.sources import Source
from ..teachers.vocabulary import Teacher, Vocabulary, config_of
from .dataset import (
    Facts,
    Reader,
    check_dataset,
    no_ids,
    refuse_less_than_a_window,
    refuse_lost_columns,
    report_dataset,
)
from .findings import Checked, title_of
from .models import check_reference, check_teacher, describe_model, report_positions, room_for_prompt
from .packages import needed, refuse_missing
from .precision import check_precision
from .prompts import example_prompts, refuse_impossible_prompts, report_prompts, student_reader
from .rewards import refuse_uncallable_rewards
from .streams import checked_stream
from .window import report_window


def check_inputs(model: Teacher, sources: dict[str, Source], args: FiReOPDConfig, *others: Any) -> Checked:
    """
    The trainer calls this when it is made. It raises the faults that [`inspect_run`] finds, gives the warnings, and
    prints the table on the main process.
    """
    checked = inspect_run(model, sources, args, *others)
    checked.refuse()
    for finding in checked.findings:
        if finding.outcome == "warning":
            warnings.warn(f"{finding.subject}: {finding.text}", stacklevel=3)
    if args.preflight and args.distributed_state.is_main_process:
        print(f"{checked.table()}\n{checked.example}", flush=True)
    return checked


def inspect_run(
    model: Teacher,
    sources: dict[str, Source],
    args: FiReOPDConfig,
    method: Method,
    train_dataset,
    eval_dataset,
    processing_class,
    others: dict[str, Any],
) -> Checked:
    """
    `check_inputs` and `fire-opd preflight` call this. It checks everything but weights: configs, tokenizers,
    templates, every row of the map-style datasets, the window. The rows of a stream are checked when they are read.

    Args:
        model (`str` or `PreTrainedModel`): The student; `None` where a preflight has none, and says so.
        sources (`dict`): The teachers; empty where a preflight has none, and says so.
        others (`dict`): What else the trainer was given: a `rollout_func`, if it makes the prompts' tokens; an
            `environment_factory`, if it makes the prompts; `tools`; `reward_funcs`; what [`check_precision`] reads;
            and the `engine` that shards the planned run, if it is not the engine of this process.
    """
    checked = Checked(train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=processing_class)
    hub = {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}
    with checked.check("packages"):
        refuse_missing(needed(args, sources, others.get("engine", sharding_engine(args))))
    student: Vocabulary | None = None
    limit = None
    with checked.check("student"):
        if model is None:
            raise ValueError("There is no student. Set --model_name_or_path to a model id or a local folder.")
        config = config_of(model, **hub)
        checked.processing_class = processing_class or AutoProcessor.from_pretrained(
            model if isinstance(model, str) else config._name_or_path, padding_side="left", **hub
        )
        text_only = isinstance(checked.processing_class, PreTrainedTokenizerBase)
        checked.tokenizer = checked.processing_class if text_only else checked.processing_class.tokenizer
        student = Vocabulary.of(model, config, checked.tokenizer, revision=hub["revision"])
        checked.student_rows = student.rows
        limit = room_for_prompt(config, args, "the student")
        dtype = (args.model_init_kwargs or {}).get("dtype") or "float32"
        checked.record("student", describe_model(model, config, student, dtype))

    named = {name: Reader(no_ids, None) for name in sources or [UNNAMED]}
    if student is None:
        text = "nothing is known of the student: of the teachers nothing was checked, of prompts only their form"
        checked.record("the rest", text, "warning")
    else:
        with checked.check("precision"):
            check_precision(checked, model, config, args, others)
        for name, source in sources.items():
            named[name] = check_teacher(checked, source, list(sources), config, student, args, method, others)
        if args.reference_model_name_or_path is not None:
            check_reference(checked, student, args)

    limit = min((bound for bound in (limit, args.max_prompt_length) if bound is not None), default=None)
    reader = student_reader(checked, args, others, limit)
    prompts_exist = others.get("environment_factory") is None
    names, facts = list(named), Facts()

    def reader_of(dataset: Any) -> Reader:
        """With images the processor alone knows a prompt's tokens, when it reads them."""
        pictured = {"image", "images"} & set(getattr(dataset, "column_names", None) or [])
        return Reader(no_ids, None) if pictured else reader

    with checked.check("columns"):
        refuse_lost_columns(args, train_dataset, list(sources))
        refuse_impossible_prompts(args, train_dataset, others)
    with checked.check("rewards"):
        if others.get("rollout_func") is None:  # one adds fields of its own to the columns
            evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
            for dataset in (train_dataset, *evaluated):
                refuse_uncallable_rewards(others.get("reward_funcs"), dataset, environments=not prompts_exist)
    with checked.check("dataset"):
        columns = (args.teacher_column, args.teacher_prompt_column)

        def check_rows(dataset: Any, called: str) -> tuple[Any, Facts]:
            if prompts_exist and isinstance(dataset, IterableDataset):
                stream = checked_stream(
                    dataset,
                    called,
                    student=reader,
                    teachers=named,
                    overlong=args.overlong_prompts,
                    columns=columns,
                    left_out=checked.left_out,
                )
                return stream, Facts()
            if not isinstance(dataset, Dataset) or not prompts_exist:
                return dataset, Facts()
            return check_dataset(
                dataset,
                called,
                student=reader_of(dataset),
                teachers=named,
                overlong=args.overlong_prompts,
                columns=columns,
                quiet=args.disable_tqdm,
            )

        checked.train_dataset, facts = check_rows(train_dataset, "train_dataset")
        checked.prompts = (facts.mean, facts.longest) if facts.longest else None
        if isinstance(eval_dataset, dict):
            checked.eval_dataset = {n: check_rows(d, f"eval_dataset {n!r}")[0] for n, d in eval_dataset.items()}
        else:
            checked.eval_dataset = check_rows(eval_dataset, "eval_dataset")[0]
        if train_dataset is not None or not prompts_exist:
            report_dataset(checked, facts, names, args)
            report_prompts(checked, facts, args)
    configs = {} if student is None else {"student": config}
    for name, source in sources.items():
        with suppress(ValueError):  # one that cannot be loaded is a fault already
            configs.update({} if source.base is None else {title_of(name): config_of(source.base, **source.hub)})
    report_positions(checked, configs, args, facts)
    with checked.check("window"):
        if isinstance(checked.train_dataset, Dataset):
            refuse_less_than_a_window(checked.train_dataset, args.generation_batch_size // args.num_generations)
        report_window(checked, args, method, names, facts)
    checked.example = example_prompts(checked, facts, reader_of(checked.train_dataset))
    return checked
