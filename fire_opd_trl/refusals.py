"""What the configuration may hold: the rules for one value, and what is refused of values that are wrong together."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .methods import METHODS, unknown_method
from .pipeline import Method, refuse_other_than_method
from .spelling import did_you_mean
from .stages import WATCHDOGS, refuse_incomplete


# Fields of the config that a recipe may take, and the name under which it takes them.
KNOBS = {
    "drop_fraction": "drop_fraction",
    "confidence": "confidence",
    "confusion": "confusion",
    "statistics_scope": "scope",
}


# The rules for one value, from which the fields of the config choose

Rule = Callable[[Any], bool]


def number(low: float, high: float = 1e9) -> Rule:
    """The value is a number in `[low, high]`."""
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def whole_number(low: int) -> Rule:
    """The value is a whole number of at least `low`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_text(value: Any) -> bool:
    """The value is a string that is not empty."""
    return isinstance(value, str) and value != ""


def is_text_or_dict(value: Any) -> bool:
    """The value is a string that is not empty, or a dict."""
    return is_text(value) or isinstance(value, dict)


def is_dict_or_json(value: Any) -> bool:
    """The value is a dict, or the text of one, which `TrainingArguments` parses."""
    return isinstance(value, dict) or (isinstance(value, str) and value.startswith("{"))


def unset_or(rule: Rule) -> Rule:
    """The value is `None`, or obeys the rule."""
    return lambda value: value is None or rule(value)


class Choice(str):
    """What to do about a value that is none of some names."""

    names: tuple[str | bool, ...]


def one_of(names: Iterable[str | bool]) -> tuple[Rule, str]:
    """The value is one of the names. Returns this rule, and what to do about any other value."""
    fix = Choice(f"Use one of: {', '.join(map(str, names := tuple(names)))}.")
    fix.names = names
    return lambda value: isinstance(value, str | bool) and value in names, fix


def leave_at(neutral: Any, reason: str) -> tuple[Rule, str]:
    """The value is the neutral one. Returns this rule, and what to do about any other value."""
    return lambda value: value == neutral, f"{reason} Leave it at {neutral!r}."


YES_OR_NO: tuple[Rule, str] = (lambda value: isinstance(value, bool), "Use true or false.")


# What is wrong is gathered, so that one fault does not hide the others


class WrongSettings(ValueError):
    """All that is wrong of some settings, in one error: its `args` are sentences, and its text has a line for each."""

    def __str__(self) -> str:
        return "\n".join(self.args)


def faults_of(error: Exception) -> tuple[str, ...]:
    """Returns what an error says is wrong: one sentence, or those of [`WrongSettings`]."""
    return error.args if isinstance(error, WrongSettings) else (str(error),)


@contextmanager
def gathered(faults: list[str]) -> Iterator[None]:
    """A check runs inside this. What it refuses joins `faults`, and the next check runs all the same."""
    try:
        yield
    except ValueError as error:
        faults += faults_of(error)


# What is wrong together


def refusal(name: str, value: Any, fix: str) -> str:
    """Returns the sentence for a field with a wrong value: its name, its value, and what to change."""
    hint = did_you_mean(str(value), map(str, fix.names)) if isinstance(fix, Choice) else ""
    return f"{name}={value!r} is refused. {fix}{hint}"


def refuse_unless(right: bool, config: Any, name: str, fix: str) -> None:
    """Raise an error that names the field, its value and what to change, unless the value is right."""
    if not right:
        raise ValueError(refusal(name, getattr(config, name), fix))


def refuse_wrong_limits(config: Any) -> None:
    """The config calls this for the limits of watchdogs. It refuses names that none has, and what is no limit."""
    faults = []
    for name, limit in (config.watchdogs or {}).items():
        if name not in WATCHDOGS:
            fix = f"There is no watchdog {name!r}.{did_you_mean(str(name), WATCHDOGS)} There are: "
            faults.append(refusal("watchdogs", config.watchdogs, f"{fix}{', '.join(WATCHDOGS)}."))
        elif not unset_or(number(0, WATCHDOGS[name].largest))(limit):
            fix = (
                f"{name}={limit!r} is no limit. Give a number from 0 to {WATCHDOGS[name].largest:g}, or null for none."
            )
            faults.append(refusal("watchdogs", config.watchdogs, fix))
    if faults:
        raise WrongSettings(*faults)


def refuse_wrong_combinations(config: Any) -> None:
    """The config calls this for fields that are right alone and wrong together. It refuses all of them at once."""
    faults: list[str] = []

    def unless(right: bool, name: str, fix: str) -> None:
        if not right:
            faults.append(refusal(name, getattr(config, name), fix))

    unless(
        config.reward_coef == 0 or config.num_generations >= 2,
        "reward_coef",
        f"GRPO's advantage compares completions of one prompt, and num_generations={config.num_generations}. Set "
        "num_generations to at least 2, or reward_coef=0 to only log rewards.",
    )
    unless(
        config.generation_batch_size % config.num_generations == 0,
        "generation_batch_size",
        f"A window must hold whole prompts, and num_generations={config.num_generations}. Make "
        "per_device_train_batch_size x processes x steps_per_generation a multiple of it.",
    )
    unless(
        config.steps_per_generation % config.gradient_accumulation_steps == 0,
        "steps_per_generation",
        f"A window must not be split inside an optimizer step, and gradient_accumulation_steps="
        f"{config.gradient_accumulation_steps}. Make steps_per_generation a multiple of it.",
    )
    unless(
        config.beta > 0 or not config.sync_ref_model,
        "sync_ref_model",
        "With beta=0 there is no reference model that could follow the student. Set beta, or leave it at False.",
    )
    unless(
        config.teacher_model_revision is None or config.teacher_model_name_or_path is not None,
        "teacher_model_revision",
        "It names a revision of teacher_model_name_or_path, which is not set.",
    )
    columns = ["prompt", config.teacher_column, config.teacher_prompt_column]
    apart = len(set(columns)) == len(columns)
    unless(apart, "teacher_prompt_column", "It must be another column than prompt and teacher_column.")
    teachers = config.teacher_model_name_or_path
    if isinstance(teachers, dict):
        named = bool(teachers) and all(is_text(part) for pair in teachers.items() for part in pair)
        fix = "Give each teacher a name, and a model id or a local folder."
        unless(named, "teacher_model_name_or_path", fix)
        fix = f"With several teachers give a dict with these keys: {', '.join(map(str, teachers))}."
        revision = config.teacher_model_revision
        by_name = revision is None or isinstance(revision, dict) and set(revision) <= set(teachers)
        unless(by_name, "teacher_model_revision", fix)
    if faults:
        raise WrongSettings(*faults)


def refuse_lone_completions(config: Any, method: Method) -> None:
    """A method that compares the completions of a prompt needs several of them."""
    alone = "group_B" in method.needs and config.num_generations < 2
    fix = f"method={method.name!r} compares completions of one prompt. Set it to at least 2, for example 8."
    refuse_unless(not alone, config, "num_generations", fix)


# Fields that are read only where another one is set.
READ_WITH = {
    "scale_rewards": "reward_coef",
    "multi_objective_aggregation": "reward_coef",
    "ref_model_mixup_alpha": "sync_ref_model",
    "ref_model_sync_steps": "sync_ref_model",
    "log_rollouts_megabytes": "log_rollouts",
    "accuracy_steps": "accuracy_task",
    "accuracy_n": "accuracy_task",
    "accuracy_limit": "accuracy_task",
    "accuracy_data_dir": "accuracy_task",
    "accuracy_max_new_tokens": "accuracy_task",
    "keep_best": "accuracy_task",
}
READ_BY_THE_POLICY_GRADIENT = {
    "epsilon", "epsilon_high", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_clip_max",
}  # fmt: skip


def warn_of_effects(config: Any, takes: set[str]) -> None:
    """
    The config calls this to warn of fields that have no effect, or an effect beyond what they say.

    Args:
        takes (`set[str]`): The arguments of the config's recipe.
    """
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
    touched = {name for name, own in type(config).__dataclass_fields__.items() if getattr(config, name) != own.default}
    for name, other in READ_WITH.items():
        if name in touched and not getattr(config, other):
            warnings.warn(
                f"{name}={getattr(config, name)!r} has no effect, because {other}={getattr(config, other)!r}.",
                stacklevel=4,
            )
    if not config.reward_coef and config.build_method().advantage is None:
        for name in sorted(touched & READ_BY_THE_POLICY_GRADIENT):
            warnings.warn(
                f"{name}={getattr(config, name)!r} has no effect, because method={config.method!r} has no policy "
                "gradient.",
                stacklevel=4,
            )
    if config.use_transformers_continuous_batching and (config.bf16 or config.fp16):
        warnings.warn(
            "use_transformers_continuous_batching with bf16 or fp16: TRL casts the weights themselves to 16 bits "
            "before it samples, and they stay so: small updates are lost. Set bf16=False, or sample with vLLM.",
            stacklevel=4,
        )


# Settings of a sampler, with the values that leave the student's distribution as it is.
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
# The other keys of generation_kwargs that are allowed: they say when to stop, or what is computed beside the tokens.
HARMLESS_SAMPLING = {
    "stop", "stop_strings", "stop_token_ids", "eos_token_id", "max_tokens", "max_new_tokens", "max_length", "max_time",
    "pad_token_id", "bos_token_id", "seed", "use_cache", "cache_implementation", "cache_config", "detokenize",
    "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "prefill_chunk_size",
    "disable_compile", "compile_config", "priority",
}  # fmt: skip
# The recipes without a policy gradient: they learn over the whole vocabulary, so that sampled tokens may be biased.
WHOLE = [name for name, recipe in METHODS.items() if recipe().advantage is None]


def refuse_truncated_sampling(config: Any, method: Method) -> None:
    """
    Refuse settings of the sampler under which the sampled tokens do not follow the student's own distribution; warn
    where they are allowed, or where only estimates are biased.
    """
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


def name_method(name: str, args: Any) -> None:
    """The trainer was given the name of a recipe: it becomes the config's, whose other fields are its arguments."""
    if name not in METHODS:
        raise ValueError(unknown_method(name))
    if args.method not in (name, type(args).__dataclass_fields__["method"].default):
        raise ValueError(
            f"method={name!r} is given to the trainer, and method={args.method!r} to the config. Keep one."
        )
    args.method = name


def chosen_method(method: Method | str | None, args: Any, rewarded: bool) -> Method:
    """
    The trainer and the preflight call this for the recipe: the one given to the trainer, or else the config's. It is
    refused if something that it reads will not exist.

    Args:
        method ([`Method`] or `str`, *optional*): A recipe in place of the config's. A name takes the place of the
            config's name, and keeps the config's arguments.
        args ([`FiReOPDConfig`]): The config.
        rewarded (`bool`): Whether there is a reward function or an environment.
    """
    if isinstance(method, str):
        name_method(method, args)
        method = None
    if method is not None:
        refuse_other_than_method(method)
        names = ("method", "method_kwargs", "control", *KNOBS)
        if touched := [name for name in names if getattr(args, name) != type(args).__dataclass_fields__[name].default]:
            raise ValueError(
                f"method={method.name!r} is given to the trainer, so that {', '.join(touched)} of the config have "
                "no effect. Remove it there, and give the recipe its arguments itself."
            )
    method = method or args.build_method()
    refuse_incomplete(method.name, method.signals)
    refuse_truncated_sampling(args, method)
    if not rewarded:
        refuse_missing_rewards(method, args)
    refuse_lone_completions(args, method)
    return method


def refuse_missing_rewards(method: Method, args: Any) -> None:
    """
    Refuse to read rewards where there are none. The trainer calls this again when TRL has made the environments, since
    only then is it known whether they give any.
    """
    if args.reward_coef or "reward_B" in method.needs:
        why = f"reward_coef={args.reward_coef}" if args.reward_coef else f"method={method.name!r}"
        other = "set it to 0" if args.reward_coef else "use a method without rewards"
        raise ValueError(f"{why} has no reward to read. Pass reward_funcs, or {other}.")


def refuse_unread_weights(args: Any) -> None:
    """The trainer and the preflight call this where there are no reward functions, whose weights these would be."""
    fix = "It weighs reward_funcs, and there are none; rewards of an environment count once. Pass them, or remove it."
    refuse_unless(args.reward_weights is None, args, "reward_weights", fix)
