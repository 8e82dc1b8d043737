"""FiReOPDConfig: GRPO's arguments, plus the method, its knobs and its teachers. Wrong values are refused here."""

import inspect
import json
import os
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from .methods import METHODS, control
from .pipeline import Method
from .refusals import (
    KNOBS,
    NEUTRAL_GRPO_OPTIONS,
    RIGHT_VALUES,
    refuse_unless,
    refuse_wrong_combinations,
    warn_of_effects,
)


class _OnePerPrompt(int):
    """
    Shown to GRPOConfig in place of `num_generations=1`, which it refuses because GRPO's advantage needs a group.
    Distillation does not: this number compares as 2 and divides every window.
    """

    def __rmod__(self, window: int) -> int:
        return 0


@dataclass
class FiReOPDConfig(GRPOConfig):
    """
    Configuration of [`FiReOPDTrainer`]: every argument of [`~trl.GRPOConfig`] and those below.

    Args:
        method (`str`, *optional*, defaults to `"fire"`):
            Recipe, a name in `fire_opd_trl.METHODS`.
        method_kwargs (`dict`, *optional*):
            Further arguments of the recipe.
        control (`str`, *optional*, defaults to `"none"`):
            The random control of the method: its `"filter"`, its `"tokens"`, or `"both"` at random.
        drop_fraction (`float`, *optional*, defaults to `0.2`):
            Share of the window's trajectories, on all ranks, that is dropped.
        confidence (`float`, *optional*, defaults to `1.0`):
            Weight of the teacher's confidence, alpha in the paper.
        confusion (`float`, *optional*, defaults to `1.0`):
            Weight of the student's confusion, beta in the paper.
        statistics_scope (`str`, *optional*, defaults to `"batch"`):
            Where to rank and normalise: `"batch"`, `"teacher"` or `"trajectory"`.
        teacher_model_name_or_path (`str` or `dict`, *optional*):
            Teacher, or teachers by name, if the trainer is not given one.
        teacher_model_revision (`str` or `dict`, *optional*):
            Revision of the teacher.
        teacher_model_init_kwargs (`dict`, *optional*):
            Arguments of `from_pretrained` for the teacher.
        teacher_placement (`str`, *optional*, defaults to `"auto"`):
            Where teachers are: `"auto"`, `"sharded"`, `"replicated"` or `"offload"`.
        teacher_deepspeed (`str` or `dict`, *optional*):
            DeepSpeed configuration of the teachers.
        teacher_chat_template (`str` or `dict`, *optional*):
            Chat template of the teacher's prompt.
        teacher_chat_template_kwargs (`dict`, *optional*):
            Variables of that template.
        teacher_prompt_column (`str`, *optional*, defaults to `"teacher_prompt"`):
            Dataset column with a prompt for the teacher alone.
        reference_model_name_or_path (`str`, *optional*):
            Reference model of the methods that have one, by default the student as it starts.
        teacher_column (`str`, *optional*, defaults to `"teacher_id"`):
            With several teachers, the dataset column that names each prompt's teacher.
        teacher_nonfinite_limit (`float`, *optional*, defaults to `0.1`):
            Stop when a larger share of a window has NaN or infinite teacher values.
        scoring_token_budget (`int`, *optional*, defaults to `16384`):
            Padded tokens in one scoring forward.
        balance (`str`, *optional*, defaults to `"tokens"`):
            How survivors are spread over ranks: `"tokens"` or `"none"`.
        reward_coef (`float`, *optional*, defaults to `0.0`):
            Weight of GRPO's group advantage in the mixed advantage.
        max_prompt_length (`int`, *optional*):
            Longest prompt, in tokens.
        overlong_prompts (`str`, *optional*, defaults to `"error"`):
            What happens to longer ones: `"error"` or `"drop"`.
        preflight (`bool`, *optional*, defaults to `True`):
            Print, before training, what was checked.
        allow_guessing_teacher (`bool`, *optional*, defaults to `False`):
            Train with a teacher that is no better than guessing.
        sampling_gap_limit (`float`, *optional*, defaults to `0.05`):
            Warn when log-probabilities of sampling and training differ by more, in the mean.
        allow_truncated_sampling (`bool`, *optional*, defaults to `False`):
            Sample with `top_p`, `top_k`, `min_p` or penalties although the method reads sampled tokens.

    Example:

    ```python
    >>> from fire_opd_trl import FiReOPDConfig
    >>> args = FiReOPDConfig("output", drop_fraction=0.2, gradient_accumulation_steps=64)
    ```
    """

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS + [
        "method_kwargs",
        "teacher_model_name_or_path",
        "teacher_model_revision",
        "teacher_model_init_kwargs",
        "teacher_deepspeed",
        "teacher_chat_template_kwargs",
    ]

    # The method
    method: str = field(default="fire", metadata={"help": f"Distillation recipe, one of: {', '.join(METHODS)}."})
    method_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of the recipe that have no field of their own, as a dict (JSON on the CLI)."},
    )
    control: str = field(
        default="none",
        metadata={
            "help": "The method's random control at the same budget: 'filter' drops as many trajectories, but at "
            "random; 'tokens' shuffles the token weights inside each trajectory, 'both', or 'none'."
        },
    )
    drop_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Share of the trajectories of a window (one generation batch on all ranks) that the filter drops, "
            "in [0, 1): exactly floor(share * N), those with the lowest mean teacher log-probability. 0 keeps all."
        },
    )
    confidence: float = field(
        default=1.0,
        metadata={"help": "Weight of the teacher's confidence in the token weight (alpha in the paper). 0: off."},
    )
    confusion: float = field(
        default=1.0,
        metadata={"help": "Weight of the student's confusion in the token weight (beta in the paper). 0: off."},
    )
    statistics_scope: str = field(
        default="batch",
        metadata={
            "help": "Among which trajectories the filter ranks and the entropies are normalised: 'batch' (the window "
            "on all ranks, as in the paper), 'teacher' (within each teacher), 'trajectory' (within each one)."
        },
    )

    # The teacher
    teacher_model_name_or_path: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Teacher: a model id on the Hub, a local folder with safetensors weights, or a PEFT adapter of "
            "either kind; 'self' is the student without its adapter. Several teachers by name: a mapping in YAML, "
            'JSON on the CLI, for example \'{"math": "org/math", "code": "org/code"}\'.'
        },
    )
    teacher_model_revision: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Revision of the teacher (branch, tag or commit), or one by teacher's name."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of `from_pretrained` for the teacher, or such a dict by teacher's name. `dtype` is "
            "'auto' unless given here; a `quantization_config` quantizes it."
        },
    )
    teacher_placement: str = field(
        default="auto",
        metadata={
            "help": "Where teachers are: 'sharded' over ranks with the student's ZeRO-3 or FSDP, 'replicated' in each "
            "process, 'offload' on the host (ZeRO-3: partitioned there; else read from its files layer by layer). "
            "'auto' is sharded where the student is, else replicated."
        },
    )
    teacher_deepspeed: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "DeepSpeed configuration of the teachers (JSON file); by default the student's."},
    )
    teacher_chat_template: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Chat template with which the teacher's prompt is rendered: 'own' (its tokenizer's), a .jinja "
            "file, or the text; or one by teacher's name. Unset: the teacher reads the student's prompt tokens."
        },
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Variables of the teacher's template in place of chat_template_kwargs, for example "
            "'{\"enable_thinking\": true}'; or such a dict by teacher's name."
        },
    )
    teacher_prompt_column: str = field(
        default="teacher_prompt",
        metadata={
            "help": "Dataset column with a prompt for the teacher alone (a worked solution, a hint, a system prompt), "
            "after which it scores the student's very tokens. Rows without one: the student's prompt."
        },
    )
    reference_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Reference model of a method that has one (exopd). By default the student as it starts."},
    )
    teacher_column: str = field(
        default="teacher_id",
        metadata={"help": "With several teachers, the dataset column that holds the name of each prompt's teacher."},
    )
    teacher_nonfinite_limit: float = field(
        default=0.1,
        metadata={
            "help": "A trajectory with a NaN or infinite teacher value is dropped and counted; when more than this "
            "share of a window is affected, training stops and names the prompts."
        },
    )
    scoring_token_budget: int = field(
        default=16384,
        metadata={
            "help": "Padded tokens (rows x longest) in one forward of teacher or student scoring. A row longer than "
            "this is scored alone. Lower it when scoring runs out of memory."
        },
    )

    balance: str = field(
        default="tokens",
        metadata={
            "help": "'tokens': in the update the surviving trajectories move between ranks (their ids and per-token "
            "numbers), so that all ranks have equally many tokens. 'none': each rank trains on what it sampled. The "
            "result is the same up to rounding. What is large stays: images, and whole distributions of the teacher."
        },
    )

    # Rewards and data
    reward_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of GRPO's group advantage, added to the distillation advantage. Needs reward functions "
            "and num_generations >= 2. 0: rewards are only logged."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt in tokens. By default what the models' contexts leave beside "
            "max_completion_length. Prompts are never cut."
        },
    )
    overlong_prompts: str = field(
        default="error",
        metadata={
            "help": "Rows with a longer prompt: 'error' names the first one, 'drop' leaves them out and counts."
        },
    )
    preflight: bool = field(
        default=True,
        metadata={"help": "Print before training what was checked, and one prompt as each model sees it."},
    )

    # What fails in silence
    allow_guessing_teacher: bool = field(
        default=False,
        metadata={
            "help": "A teacher that gives all tokens about the log-probability of guessing, -ln V, has random or lost "
            "weights, and stops the run. On: train with it all the same (a smoke test with random weights)."
        },
    )
    sampling_gap_limit: float | None = field(
        default=0.05,
        metadata={
            "help": "Where the engine that samples reports log-probabilities (vLLM): warn when they differ from those "
            "of training by more than this a token in the mean, or are one-sidedly further apart than noise of that "
            "size. Unset: no warning, only metrics."
        },
    )
    allow_truncated_sampling: bool = field(
        default=False,
        metadata={
            "help": "Methods that read the sampled tokens need tokens of the student's whole distribution, so that "
            "top_p, top_k, min_p, penalties and the like are refused. On: train with that bias."
        },
    )

    # GRPO's own fields whose defaults differ here
    num_generations: int = field(
        default=1, metadata={"help": "Completions sampled for each prompt. Distillation needs no group: 1 is enough."}
    )
    loss_type: str = field(
        default="grpo",
        metadata={
            "help": "Mean over what: 'grpo', over the tokens of a trajectory, then over the surviving trajectories "
            "(the paper's Eq. 9); 'dapo', over all surviving tokens. Both exact over ranks and accumulation."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "How the ratio between training and sampling engine is applied: 'token_truncate' (default), "
            "'token_mask', 'sequence_truncate', 'sequence_mask' (drops long completions)."
        },
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=5.0, metadata={"help": "Upper bound of that ratio."}
    )
    use_bias_correction_kl: bool = field(
        default=False,
        metadata={"help": "Not part of this objective: with `beta` the penalty is the plain k3 estimate."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Replace NaN losses by the running mean in logs. Off: a NaN must be seen."}
    )

    def __post_init__(self):
        if isinstance(self.teacher_chat_template, str) and self.teacher_chat_template.lstrip().startswith('{"'):
            try:
                self.teacher_chat_template = json.loads(self.teacher_chat_template)  # a template begins otherwise
            except ValueError as error:
                raise ValueError(f"teacher_chat_template is not JSON: {error}.") from error
        for name, (right, fix) in RIGHT_VALUES.items():
            refuse_unless(right(getattr(self, name)), self, name, fix)
        generations, self.num_generations = self.num_generations, _shown_to_grpo(self.num_generations)
        generations_eval, self.num_generations_eval = (
            self.num_generations_eval,
            self.num_generations_eval or generations,
        )
        super().__post_init__()
        self.num_generations, self.num_generations_eval = generations, generations_eval
        for name, (neutral, reason) in NEUTRAL_GRPO_OPTIONS.items():
            refuse_unless(getattr(self, name) == neutral, self, name, f"{reason} Leave it at {neutral!r}.")
        for name in ("teacher_model_init_kwargs", "teacher_chat_template_kwargs", "method_kwargs"):
            refuse_unless(isinstance(getattr(self, name), dict | None), self, name, "Give a dict (JSON on the CLI).")
        refuse_wrong_combinations(self)
        if self.use_vllm:
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report what runs, and where
        group = f"method={self.method!r} compares completions of one prompt. Set it to at least 2, for example 8."
        alone = "group_B" in self.build_method().needs and self.num_generations < 2
        refuse_unless(not alone, self, "num_generations", group)
        warn_of_effects(self, takes=set(inspect.signature(METHODS[self.method]).parameters))

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


def _shown_to_grpo(generations: int) -> int:
    return _OnePerPrompt(2) if generations == 1 else generations
