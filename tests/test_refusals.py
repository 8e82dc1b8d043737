"""Settings that are wrong together are refused, with what to change."""

import pytest
from support.configs import config

from fire_opd_trl import METHODS, FiReOPDConfig
from fire_opd_trl.refusals import WHOLE, chosen_method, refuse_unread_weights


def small_config(**kwargs):
    return FiReOPDConfig("output", use_cpu=True, bf16=False, per_device_train_batch_size=8, **kwargs)


CUTS = [
    ({"top_p": 0.9}, "top_p=0.9 is refused"),
    ({"top_k": 20}, "top_k=20 is refused"),
    ({"min_p": 0.1}, "min_p=0.1 is refused"),
    ({"repetition_penalty": 1.1}, "repetition_penalty=1.1 is refused"),
    ({"generation_kwargs": {"top_p": 0.9}}, r"generation_kwargs\['top_p'\]=0.9 is refused"),
    ({"generation_kwargs": {"presence_penalty": 0.5}}, r"generation_kwargs\['presence_penalty'\]=0.5 is refused"),
    ({"generation_kwargs": {"guidance_scale": 1.5}}, r"generation_kwargs\['guidance_scale'\]=1.5 is refused"),
    ({"vllm_structured_outputs_regex": "[0-9]+"}, "vllm_structured_outputs_regex='.*' is refused"),
]


@pytest.mark.parametrize(("cut", "sentence"), CUTS)
def test_truncated_sampling_is_refused_where_sampled_tokens_are_read(cut, sentence):
    with pytest.raises(
        ValueError, match=sentence + r".*'fire'.*(Leave it at|Remove it).*opd_full.*allow_truncated_sampling=True"
    ):
        chosen_method(None, small_config(**cut), rewarded=False)
    with pytest.warns(UserWarning, match="fire/reverse_kl and eval_loss are estimates .* and are biased"):
        chosen_method(None, small_config(**cut, allow_truncated_sampling=True), rewarded=False)
        chosen_method(None, small_config(**cut, method="opd_full"), rewarded=False)
        chosen_method(METHODS["tip"](), small_config(**cut), rewarded=False)  # the trainer's, not the config's


def test_what_changes_no_distribution_is_not_refused():
    kwargs = {"stop": ["."], "max_tokens": 5, "seed": 1, "top_p": 1.0, "repetition_penalty": 1.0}
    chosen_method(None, small_config(top_k=-1, min_p=0.0, generation_kwargs=kwargs), rewarded=False)


def test_a_second_temperature_is_refused_always():
    with pytest.raises(ValueError, match="Set `temperature`"):
        chosen_method(None, small_config(generation_kwargs={"temperature": 0.7}, allow_truncated_sampling=True), False)


@pytest.mark.parametrize("name", ["n", "logprobs"])
def test_what_the_trainer_itself_counts_on_is_refused_always(name):
    with pytest.raises(ValueError, match=rf"generation_kwargs\['{name}'\]=5 is refused"):
        chosen_method(None, small_config(generation_kwargs={name: 5}, allow_truncated_sampling=True), False)


def test_rewards_that_are_mixed_in_read_sampled_tokens_too():
    with pytest.raises(ValueError, match="top_p=0.9 is refused.*without reward_coef"):
        mixed = small_config(method="opd_full", reward_coef=0.5, num_generations=2, top_p=0.9)
        chosen_method(None, mixed, rewarded=True)


def test_the_methods_over_the_whole_vocabulary():
    assert set(WHOLE) == {"fire_full", "tip", "opd_full"}


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        (
            {"reward_coef": 0.5},
            "reward_coef=0.5 is refused. GRPO's advantage compares .* num_generations to at least 2",
        ),
        (
            {"num_generations": 3, "per_device_train_batch_size": 4},
            "generation_batch_size=4 is refused. .* num_generations=3",
        ),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "steps_per_generation=3 is refused. A window must not be split .* Make steps_per_generation a multiple",
        ),
        ({"teacher_model_revision": "main"}, "teacher_model_revision='main' is refused. .* is not set"),
        ({"method": "opd", "drop_fraction": 0.3}, "drop_fraction=0.3 has no effect on method='opd'"),
        ({"method": "fire_released", "statistics_scope": "teacher"}, "statistics_scope='teacher' has no effect"),
        ({"method_kwargs": {"lambda": 1}}, "'fire' does not take lambda. It takes: drop_fraction, confidence"),
        ({"method_kwargs": [1]}, "method_kwargs=.* is refused. Give a dict"),
        ({"on_sick": "halt"}, "on_sick='halt' is refused. Use one of: warn, stop, ignore"),
        ({"watchdogs": {"truncate": 0.5}}, "There is no watchdog 'truncate'. Did you mean 'truncated'.* There are:"),
        ({"watchdogs": '{"truncated": 40}'}, "truncated=40 is no limit. Give a number from 0 to 1, or null for none"),
        ({"watchdogs": {"weights": True, "kl": None}}, "weights=True is no limit.*\\n.*no watchdog 'kl'"),
        ({"method_kwargs": {"scope": "x"}}, "scope='x' is unknown. Use one of: batch"),
        ({"method": "tip", "method_kwargs": {"keep": 2}}, "keep=2: give a number from .* for example 0.5"),
        ({"method": "exopd", "confidence": 0.5}, "confidence=0.5 has no effect on method='exopd'"),
        ({"method_kwargs": {"drop_fraction": "a"}}, "drop_fraction='a': give a number from 0 .* for example 0.2"),
        ({"method": "eopd", "method_kwargs": {"top_k": 4.5}}, "top_k=4.5: give a whole number from 1 .* example 16"),
        ({"method": "eopd", "method_kwargs": {"top_k": "16"}}, "top_k='16': give a whole number"),
        ({"method": "exopd", "method_kwargs": {"extrapolation": True}}, "extrapolation=True: give a number"),
        (
            {"method": "opdvr", "method_kwargs": {"group": "false"}},
            "group='false' is unknown. Use one of: True, False",
        ),
        ({"method": "tip", "method_kwargs": {"full": 1}}, "full=1 is unknown. Use one of: True, False"),
        ({"drop_fraction": 0.1, "method_kwargs": {"drop_fraction": 0.3}}, "drop_fraction=0.1 is also set in"),
        ({"teacher_model_init_kwargs": 3}, "teacher_model_init_kwargs=3 is refused. Give a dict"),
        ({"sync_ref_model": True}, "sync_ref_model=True is refused. With beta=0 there is no reference model"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported"),
    ],
)
def test_a_wrong_combination_is_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(**kwargs)


def test_a_misspelt_name_is_answered_with_the_one_that_was_meant():
    for field, value, name in (("method", "fier", "fire"), ("teacher_placement", "shared", "sharded")):
        with pytest.raises(
            ValueError, match=rf"{field}='{value}' is refused. Use one of: .*\. Did you mean '{name}'\?"
        ):
            config(**{field: value})
    with pytest.raises(ValueError, match=r"tropd\.$"):
        config(method="sft")


def test_all_wrong_combinations_are_refused_at_once():
    wrong = {"reward_coef": 0.5, "steps_per_generation": 3, "gradient_accumulation_steps": 2, "confidence": 0.5}
    with pytest.raises(ValueError) as error:
        config(**wrong, teacher_prompt_column="prompt", method="opd")
    names = [line.partition("=")[0] for line in str(error.value).splitlines()]
    assert names == ["reward_coef", "steps_per_generation", "teacher_prompt_column", "confidence"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"per_device_train_batch_size": 4}, "of a window of 4 rows drops none"),
        ({"statistics_scope": "trajectory", "drop_fraction": 0.4}, "drop_fraction=0.4 drops nothing"),
        ({"method": "fire_released", "drop_fraction": 0.4}, "drop_fraction=0.4 drops nothing"),
        ({"use_transformers_continuous_batching": True, "bf16": True}, "casts the weights themselves to 16 bits"),
        ({"scale_rewards": False}, "scale_rewards='none' has no effect, because reward_coef=0.0"),
        ({"ref_model_sync_steps": 8}, "ref_model_sync_steps=8 has no effect, because sync_ref_model=False"),
        ({"log_rollouts_megabytes": 9}, "log_rollouts_megabytes=9 has no effect, because log_rollouts=0"),
        (
            {"method": "opd_full", "epsilon": 0.1},
            "epsilon=0.1 has no effect, because method='opd_full' has no",
        ),
    ],
)
def test_what_has_no_effect_or_a_side_effect_warns(kwargs, sentence):
    with pytest.warns(UserWarning, match=sentence):
        FiReOPDConfig("output", **{"use_cpu": True, "bf16": False, **kwargs})


# What a control can make random: which trajectories, or which tokens, and how much they weigh.
ROWS = {"fire", "fire_released", "fire_full", "random", "scope"}


TOKENS = {"fire", "fire_released", "fire_full", "random", "tip", "eopd", "reopold", "iw_opd", "opdvr", "tropd"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("what", ["filter", "tokens", "both"])
def test_a_control_is_there_where_something_can_be_random_and_refused_elsewhere(name, what):
    wanted = {"method": name, "control": what, "num_generations": 2}
    if name in {"filter": ROWS, "tokens": TOKENS, "both": ROWS | TOKENS}[what]:
        method = config(**wanted).build_method()
        assert method.name == f"{name}, random {what}"
        assert method.signals == METHODS[name]().signals and method.needs == METHODS[name]().needs
        assert (method.filter, method.reweight, method.row_weight) != (
            METHODS[name]().filter, METHODS[name]().reweight, METHODS[name]().row_weight)  # fmt: skip
    else:
        with pytest.raises(
            ValueError, match=f"control='{what}' has nothing to randomise: '{name}' .* Leave control at"
        ):
            config(**wanted)


@pytest.mark.parametrize("name", [name for name in METHODS if "group_B" in METHODS[name]().needs])
def test_a_method_that_compares_completions_of_a_prompt_wants_several(name):
    with pytest.raises(ValueError, match=f"num_generations=1 is refused. method='{name}' compares .* for example 8"):
        config(method=name)
    assert config(method=name, num_generations=4).build_method().name == name


# The recipe that is given to the trainer


def test_a_name_given_to_the_trainer_takes_the_configs_arguments():
    args = small_config(drop_fraction=0.4)
    chosen = chosen_method("random", args, rewarded=False)
    assert chosen.name == args.method == "random" and chosen.filter.keywords["filter"].keywords["fraction"] == 0.4
    assert chosen_method("tip", small_config(method="tip"), rewarded=False).name == "tip"  # said twice, alike
    with pytest.raises(ValueError, match="drop_fraction=0.4 has no effect on method='opd'"):
        chosen_method("opd", small_config(drop_fraction=0.4), rewarded=False)
    with pytest.raises(
        ValueError, match="method='opd' is given to the trainer, and method='tip' to the config. Keep one"
    ):
        chosen_method("opd", small_config(method="tip"), rewarded=False)
    with pytest.raises(ValueError, match="method='fier' is unknown. Did you mean 'fire'?"):
        chosen_method("fier", small_config(), rewarded=False)
    with pytest.raises(ValueError, match="is a recipe that was not called"):
        chosen_method(METHODS["fire"], small_config(), rewarded=False)


def test_weights_without_a_reward_function_are_refused():
    refuse_unread_weights(small_config())
    with pytest.raises(ValueError, match=r"reward_weights=\[0.5\] is refused. It weighs reward_funcs.* or remove it"):
        refuse_unread_weights(small_config(reward_weights=[0.5]))
