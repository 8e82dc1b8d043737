"""The DeepSpeed configuration of teachers."""

import re

import pytest
from support.inspections import (
    TEACHER,
    fault,
    looked,
    settings,
)
from support.layouts import layout
from support.worker import built

from fire_opd_trl.teachers.placement import choose_placement
from fire_opd_trl.teachers.sources import Source


def test_a_deepspeed_file_must_be_readable(tmp_path):
    for path, content in ((tmp_path / "gone.json", None), (tmp_path / "torn.json", "{")):
        if content:
            path.write_text(content)
        message = fault(looked(teacher_deepspeed=str(path)))
        assert message.startswith(f"teacher_deepspeed={str(path)!r} is not a JSON file that can be read: ")


@pytest.mark.parametrize(
    ("stage", "placement", "engine"),
    [
        (3, "replicated", "ZeRO-3"), (0, "sharded", "ZeRO-3"),
        (0, "offload", "ZeRO-3"), (3, "offload", "DeepSpeed"),
    ],
)  # fmt: skip
def test_a_deepspeed_stage_must_fit_the_placement(stage, placement, engine):
    args = settings(teacher_placement=placement, teacher_deepspeed={"zero_optimization": {"stage": stage}})
    message = (
        f"teacher_deepspeed is of ZeRO stage {stage}, which does not fit teacher_placement={placement!r}. Sharded and "
        "offloaded teachers want stage 3, replicas stage 0."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_placement(args, Source("teacher", TEACHER), engine)


@pytest.mark.parametrize("stage", [2, "3", None])
def test_a_frozen_teacher_is_partitioned_or_whole(stage):
    args = settings(teacher_deepspeed={"zero_optimization": {"stage": stage}})
    with pytest.raises(
        ValueError, match=f"teacher_deepspeed has the ZeRO stage {stage!r}. .* partitioned .3. or whole"
    ):
        choose_placement(args, Source("teacher", TEACHER), "ZeRO-3")


def test_a_deepspeed_file_wants_a_run_under_deepspeed():
    assert fault(looked(teacher_deepspeed={"zero_optimization": {"stage": 0}})) == (
        "teacher_deepspeed is set, and this run is not one of DeepSpeed's. Launch it with a DeepSpeed configuration "
        "(configs/accelerate/zero3.yaml), or remove teacher_deepspeed."
    )


def test_a_teacher_with_a_deepspeed_file_wants_a_run_under_deepspeed(tmp_path):
    case = {"method": "fire", "config": {"teacher_deepspeed": {"zero_optimization": {"stage": 0}}}}
    with pytest.raises(ValueError, match="teacher_deepspeed is set, and this run is not one of DeepSpeed's"):
        built(layout(32, 1, case), str(tmp_path))


def test_every_kind_of_mixture_is_gathered_whole():
    """DeepSpeed itself knows three kinds by name."""
    deepspeed = pytest.importorskip("deepspeed")
    from transformers import OlmoeConfig, OlmoeForCausalLM

    from fire_opd_trl.teachers.deepspeed import keep_mixtures_whole

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_experts": 4, "vocab_size": 16}
    model = OlmoeForCausalLM(OlmoeConfig(**small, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0))
    keep_mixtures_whole(model)
    leaves = {name for name, module in model.named_modules() if deepspeed.utils.z3_leaf_module(module)}
    assert leaves == {"model.layers.0.mlp", "model.layers.1.mlp"}
