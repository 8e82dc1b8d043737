"""What a field of the configuration may be, and what a user is told to do about any other value."""

import math
import warnings
from collections.abc import Callable
from typing import Any

from .methods import CONTROLS, METHODS
from .pipeline import Method
from .stages import LOSS_TYPES, SCOPES, refuse_incomplete


Right = Callable[[Any], bool]
# Fields of the config that a recipe may take, and the name under which it takes them.
KNOBS = {
    "drop_fraction": "drop_fraction",
    "confidence": "confidence",
    "confusion": "confusion",
    "statistics_scope": "scope",
}
PLACEMENTS = ("auto", "sharded", "replicated", "offload")
BALANCES = ("none", "tokens")
VLLM_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def _number(low: float, high: float = 1e9) -> Right:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int) -> Right:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _text_or_dict(value: Any) -> bool:
    return _text(value) or isinstance(value, dict)


def _one_of(*names: str) -> Right:
    return lambda value: isinstance(value, str) and value in names


def _unset_or(right: Right) -> Right:
    return lambda value: value is None or right(value)


# What each field may be, and what to do about any other value.
RIGHT_VALUES: dict[str, tuple[Right, str]] = {
    "method": (_one_of(*METHODS), f"Use one of: {', '.join(METHODS)}."),
    "control": (_one_of(*CONTROLS), f"Use one of: {', '.join(CONTROLS)}."),
    "reference_model_name_or_path": (_unset_or(_text), "Give a model id or a local folder, or leave it unset."),
    "drop_fraction": (_number(0, math.nextafter(1, 0)), "Give a share in [0, 1), for example 0.2; 0 keeps every row."),
    "confidence": (_number(0), "Give a number of at least 0; 0 switches it off."),
    "confusion": (_number(0), "Give a number of at least 0; 0 switches it off."),
    "statistics_scope": (_one_of(*SCOPES), f"Use one of: {', '.join(SCOPES)}."),
    "teacher_model_name_or_path": (
        _unset_or(_text_or_dict),
        "Give a model id or a local folder, or a dict of them by name.",
    ),
    "teacher_placement": (_one_of(*PLACEMENTS), f"Use one of: {', '.join(PLACEMENTS)}."),
    "teacher_deepspeed": (_unset_or(_text_or_dict), "Give the path of a JSON file, or leave it unset."),
    "teacher_chat_template": (_unset_or(_text_or_dict), "Give 'own', a .jinja file or the text of a template."),
    "teacher_prompt_column": (_text, "Give the name of a dataset column."),
    "teacher_column": (_text, "Give the name of a dataset column."),
    "preflight": (lambda value: isinstance(value, bool), "Use true or false."),
    "allow_guessing_teacher": (lambda value: isinstance(value, bool), "Use true or false."),
    "sampling_gap_limit": (_unset_or(_number(1e-9)), "Give a number above 0, for example 0.05, or leave it unset."),
    "allow_truncated_sampling": (lambda value: isinstance(value, bool), "Use true or false."),
    "teacher_nonfinite_limit": (_number(0, 1), "Give a share in [0, 1], for example 0.1."),
    "scoring_token_budget": (_whole(1), "Give a whole number of at least 1, for example 16384."),
    "balance": (_one_of(*BALANCES), f"Use one of: {', '.join(BALANCES)}."),
    "reward_coef": (_number(0), "Give a number of at least 0; 0 only logs rewards."),
    "max_prompt_length": (_unset_or(_whole(1)), "Give a whole number of at least 1, or leave it unset."),
    "overlong_prompts": (_one_of("error", "drop"), "Use 'error' or 'drop'."),
    "num_generations": (_whole(1), "Sample a whole number of at least 1 completion per prompt."),
    "num_generations_eval": (_unset_or(_whole(1)), "Give a whole number of at least 1, or leave it unset."),
    "num_iterations": (_whole(1), "Give a whole number of at least 1."),
    "per_device_train_batch_size": (_whole(1), "Give a whole number of at least 1."),
    "gradient_accumulation_steps": (_whole(1), "Give a whole number of at least 1."),
    "steps_per_generation": (_unset_or(_whole(1)), "Give a multiple of gradient_accumulation_steps."),
    "max_completion_length": (_whole(1), "Give a whole number of at least 1."),
    "loss_type": (_one_of(*LOSS_TYPES), f"Use one of: {', '.join(LOSS_TYPES)}."),
    "temperature": (_number(1e-6), "Sampling needs a temperature above 0, for example 1.0."),
    "top_p": (_number(1e-6, 1), "Give a share in (0, 1]; 1.0 samples the whole distribution."),
    "epsilon": (_number(0), "Give a number of at least 0, for example 0.2."),
    "epsilon_high": (_unset_or(_number(0)), "Give a number of at least 0, or leave it unset to use epsilon."),
    "beta": (_number(0), "Give a number of at least 0; 0 needs no reference model."),
    "vllm_importance_sampling_mode": (_one_of(*VLLM_CORRECTIONS), f"Use one of: {', '.join(VLLM_CORRECTIONS)}."),
    "vllm_importance_sampling_clip_max": (_unset_or(_number(1e-6)), "Give a number above 0, for example 5.0."),
    "mask_truncated_completions": (lambda value: isinstance(value, bool), "Use true or false."),
}

# GRPO's options that change the objective and that this objective does not have: the value that leaves them off, and
# what to do instead.
NEUTRAL_GRPO_OPTIONS = {
    "importance_sampling_level": ("token", "Distillation has one advantage per token."),
    "top_entropy_quantile": (1.0, "Tokens are weighted by the method; see `method` and `confusion`."),
    "entropy_coef": (0.0, "An entropy bonus is not part of the distillation objective."),
    "use_adaptive_entropy": (False, "An entropy bonus is not part of the distillation objective."),
    "off_policy_mask_threshold": (None, "Trajectories are selected by the method; see `drop_fraction`."),
    "delta": (None, "The surrogate is clipped once, by `epsilon` and `epsilon_high`."),
    "use_bias_correction_kl": (False, "With `beta` the reference penalty is the plain k3 estimate."),
}


# Settings of a sampler: the values that leave the student's distribution as it is.
NEUTRAL_SAMPLING: dict[str, tuple] = {
    "top_p": (1.0, None),
    "top_k": (0, -1, None),
    "min_p": (None, 0.0),
    "typical_p": (1.0, None),
    "repetition_penalty": (1.0, None),
    "presence_penalty": (0.0, None),
    "frequency_penalty": (0.0, None),
    "vllm_structured_outputs_regex": (None, ""),
    "do_sample": (True,),
    "num_beams": (1, None),
}
# What else generation_kwargs may hold: it says when to stop, or what is computed beside the tokens.
HARMLESS_SAMPLING = {
    *(
        "stop",
        "stop_strings",
        "stop_token_ids",
        "eos_token_id",
        "max_tokens",
        "max_new_tokens",
        "max_length",
        "max_time",
    ),
    *("pad_token_id", "bos_token_id", "seed", "use_cache", "cache_implementation", "cache_config", "detokenize"),
    *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "prefill_chunk_size"),
    *("disable_compile", "compile_config", "priority"),
}
WHOLE = [name for name, recipe in METHODS.items() if recipe().advantage is None]


def refuse_unless(right: bool, config: Any, name: str, fix: str) -> None:
    """Raise with the field, its value, and what to change, unless the value is right."""
    if not right:
        raise ValueError(f"{name}={getattr(config, name)!r} is refused. {fix}")


def refuse_wrong_combinations(config: Any) -> None:
    """Fields that are right alone and wrong together."""
    refuse_unless(
        config.reward_coef == 0 or config.num_generations >= 2,
        config,
        "reward_coef",
        f"GRPO's advantage compares completions of one prompt, and num_generations={config.num_generations}. Set "
        "num_generations to at least 2, or reward_coef=0 to only log rewards.",
    )
    refuse_unless(
        config.generation_batch_size % config.num_generations == 0,
        config,
        "generation_batch_size",
        f"A window must hold whole prompts, and num_generations={config.num_generations}. Make "
        "per_device_train_batch_size x processes x steps_per_generation a multiple of it.",
    )
    refuse_unless(
        config.steps_per_generation % config.gradient_accumulation_steps == 0,
        config,
        "steps_per_generation",
        f"A window must not be split inside an optimizer step, and gradient_accumulation_steps="
        f"{config.gradient_accumulation_steps}. Make steps_per_generation a multiple of it.",
    )
    refuse_unless(
        config.teacher_model_revision is None or config.teacher_model_name_or_path is not None,
        config,
        "teacher_model_revision",
        "It names a revision of teacher_model_name_or_path, which is not set.",
    )
    columns = ["prompt", config.teacher_column, config.teacher_prompt_column]
    apart = len(set(columns)) == len(columns)
    refuse_unless(apart, config, "teacher_prompt_column", "It must be another column than prompt and teacher_column.")
    teachers = config.teacher_model_name_or_path
    if isinstance(teachers, dict):
        named = bool(teachers) and all(_text(part) for pair in teachers.items() for part in pair)
        fix = "Give each teacher a name, and a model id or a local folder."
        refuse_unless(named, config, "teacher_model_name_or_path", fix)
        fix = f"With several teachers give a dict with these keys: {', '.join(map(str, teachers))}."
        revision = config.teacher_model_revision
        by_name = revision is None or isinstance(revision, dict) and set(revision) <= set(teachers)
        refuse_unless(by_name, config, "teacher_model_revision", fix)


def warn_of_effects(config: Any, takes: set[str]) -> None:
    """Of what does nothing, or more than it says. `takes`: the arguments of the config's recipe."""
    alone = "drop_fraction" in takes and (config.statistics_scope == "trajectory" or "scope" not in takes)
    if alone and config.drop_fraction != type(config).drop_fraction:
        warnings.warn(
            f"drop_fraction={config.drop_fraction} drops nothing: each trajectory is ranked alone (statistics_scope="
            f"{config.statistics_scope!r}, method={config.method!r}).",
            stacklevel=4,
        )
    if "drop_fraction" in takes and not alone and 0 < config.drop_fraction * config.generation_batch_size < 1:
        warnings.warn(
            f"drop_fraction={config.drop_fraction} of a window of {config.generation_batch_size} rows drops none. "
            f"Raise gradient_accumulation_steps until it holds {math.ceil(1 / config.drop_fraction)} or more.",
            stacklevel=4,
        )
    if config.use_transformers_continuous_batching and (config.bf16 or config.fp16):
        warnings.warn(
            "use_transformers_continuous_batching with bf16 or fp16: TRL casts the weights themselves to 16 bits "
            "before it samples, and they stay so: small updates are lost. Set bf16=False, or sample with vLLM.",
            stacklevel=4,
        )


def refuse_truncated_sampling(config: Any, method: Method) -> None:
    """Settings of the sampler under which sampled tokens are not the student's own."""
    fields = ("top_p", "top_k", "min_p", "repetition_penalty", "vllm_structured_outputs_regex")
    settings = [(name, name, getattr(config, name)) for name in fields]
    for name, value in (config.generation_kwargs or {}).items():
        shown = f"generation_kwargs[{name!r}]"
        if name == "temperature":
            raise ValueError(f"{shown}={value!r} is refused. Set `temperature`, by which log-probabilities are taken.")
        if name in ("n", "logprobs"):
            raise ValueError(f"{shown}={value!r} is refused. The trainer counts on one completion, and on its tokens.")
        settings.append((shown, name, value))
    cuts = [
        (shown, name, value)
        for shown, name, value in settings
        if name not in HARMLESS_SAMPLING and value not in NEUTRAL_SAMPLING.get(name, ())
    ]
    if not cuts:
        return
    shown, name, value = cuts[0]
    if not config.allow_truncated_sampling and (method.advantage or config.reward_coef):
        way = f"Leave it at {NEUTRAL_SAMPLING[name][0]!r}" if name in NEUTRAL_SAMPLING else "Remove it"
        raise ValueError(
            f"{shown}={value!r} is refused. method={method.name!r} reads the log-probabilities of the sampled tokens, "
            f"which are then not drawn from the student's own distribution: its gradient is biased. {way}, use a "
            f"method over the whole vocabulary ({', '.join(WHOLE)}) without reward_coef, or set "
            "allow_truncated_sampling=True."
        )
    warnings.warn(
        f"{shown}={value!r}: the student does not sample from its whole distribution. fire/reverse_kl and eval_loss "
        "are estimates from sampled tokens, and are biased; so is the policy gradient, if the method has one.",
        stacklevel=4,
    )


def chosen_method(method: Method | None, args: Any, rewarded: bool) -> Method:
    """
    The recipe of the config, or the one given to the trainer, once it is known that all it reads will exist.

    Args:
        method ([`Method`], *optional*): A recipe in place of the config's.
        args ([`FiReOPDConfig`]): The config.
        rewarded (`bool`): Whether there is a reward function or an environment.
    """
    if method is not None:
        names = ("method", "method_kwargs", "control", *KNOBS)
        if touched := [name for name in names if getattr(args, name) != type(args).__dataclass_fields__[name].default]:
            raise ValueError(
                f"method={method.name!r} is given to the trainer, so that {', '.join(touched)} of the config have "
                "no effect. Remove it there, and give the recipe its arguments itself."
            )
    method = method or args.build_method()
    refuse_incomplete(method.name, method.signals)
    refuse_truncated_sampling(args, method)
    if not rewarded and (args.reward_coef or "reward_B" in method.needs):
        why = f"reward_coef={args.reward_coef}" if args.reward_coef else f"method={method.name!r}"
        other = "set it to 0" if args.reward_coef else "use a method without rewards"
        raise ValueError(f"{why} has no reward to read. Pass reward_funcs, or {other}.")
    if "group_B" in method.needs and args.num_generations < 2:
        raise ValueError(
            f"method={method.name!r} compares completions of one prompt, and num_generations={args.num_generations}. "
            "Set num_generations to at least 2, for example 8."
        )
    return method
