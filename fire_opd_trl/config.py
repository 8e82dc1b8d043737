"""FiReOPDConfig: GRPO's arguments, plus the method, its knobs and its teachers. Wrong values are refused here."""

import inspect
import json
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers.utils import is_in_notebook, is_torch_bf16_gpu_available, is_torch_xla_available
from trl import GRPOConfig

from .methods import CONTROLS, METHODS, control
from .pipeline import Method
from .refusals import (
    KNOBS,
    YES_OR_NO,
    Rule,
    WrongSettings,
    gathered,
    is_dict_or_json,
    is_text,
    is_text_or_dict,
    leave_at,
    number,
    one_of,
    refusal,
    refuse_lone_completions,
    refuse_unless,
    refuse_wrong_combinations,
    refuse_wrong_limits,
    unset_or,
    warn_of_effects,
    whole_number,
)
from .stages import LOSS_TYPES, SCOPES, WATCHDOGS


PLACEMENTS = ("auto", "sharded", "replicated", "offload")
BALANCES = ("none", "tokens")
PRINTED = ("line", "all", "none")
ON_SICK = ("warn", "stop", "ignore")
# transformers' names for two fields under which GRPOConfig still has its defaults, where they have new names.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
VLLM_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


class _AnyNumber(int):
    """
    Shown to GRPOConfig in place of `num_generations`, of which it wants at least 2 because GRPO's advantage needs a
    group. Distillation does not: this number is at least 2, and divides every window, which is judged here instead.
    """

    def __rmod__(self, window: int) -> int:
        return 0


class Help(str):
    """
    The help of a field, with the rule for its value and what to do about a value that breaks the rule. They travel as
    one object, because [`~transformers.HfArgumentParser`] hands every other key of a field's metadata to argparse,
    which takes no key that it does not know.
    """

    rule: Rule
    fix: str


def described(default: Any, help: str, rule: Rule, fix: str) -> Any:
    """A field of the configuration, with all that there is to say about its value."""
    text = Help(help)
    text.rule, text.fix = rule, fix
    return field(default=default, metadata={"help": text})


def list_arguments(config: type) -> type:
    """Class decorator: append the help of the class's own fields to its docstring."""
    lines = []
    for name in inspect.get_annotations(config):
        own = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
        kind = inspect.formatannotation(own.type)
        lines.append(f"    {name} (`{kind}`, *optional*, defaults to `{own.default!r}`):")
        lines += textwrap.wrap(own.metadata["help"], 119, initial_indent=" " * 8, subsequent_indent=" " * 8)
    config.__doc__ = "\n".join([inspect.getdoc(config) or "", "", "Args:", *lines])
    return config


# The rules for fields that keep GRPO's own default and help.
RULES_OF_GRPO_FIELDS: dict[str, tuple[Rule, str]] = {
    "num_generations_eval": (unset_or(whole_number(1)), "Give a whole number of at least 1, or leave it unset."),
    "num_iterations": (whole_number(1), "Give a whole number of at least 1."),
    "per_device_train_batch_size": (whole_number(1), "Give a whole number of at least 1."),
    "gradient_accumulation_steps": (whole_number(1), "Give a whole number of at least 1."),
    "steps_per_generation": (unset_or(whole_number(1)), "Give a multiple of gradient_accumulation_steps."),
    "generation_batch_size": (
        unset_or(whole_number(1)),
        "Give a multiple of per_device_train_batch_size x processes x gradient_accumulation_steps, or leave it unset.",
    ),
    "max_completion_length": (whole_number(1), "Give a whole number of at least 1."),
    "temperature": (number(1e-6), "Sampling needs a temperature above 0, for example 1.0."),
    "top_p": (number(1e-6, 1), "Give a share in (0, 1]; 1.0 samples the whole distribution."),
    "epsilon": (number(0), "Give a number of at least 0, for example 0.2."),
    "epsilon_high": (unset_or(number(0)), "Give a number of at least 0, or leave it unset to use epsilon."),
    "beta": (number(0), "Give a number of at least 0; 0 needs no reference model."),
    "mask_truncated_completions": YES_OR_NO,
    "scale_rewards": one_of(("group", "batch", "none", True, False)),
    "multi_objective_aggregation": one_of(("sum_then_normalize", "normalize_then_sum")),
    # These would change the objective into one that is not distillation's.
    "importance_sampling_level": leave_at("token", "Distillation has one advantage per token."),
    "top_entropy_quantile": leave_at(1.0, "Tokens are weighted by the method; see `method` and `confusion`."),
    "entropy_coef": leave_at(0.0, "An entropy bonus is not part of the distillation objective."),
    "use_adaptive_entropy": leave_at(False, "An entropy bonus is not part of the distillation objective."),
    "off_policy_mask_threshold": leave_at(None, "Trajectories are selected by the method; see `drop_fraction`."),
    "delta": leave_at(None, "The surrogate is clipped once, by `epsilon` and `epsilon_high`."),
    # Parts of those, which would have no effect.
    **{
        name: leave_at(GRPOConfig.__dataclass_fields__[name].default, f"It belongs to {owner}, which is refused.")
        for owner, names in {
            "loss_type='sapo'": ("sapo_temperature_neg", "sapo_temperature_pos"),
            "loss_type='vespo'": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
            "use_adaptive_entropy": ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        }.items()
        for name in names
    },
}


def rules_of(config: type) -> dict[str, tuple[Rule, str]]:
    """
    The rule for the value of every field that has one, and what to do about any other value. A subclass that declares
    a field anew, with another default or another help, keeps its rule.
    """
    rules: dict[str, tuple[Rule, str]] = {}
    for base in reversed(config.__mro__):
        for name, own in vars(base).get("__dataclass_fields__", {}).items():
            if isinstance(help := own.metadata.get("help"), Help):
                rules[name] = (help.rule, help.fix)
    return {**rules, **RULES_OF_GRPO_FIELDS}


@list_arguments
@dataclass
class FiReOPDConfig(GRPOConfig):
    """
    Configuration of [`FiReOPDTrainer`]: every argument of [`~trl.GRPOConfig`] and those below.

    Example:

    ```python
    >>> from fire_opd_trl import FiReOPDConfig
    >>> args = FiReOPDConfig("output", drop_fraction=0.2, gradient_accumulation_steps=64)
    >>> on_the_cpu = FiReOPDConfig("output", use_cpu=True, bf16=False)
    ```
    """

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS + [
        "method_kwargs",
        "teacher_model_name_or_path",
        "teacher_model_revision",
        "teacher_model_init_kwargs",
        "teacher_deepspeed",
        "teacher_chat_template_kwargs",
        "watchdogs",
    ]

    # The method
    method: str = described(
        "fire",
        f"Distillation recipe, one of: {', '.join(METHODS)}.",
        *one_of(METHODS),
    )
    method_kwargs: dict[str, Any] | str | None = described(
        None,
        "Arguments of the recipe that have no field of their own, as a dict (JSON on the CLI).",
        unset_or(is_dict_or_json),
        "Give a dict (JSON on the CLI).",
    )
    control: str = described(
        "none",
        "Makes choices of the method random, at the same budget, for a baseline: 'filter' drops as many trajectories, "
        "but at random; 'tokens' shuffles the token weights inside each trajectory; 'both' does both; 'none' neither.",
        *one_of(CONTROLS),
    )
    drop_fraction: float = described(
        0.2,
        "Share of the trajectories of a window (one generation batch on all ranks) that the filter drops, "
        "in [0, 1): exactly floor(share * N), those with the lowest mean teacher log-probability. 0 keeps all.",
        number(0, math.nextafter(1, 0)),
        "Give a share in [0, 1), for example 0.2; 0 keeps every row.",
    )
    confidence: float = described(
        1.0,
        "Weight of the teacher's confidence in the token weight (alpha in the paper). 0 switches it off.",
        number(0),
        "Give a number of at least 0; 0 switches it off.",
    )
    confusion: float = described(
        1.0,
        "Weight of the student's confusion in the token weight (beta in the paper). 0 switches it off.",
        number(0),
        "Give a number of at least 0; 0 switches it off.",
    )
    statistics_scope: str = described(
        "batch",
        "Among which trajectories the filter ranks, and over which the entropies are normalised: 'batch' (the window "
        "on all ranks, as in the paper), 'teacher' (those of the same teacher) or 'trajectory' (each one alone).",
        *one_of(SCOPES),
    )

    # The teacher
    teacher_model_name_or_path: dict[str, Any] | str | None = described(
        None,
        "Teacher: a model id on the Hub, a local folder with safetensors weights, or a PEFT adapter of "
        "either kind; 'self' is the student without its adapter. Several teachers are given by name, as a mapping in "
        'YAML or as JSON on the CLI, for example \'{"math": "org/math", "code": "org/code"}\'.',
        unset_or(is_text_or_dict),
        "Give a model id or a local folder, or a dict of them by name.",
    )
    teacher_model_revision: dict[str, Any] | str | None = described(
        None,
        "Revision of the teacher (branch, tag or commit), or one by teacher's name.",
        unset_or(is_text_or_dict),
        "Give a branch, a tag or a commit, or a dict of them by teacher's name.",
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = described(
        None,
        "Arguments of `from_pretrained` for the teacher, or such a dict by teacher's name. `dtype` is "
        "'auto' unless given here; a `quantization_config` quantizes it.",
        unset_or(is_dict_or_json),
        "Give a dict (JSON on the CLI).",
    )
    teacher_placement: str = described(
        "auto",
        "Where teachers are: 'sharded' over ranks with the student's ZeRO-3 or FSDP, 'replicated' in each "
        "process, or 'offload' on the host (with ZeRO-3 partitioned there, else read from its files layer by layer). "
        "'auto' is 'sharded' where the student is sharded, else 'replicated'.",
        *one_of(PLACEMENTS),
    )
    teacher_deepspeed: dict[str, Any] | str | None = described(
        None,
        "DeepSpeed configuration of the teachers (a JSON file). By default it is the student's.",
        unset_or(is_text_or_dict),
        "Give the path of a JSON file, or leave it unset.",
    )
    teacher_chat_template: dict[str, Any] | str | None = described(
        None,
        "Chat template with which the teacher's prompt is rendered: 'own' (its tokenizer's), a .jinja "
        "file, or the text; or one by teacher's name. If unset, the teacher reads the student's prompt tokens.",
        unset_or(is_text_or_dict),
        "Give 'own', a .jinja file or the text of a template.",
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = described(
        None,
        "Variables of the teacher's template in place of chat_template_kwargs, for example "
        "'{\"enable_thinking\": true}'; or such a dict by teacher's name.",
        unset_or(is_dict_or_json),
        "Give a dict (JSON on the CLI).",
    )
    teacher_prompt_column: str = described(
        "teacher_prompt",
        "Dataset column with a prompt for the teacher alone (a worked solution, a hint, a system prompt), "
        "after which it scores the same completion tokens. In rows without one it reads the student's prompt.",
        is_text,
        "Give the name of a dataset column.",
    )
    reference_model_name_or_path: str | None = described(
        None,
        "Reference model of a method that has one (exopd). By default it is the student as it starts.",
        unset_or(is_text),
        "Give a model id or a local folder, or leave it unset.",
    )
    teacher_column: str = described(
        "teacher_id",
        "With several teachers, the dataset column that holds the name of each prompt's teacher.",
        is_text,
        "Give the name of a dataset column.",
    )
    teacher_nonfinite_limit: float = described(
        0.1,
        "A trajectory with a NaN or infinite teacher value is dropped and counted; when more than this "
        "share of a window is affected, training stops and names the prompts.",
        number(0, 1),
        "Give a share in [0, 1], for example 0.1.",
    )
    scoring_token_budget: int = described(
        16384,
        "Padded tokens (rows x longest) in one forward of teacher or student scoring. A row longer than "
        "this is scored alone. Lower it when scoring runs out of memory; raise it where a teacher is sharded or "
        "offloaded, since each forward then brings its weights anew.",
        whole_number(1),
        "Give a whole number of at least 1, for example 16384.",
    )
    offload_teacher_states: bool = described(
        False,
        "Methods that compare whole distributions, or the teacher's top k, hold what the teacher said of each "
        "surviving token from scoring until its update. If true, they hold it in host memory (pinned beside a CUDA "
        "device), and a micro-batch's rows come back when its loss runs. The result is the same to the bit.",
        *YES_OR_NO,
    )

    balance: str = described(
        "tokens",
        "'tokens': in the update the surviving trajectories move between ranks (their ids and per-token "
        "numbers), so that all ranks have equally many tokens. 'none': each rank trains on what it sampled. The "
        "result is the same up to rounding. Windows with images, or with whole distributions of the teacher, are "
        "never moved, because they are large.",
        *one_of(BALANCES),
    )

    # Rewards and data
    reward_coef: float = described(
        0.0,
        "Weight of GRPO's group advantage, added to the distillation advantage. Needs reward functions "
        "and num_generations >= 2. With 0, rewards are only logged.",
        number(0),
        "Give a number of at least 0; 0 only logs rewards.",
    )
    max_prompt_length: int | None = described(
        None,
        "Longest prompt in tokens. By default it is what the models' contexts leave beside "
        "max_completion_length. Prompts are never cut.",
        unset_or(whole_number(1)),
        "Give a whole number of at least 1, or leave it unset.",
    )
    overlong_prompts: str = described(
        "error",
        "What to do with rows whose prompt is longer: 'error' stops and names the first one, 'drop' leaves them out "
        "and counts them.",
        lambda value: value in ("error", "drop"),
        "Use 'error' or 'drop'.",
    )
    preflight: bool = described(
        True,
        "Print before training what was checked, and one prompt as each model sees it.",
        *YES_OR_NO,
    )
    print_metrics: str = described(
        "line",
        "What is printed at every logging step: 'line' is one line for people (step, loss, KL to the teacher, share "
        "of answers kept, their length, tokens a second, time left), 'all' is every metric, 'none' nothing. Trackers "
        "(`report_to`) and the file metrics.jsonl in output_dir get every metric in any case.",
        *one_of(PRINTED),
    )

    log_rollouts: int = described(
        0,
        "Trajectories that are recorded at every logging step, drawn at random over all ranks: each token with its "
        "text, both log-probabilities, both entropies, weight and advantage, as parquet in the folder rollouts of "
        "output_dir. 0 records none.",
        whole_number(0),
        "Give a whole number, for example 16; 0 records none.",
    )
    log_rollouts_megabytes: int = described(
        200,
        "Largest size of that folder. When it is reached, files are deleted evenly over the steps; the first and the "
        "last one stay.",
        whole_number(1),
        "Give a whole number of megabytes of at least 1, for example 200.",
    )

    # How good the student is by now
    accuracy_task: str | None = described(
        None,
        "Problems on which the student is measured while it trains, by the engine that samples for training: a task "
        "of `fire-opd evaluate` (math500, aime24, ...), or a jsonl file whose rows have `problem` and `answer`. "
        "metrics.jsonl and trackers get Avg@n with its standard error. Needs fire-opd-trl[eval].",
        unset_or(is_text),
        "Give the name of a task or a jsonl file, or leave it unset.",
    )
    accuracy_steps: int = described(
        50,
        "With accuracy_task: measure after every so many optimizer steps; also before the first step and after the "
        "last one.",
        whole_number(1),
        "Give a whole number of at least 1, for example 50.",
    )
    accuracy_n: int = described(
        4,
        "With accuracy_task: answers that are sampled to each problem.",
        whole_number(1),
        "Give a whole number of at least 1, for example 4.",
    )
    accuracy_limit: int | None = described(
        None,
        "With accuracy_task: only the first so many problems. By default all of them.",
        unset_or(whole_number(1)),
        "Give a whole number of at least 1, or leave it unset.",
    )
    accuracy_data_dir: str | None = described(
        None,
        "With accuracy_task: folder with the files of the tasks, as `fire-opd evaluate --data_dir` takes it.",
        unset_or(is_text),
        "Give a folder, or leave it unset.",
    )
    accuracy_max_new_tokens: int | None = described(
        None,
        "With accuracy_task: longest of its answers, in tokens. By default max_completion_length.",
        unset_or(whole_number(1)),
        "Give a whole number of at least 1, or leave it unset.",
    )
    keep_best: bool = described(
        True,
        "With accuracy_task: keep the model of the best measurement in the folder best of output_dir. The best of "
        "several noisy numbers looks better than the model is: measure it again, with `fire-opd evaluate`.",
        *YES_OR_NO,
    )

    # What fails in silence
    allow_guessing_teacher: bool = described(
        False,
        "A teacher that gives all tokens about the log-probability of guessing, -ln V, has random or lost "
        "weights, and stops the run. If true, the run goes on (for a smoke test with random weights).",
        *YES_OR_NO,
    )
    sampling_gap_limit: float | None = described(
        0.05,
        "Where the engine that samples reports log-probabilities (vLLM): warn when they differ from those "
        "of training by more than this a token in the mean, or when they lie further to one side than noise of that "
        "size would. If unset, there are only metrics and no warning.",
        unset_or(number(1e-9)),
        "Give a number above 0, for example 0.05, or leave it unset.",
    )
    allow_truncated_sampling: bool = described(
        False,
        "Methods that read the sampled tokens need tokens of the student's whole distribution, so that "
        "top_p, top_k, min_p, penalties and the like are refused. If true, they are allowed, with their bias.",
        *YES_OR_NO,
    )

    # What a run is watched for
    on_sick: str = described(
        "warn",
        "What happens when a watchdog finds the run sick (answers that collapse or are cut, a filter that keeps "
        "loops, a KL that rises, ...): 'warn' says so once, with what to do, and writes it into watchdogs.jsonl in "
        "output_dir; 'stop' also ends training after that step, with a checkpoint unless save_strategy is 'no'; "
        "'ignore' watches nothing. docs/symptoms.md describes each.",
        *one_of(ON_SICK),
    )
    watchdogs: dict[str, Any] | str | None = described(
        None,
        "Other limits of watchdogs by name, as a dict (JSON on the CLI), for example '{\"truncated\": 0.5}' where "
        "half of the answers may be cut; null (None) switches one off. Names and limits: "
        + ", ".join(f"{name} {dog.limit:.2g}" for name, dog in WATCHDOGS.items())
        + ".",
        unset_or(is_dict_or_json),
        "Give a dict of limits by name (JSON on the CLI).",
    )

    # GRPO's own fields whose defaults differ here
    num_generations: int = described(
        1,
        "Completions sampled for each prompt. Distillation needs no group, so that 1 is enough.",
        whole_number(1),
        "Sample a whole number of at least 1 completion per prompt.",
    )
    loss_type: str = described(
        "grpo",
        "What the loss is a mean over: 'grpo' takes it over the tokens of a trajectory, then over the surviving "
        "trajectories (the paper's Eq. 9); 'dapo' takes it over all surviving tokens. Both are exact over ranks and "
        "accumulation.",
        one_of(LOSS_TYPES)[0],
        "Use 'grpo' or 'dapo': TRL's others are no mean over the survivors of an optimizer step.",
    )
    vllm_importance_sampling_mode: str = described(
        "token_truncate",
        "How the ratio between the training and the sampling engine is applied: 'token_truncate' (default), "
        "'token_mask', 'sequence_truncate', 'sequence_mask' (drops long completions).",
        *one_of(VLLM_CORRECTIONS),
    )
    vllm_importance_sampling_clip_max: float | None = described(
        5.0,
        "Upper bound of the ratio between the training and the sampling engine.",
        unset_or(number(1e-6)),
        "Give a number above 0, for example 5.0.",
    )
    use_bias_correction_kl: bool = described(
        False,
        "It is not part of this objective: with `beta` the penalty is the plain k3 estimate.",
        *leave_at(False, "With `beta` the reference penalty is the plain k3 estimate."),
    )
    logging_first_step: bool = described(
        True,
        "Log the first step too, besides every `logging_steps`-th: a step can take minutes.",
        *YES_OR_NO,
    )
    logging_nan_inf_filter: bool = described(
        False,
        "Replace NaN losses by the running mean in logs. It is off, because a NaN must be seen.",
        *YES_OR_NO,
    )

    def __post_init__(self):
        faults = self._replace_wrong_values()
        wrong = {fault.partition("=")[0] for fault in faults}
        together: list[str] = []
        generations, self.num_generations = self.num_generations, _AnyNumber(max(2, self.num_generations))
        generations_eval, self.num_generations_eval = (
            self.num_generations_eval,
            self.num_generations_eval or generations,
        )
        for old, new in RENAMED.items():
            if new in self.__dataclass_fields__ and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))  # else transformers warns of a name that GRPOConfig sets
        if self.disable_tqdm is None and not sys.stderr.isatty() and not is_in_notebook():
            self.disable_tqdm = True  # in a file, each redrawing of a bar is a line more
        try:
            refuse_bf16_without_gpu(self)
            super().__post_init__()
        except ValueError as error:
            raise WrongSettings(*faults, *not_about(wrong, [str(error)])) from None
        self.num_generations, self.num_generations_eval = generations, generations_eval
        with gathered(together):
            refuse_wrong_combinations(self)
        if self.use_vllm:
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report what runs, and where
        with gathered(together):
            refuse_wrong_limits(self)
        with gathered(together):
            refuse_lone_completions(self, self.build_method())
        if faults := [*faults, *not_about(wrong, together)]:
            self._refuse(faults)
        else:
            warn_of_effects(self, takes=set(inspect.signature(METHODS[self.method]).parameters))

    def _replace_wrong_values(self) -> list[str]:
        """
        Returns what is wrong of each field alone. The default takes the place of a wrong value, so that what comes
        after can be looked at too, before all of it is refused.
        """
        faults = []
        if isinstance(self.teacher_chat_template, str) and self.teacher_chat_template.lstrip().startswith('{"'):
            try:
                self.teacher_chat_template = json.loads(self.teacher_chat_template)  # a template begins otherwise
            except ValueError as error:
                faults.append(f"teacher_chat_template={self.teacher_chat_template!r} is not JSON: {error}.")
                self.teacher_chat_template = None
        for name, (rule, fix) in rules_of(type(self)).items():
            if not rule(value := getattr(self, name)):
                faults.append(refusal(name, value, fix))
                setattr(self, name, type(self).__dataclass_fields__[name].default)
        return faults

    def _refuse(self, faults: list[str]) -> None:
        """Raise all that is wrong in one error. The config of a preflight keeps it for the table instead."""
        raise WrongSettings(*faults)

    def build_method(self) -> Method:
        """The recipe with its knobs: the fields that it takes, and `method_kwargs`."""
        recipe = METHODS[self.method]
        takes = inspect.signature(recipe).parameters
        assert not isinstance(self.method_kwargs, str)  # TrainingArguments has parsed the CLI's JSON
        defaults = {f.name: f.default for f in fields(self) if f.name in KNOBS}
        arguments = dict(self.method_kwargs or {})
        if unknown := [name for name in arguments if name not in takes]:
            raise ValueError(
                f"method_kwargs={self.method_kwargs!r}: {self.method!r} does not take {', '.join(unknown)}. It takes: "
                f"{', '.join(takes) or 'nothing'}."
            )
        for knob, name in KNOBS.items():
            value = getattr(self, knob)
            if name in takes:
                if name in arguments and value != defaults[knob]:
                    raise ValueError(f"{knob}={value!r} is also set in method_kwargs. Set it in one place.")
                arguments.setdefault(name, value)
            elif value != defaults[knob]:
                raise ValueError(
                    f"{knob}={value!r} has no effect on method={self.method!r}. Remove it, or use a method that takes "
                    f"it: {', '.join(m for m in METHODS if name in inspect.signature(METHODS[m]).parameters)}."
                )
        try:
            return control(recipe(**arguments), self.control)
        except TypeError as error:
            raise ValueError(f"method_kwargs={self.method_kwargs!r} is refused: {error}.") from error

    def of_teacher(self, name: str, teacher: str, teachers: list[str]) -> Any:
        """A field as one teacher has it: its own where the keys of a dict are names of teachers, else that of all."""
        value = getattr(self, name)
        if not isinstance(value, dict) or not value:
            return value
        dicts = len(teachers) > 1 and all(isinstance(own, dict) for own in value.values())
        always = name == "teacher_chat_template" or name == "teacher_chat_template_kwargs" and dicts
        if not always and not set(value) & set(teachers):
            return value
        strange = ", ".join(str(key) for key in value if key not in teachers)
        fix = f"It goes by teacher's name, and {strange} names none of: {', '.join(teachers)}."
        refuse_unless(not strange, self, name, fix)
        return value.get(teacher)


def not_about(names: set[str], faults: list[str]) -> list[str]:
    """Returns the faults that name none of these fields: they are refused already, and hold their defaults."""
    return [fault for fault in faults if not names & set(re.findall(r"\w+", fault))]


def refuse_bf16_without_gpu(config: FiReOPDConfig) -> None:
    """The config calls this before transformers judges bf16, which is on by default."""
    wanted = not config.fp16 if config.bf16 is None else config.bf16
    if not wanted or config.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available():
        return
    said = "bf16 is not set, which means bf16=True" if config.bf16 is None else f"bf16={config.bf16!r}"
    if torch.cuda.is_available():
        raise ValueError(f"{said}: this GPU does not compute in bfloat16 (NVIDIA: from Ampere on). Set bf16=False.")
    raise ValueError(
        f"{said}, and PyTorch {torch.__version__} finds no GPU that computes in bfloat16. To train on the CPU, set "
        "use_cpu=True and bf16=False. If there is a GPU, install a build of PyTorch for it; "
        "torch.cuda.is_available() says whether it is found."
    )
