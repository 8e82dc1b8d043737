"""Everything that can be wrong without weights is found before weights are loaded."""

from datasets import Dataset
from transformers import AutoProcessor, PreTrainedTokenizerBase

from .config import FiReOPDConfig
from .pipeline import Method
from .prompts import checked_dataset, refuse_less_than_a_window
from .teachers import Teacher, checked_configs, config_of


def checked_inputs(
    model,
    teachers: dict[str, Teacher],
    args: FiReOPDConfig,
    method: Method,
    train_dataset,
    eval_dataset,
    processing_class,
    *,
    prompts_are_text: bool,
    prompts_exist: bool,
):
    """
    Compare the tokenizers and check every row of the map-style datasets. Streams are checked as they are sampled.

    Args:
        prompts_are_text (`bool`): Whether TRL tokenizes the prompts, so that their lengths are known beforehand.
        prompts_exist (`bool`): Whether the datasets hold the prompts, or an environment does.

    Returns:
        The processing class, the two datasets, and the student's number of token rows.
    """
    if args.remove_unused_columns and len(teachers) > 1:
        raise ValueError(
            f"remove_unused_columns=True would remove the column {args.teacher_column!r}, which names each row's "
            "teacher. Set it to False."
        )
    revision = (args.model_init_kwargs or {}).get("revision")
    student = config_of(model, trust_remote_code=args.trust_remote_code, revision=revision)
    if processing_class is None:
        processing_class = AutoProcessor.from_pretrained(
            model if isinstance(model, str) else student._name_or_path,
            revision=revision,
            trust_remote_code=args.trust_remote_code,
            padding_side="left",
        )
    text_only = isinstance(processing_class, PreTrainedTokenizerBase)
    tokenizer = processing_class if text_only else processing_class.tokenizer
    student_rows = student.get_text_config().vocab_size
    configs = [student, *checked_configs(teachers, tokenizer, args, student_rows, method)]
    contexts = [getattr(config.get_text_config(), "max_position_embeddings", None) for config in configs]
    limits = [context - args.max_completion_length for context in contexts if context]
    if args.max_prompt_length:
        limits.append(args.max_prompt_length)

    def checked(dataset, name: str):
        if not isinstance(dataset, Dataset) or not prompts_exist:
            return dataset
        countable = prompts_are_text and not {"image", "images"} & set(dataset.column_names)
        return checked_dataset(
            dataset,
            name,
            tokenizer=tokenizer if countable else None,
            template_kwargs=args.chat_template_kwargs or {},
            limit=min(limits, default=None),
            overlong=args.overlong_prompts,
            column=args.teacher_column,
            teachers=list(teachers),
        )

    train_dataset = checked(train_dataset, "train_dataset")
    if isinstance(train_dataset, Dataset):
        refuse_less_than_a_window(train_dataset, args.generation_batch_size // args.num_generations)
    if isinstance(eval_dataset, dict):
        eval_dataset = {name: checked(dataset, f"eval_dataset {name!r}") for name, dataset in eval_dataset.items()}
    else:
        eval_dataset = checked(eval_dataset, "eval_dataset")
    return processing_class, train_dataset, eval_dataset, student_rows
