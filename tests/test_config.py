"""Defaults of the paper, and every wrong value and combination refused with field, value and what to do."""

import dataclasses
import pickle
import sys
import warnings
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from support.configs import config
from trl import TrlParser

from fire_opd_trl import METHODS, FiReOPDConfig
from fire_opd_trl.config import Help, rules_of
from fire_opd_trl.refusals import WrongSettings


pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_defaults_are_the_papers():
    args = config()
    expected = {
        "method": "fire", "drop_fraction": 0.2, "confidence": 1.0, "confusion": 1.0, "statistics_scope": "batch",
        "learning_rate": 1e-6, "epsilon": 0.2, "temperature": 1.0, "top_p": 1.0, "num_generations": 1, "beta": 0.0,
        "loss_type": "grpo", "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 5.0, "reward_coef": 0.0, "control": "none",
        "trust_remote_code": False, "report_to": [],
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (1, 5), (3, 7), (8, 4)])
def test_one_generation_takes_windows_of_every_size(batch, accumulation):
    args = config(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert (args.num_generations, args.generation_batch_size) == (1, batch * accumulation)
    assert args.num_generations_eval is None


WRONG = {
    "method": ["fires", None, ["fire"]],
    "control": ["random", None, True],
    "method_kwargs": [[1], "top_k=3"],
    "reference_model_name_or_path": [5, ""],
    "drop_fraction": [1.0, -0.1, float("nan"), None, "0.2", True],
    "confidence": [-1.0, float("inf"), None],
    "confusion": [-1.0, float("inf"), None],
    "statistics_scope": ["global", None],
    "teacher_model_name_or_path": [5, ""],
    "teacher_model_revision": [5, ""],
    "teacher_model_init_kwargs": [3, "dtype=auto"],
    "teacher_placement": ["gpu", None],
    "teacher_deepspeed": [3, ""],
    "teacher_chat_template": [3, ""],
    "teacher_chat_template_kwargs": [3, "enable_thinking"],
    "teacher_prompt_column": [None, 3, ""],
    "teacher_column": [None, 3, ""],
    "allow_guessing_teacher": ["yes"],
    "sampling_gap_limit": [0, -0.1, "small"],
    "allow_truncated_sampling": ["yes", 1],
    "preflight": ["yes", None],
    "print_metrics": ["dict", None, True],
    "log_rollouts": [-1, 1.5, True],
    "log_rollouts_megabytes": [0, 1.5, None],
    "accuracy_task": ["", 3],
    "accuracy_steps": [0, 1.5, True, None],
    "accuracy_n": [0, 1.5, True, None],
    "accuracy_limit": [0, 1.5, True],
    "accuracy_data_dir": ["", 3],
    "accuracy_max_new_tokens": [0, 1.5, True],
    "keep_best": [1, "yes", None],
    "on_sick": ["halt", None, True],
    "watchdogs": [[1], "truncated", 0.5],
    "logging_first_step": ["yes", None],
    "teacher_nonfinite_limit": [-0.1, 1.1],
    "scoring_token_budget": [0, 100.5],
    "offload_teacher_states": ["yes", None],
    "balance": ["rows", True],
    "reward_coef": [-1.0, float("inf")],
    "max_prompt_length": [0, "512"],
    "overlong_prompts": ["cut"],
    "num_generations": [0, 1.0, None, True],
    "num_generations_eval": [-1],
    "num_iterations": [0],
    "per_device_train_batch_size": [0],
    "gradient_accumulation_steps": [0],
    "steps_per_generation": [0],
    "generation_batch_size": [0, 8.0],
    "scale_rewards": ["groups", None],
    "multi_objective_aggregation": ["sum", None],
    "max_completion_length": [0, None],
    "loss_type": ["bnpo", "sapo", None],
    "temperature": [0.0, float("inf"), None],
    "top_p": [0.0, 2.0],
    "epsilon": [-0.2],
    "epsilon_high": [-0.2],
    "beta": [-1.0],
    "vllm_importance_sampling_mode": ["tokentruncate"],
    "vllm_importance_sampling_clip_max": [-1],
    "mask_truncated_completions": ["yes"],
    "logging_nan_inf_filter": ["yes", None],
    # Objectives of GRPO that are not ours
    "importance_sampling_level": ["sequence"],
    "top_entropy_quantile": [0.2],
    "entropy_coef": [0.1],
    "use_adaptive_entropy": [True],
    "off_policy_mask_threshold": [0.5],
    "delta": [2.0],
    "use_bias_correction_kl": [True],
    **{name: [0.5] for name in ("sapo_temperature_neg", "sapo_temperature_pos")},
    **{name: [0.5] for name in ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")},
    **{name: [0.5] for name in ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")},
}


RULES = rules_of(FiReOPDConfig)


def test_every_checked_field_has_a_wrong_value_here():
    assert WRONG.keys() == RULES.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_with_field_value_and_fix(name, value):
    with pytest.raises(ValueError) as error:
        config(**{name: value})
    assert str(error.value).startswith(f"{name}={value!r} is refused. {RULES[name][1]}")


def test_all_wrong_values_are_refused_in_one_error_with_a_line_each():
    with pytest.raises(WrongSettings) as error:
        config(drop_fraction=2, method="fires", scoring_token_budget=0, teacher_model_revision="main")
    together = "teacher_model_revision='main' is refused. It names a revision of teacher_model_name_or_path, which is"
    assert [fault.split(". ")[0] for fault in error.value.args[:3]] == [
        "method='fires' is refused", "drop_fraction=2 is refused", "scoring_token_budget=0 is refused"
    ]  # fmt: skip
    assert str(error.value) == "\n".join(error.value.args) and error.value.args[3].startswith(together)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # from another process


def test_nothing_is_said_of_the_default_that_stands_in_for_a_wrong_value():
    """With the default, one completion, reward_coef would be refused too; but nobody has set one completion."""
    with pytest.raises(ValueError) as error:
        config(num_generations=0, reward_coef=0.5)
    assert str(error.value) == f"num_generations=0 is refused. {RULES['num_generations'][1]}"


def test_what_trl_refuses_stands_beside_what_is_refused_here():
    with pytest.raises(
        WrongSettings, match="(?s)drop_fraction=2 is refused.*\n.*auto_find_batch_size is not supported"
    ):
        config(drop_fraction=2, auto_find_batch_size=True)


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("importance_sampling_level", "token"), ("top_entropy_quantile", 1.0), ("entropy_coef", 0.0),
        ("use_adaptive_entropy", False), ("off_policy_mask_threshold", None), ("delta", None),
        ("use_bias_correction_kl", False),
    ],
)  # fmt: skip
def test_an_objective_of_grpo_that_is_not_ours_is_refused_with_the_value_that_leaves_it_off(name, neutral):
    assert getattr(config(), name) == neutral
    with pytest.raises(ValueError, match=f"^{name}=.* is refused. .* Leave it at {neutral!r}"):
        config(**{name: WRONG[name][0]})


@pytest.mark.parametrize("name", METHODS)
def test_the_knobs_reach_the_recipe(name):
    takes_knobs = name.startswith("fire") or name == "random"
    knobs = {"drop_fraction": 0.5, "confidence": 0.0, "confusion": 2.0} if takes_knobs else {}
    args = config(method=name, num_generations=2, per_device_train_batch_size=8, **knobs)
    method = args.build_method()
    assert method.name == name
    if takes_knobs:
        filter = method.filter.keywords.get("filter", method.filter)  # that of a control lies inside
        assert filter.keywords["fraction"] == 0.5
        assert "teacher_entropy_BT" not in method.signals and "student_entropy_BT" in method.signals


def test_every_field_of_ours_has_help_a_rule_and_a_fix_and_the_docstring_lists_it():
    ours = [f for f in dataclasses.fields(FiReOPDConfig) if f.name in vars(FiReOPDConfig)["__annotations__"]]
    assert len(ours) >= 30 and {"method", "drop_fraction", "num_generations"} <= {f.name for f in ours}
    for own in ours:
        text = own.metadata["help"]
        assert isinstance(text, Help) and len(text) > 20 and text.endswith("."), own.name
        assert text.rule(own.default), own.name
        assert len(text.fix) > 10 and text.fix.endswith("."), own.name
        assert RULES[own.name] == (text.rule, text.fix), own.name  # no second rule of the same name replaces it
        assert f"    {own.name} (`" in FiReOPDConfig.__doc__, own.name
    assert all(rule(getattr(config(), name)) for name, (rule, _) in RULES.items())


def test_arguments_of_the_command_line_get_the_same_help():
    shown = {action.dest: action.help for action in TrlParser(FiReOPDConfig)._actions}
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(FiReOPDConfig)}
    assert {name: shown[name] for name in RULES} == {name: helps[name] for name in RULES}


ON_CPU = {"use_cpu": True, "bf16": False}


def test_a_subclass_that_declares_a_field_anew_keeps_its_rule():
    @dataclass
    class Mine(FiReOPDConfig):
        drop_fraction: float = 0.3
        balance: str = field(default="none", metadata={"help": "Where survivors train."})

    assert (Mine("output", **ON_CPU).drop_fraction, Mine("output", **ON_CPU).balance) == (0.3, "none")
    with pytest.raises(ValueError, match="balance='nonsense' is refused"):
        Mine("output", **ON_CPU, balance="nonsense")
    with pytest.raises(ValueError, match="drop_fraction=1.0 is refused. Give a share"):
        Mine("output", **ON_CPU, drop_fraction=1.0)


# The machine, and what transformers has renamed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_config_says_what_to_set():
    with pytest.raises(ValueError, match="bf16 is not set, which means bf16=True.* set use_cpu=True and bf16=False"):
        FiReOPDConfig()
    with pytest.raises(ValueError, match="bf16=True, and PyTorch .* finds no GPU"):
        FiReOPDConfig("output", bf16=True)
    assert FiReOPDConfig("output", bf16=False).bf16 is False  # which is on the CPU, too


def test_no_field_has_a_name_of_which_transformers_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        default, off = config(), config(gradient_checkpointing=False)
        kept = config(gradient_checkpointing_kwargs={"use_reentrant": True})
        renamed = config(activation_checkpointing=False)
    assert default.activation_checkpointing and default.gradient_checkpointing
    assert not off.activation_checkpointing and not off.gradient_checkpointing
    assert kept.activation_checkpointing_kwargs == {"use_reentrant": True}
    assert not renamed.gradient_checkpointing  # the new name wins, as in transformers


def test_a_progress_bar_is_drawn_on_a_terminal_alone(monkeypatch):
    transformers.logging.set_verbosity_warning()  # transformers draws none below; other tests may set it
    assert config().disable_tqdm and not config(disable_tqdm=False).disable_tqdm
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert not config().disable_tqdm
