"""Arms and presets: one name for one setting, and the same work for every arm."""

import dataclasses
import json
import re

import pytest

from fire_opd_trl import METHODS, FiReOPDConfig
from fire_opd_trl.demo import task
from fire_opd_trl.evaluation.compare import baselines, embedded, records, runs
from fire_opd_trl.evaluation.compare import command as main
from fire_opd_trl.evaluation.compare.presets import ARMS, BASELINES, PRESETS, selected


def test_a_name_means_one_setting_and_a_setting_has_one_name():
    settings = [json.dumps(arm.trained_with, sort_keys=True) for arm in ARMS.values()]
    assert len(set(settings)) == len(settings)
    for arm in ARMS.values():  # and no other way to say that it is the default
        for field, value in arm.config.items():
            default = {f.name: f.default for f in dataclasses.fields(FiReOPDConfig)}.get(field)
            assert value != default, (arm.name, field)
    files = [records.run_path(main.Path("x"), arm, 0) for arm in ARMS.values()]
    assert len(set(files)) == len(files) and all(re.fullmatch(r"[a-z0-9.=_-]+", file.name) for file in files)


def test_arms_whose_names_have_commas_can_be_named_too():
    wanted = ["opd", "fire: soft rows, hard tokens", "eopd: tau=0.1, random tokens", "fire"]
    assert main.arm_names("opd, fire: soft rows, hard tokens,eopd: tau=0.1, random tokens,fire") == wanted
    assert main.arm_names("opd,nothing") == ["opd", "nothing"]
    for name in ARMS:
        assert main.arm_names(f"{name}, opd") == [name, "opd"]


def test_a_preset_may_be_called_by_its_short_name():
    parse = main.build_parser().parse_args
    assert [parse(["--preset", name]).preset for name in ("table5", "paper-table5", "smoke")] == [
        "paper-table5",
        "paper-table5",
        "smoke",
    ]
    with pytest.raises(SystemExit):
        main.main(["--preset", "table9"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_holds_what_its_arms_are_compared_with(name):
    arms = selected(PRESETS[name])
    names = {arm.name for arm in arms}
    assert len(names) == len(arms)
    for arm in arms:
        assert arm.against in names and ARMS[arm.against].generations in (1, arm.generations)
        assert arm.control is None or ARMS[arm.control].is_control
        if arm.control:  # the same method and arguments, at random
            control = ARMS[arm.control]
            assert control.method in (arm.method, "random") and control.method_kwargs == arm.method_kwargs
            assert control.generations == arm.generations and control.against == arm.against
    if name == "all":
        assert {arm.method for arm in arms} == {*METHODS, *BASELINES}
    missing = {arm.control for arm in arms} - {None} - names
    mild = {"fire_released: random tokens", "iw_opd: random tokens", "scope: random rows"}  # by name only
    costly = {"fire_full: random", "tip: random tokens"}  # hours of a real model: by name only
    assert missing == {"smoke": {"random"}, "all": mild, "real": costly}.get(name, set())


@pytest.mark.parametrize(
    "arm", [arm for arm in ARMS.values() if arm.method not in BASELINES], ids=lambda arm: arm.name
)
def test_the_config_of_an_arm_can_be_built(arm, tmp_path):
    config = runs.fire_config(embedded, arm, str(tmp_path), steps=2, seed=3)
    assert (config.method, config.num_generations, config.seed) == (arm.method, arm.generations, 3)
    assert config.generation_batch_size == embedded.ROWS and not config.shuffle_dataset


def test_every_update_has_as_many_completions_and_groups_take_the_first_prompts():
    one, four = (list(baselines.prompts(embedded, 3, 5, generations)["prompt"]) for generations in (1, 4))
    assert (len(one), len(four)) == (3 * 128, 3 * 32)
    assert [four[:32], four[32:64], four[64:]] == [one[:32], one[128:160], one[256:288]]
    assert one == [task.prompt(*pair) for pair in task.problems("train", 3 * 128, seed=5)]


def test_all_arms_get_a_seed_before_any_gets_the_next_and_groups_get_fewer():
    arms = [ARMS["opd"], ARMS["grpo"]]
    pairs = [(arm.name, seed) for arm, seed in main.plan(arms, seeds=7)]
    assert pairs[:4] == [("opd", 0), ("grpo", 0), ("opd", 1), ("grpo", 1)]
    assert [seed for name, seed in pairs if name == "grpo"] == [0, 1, 2, 3, 4]
    assert [seed for name, seed in pairs if name == "opd"] == list(range(7))
    assert len(main.plan(arms, seeds=3)) == 6 and len(main.plan(arms, seeds=1, reward_seeds=2)) == 3


def test_methods_bring_what_they_are_compared_with():
    assert [arm.name for arm in selected(PRESETS["all"], ["tip"])] == ["opd", "tip", "tip: random tokens"]
    assert [arm.name for arm in selected(PRESETS["all"], ["grpo"])] == ["opd", "opd-n4", "grpo"]
