"""A run as a plan sees it, from the arguments of a training."""

import json

import pytest
from peft import LoraConfig
from support.inspections import STUDENT, TEACHER, settings
from transformers import AutoConfig, BitsAndBytesConfig

from fire_opd_trl.preflight.packaged import accelerate_configs
from fire_opd_trl.preflight.plan.run import PlannedRun, read_accelerate, run_of_arguments, weight_bits
from fire_opd_trl.preflight.plan.shapes import config_for, shape_of


ZERO3 = read_accelerate(accelerate_configs()["zero3"])
ONE = read_accelerate(accelerate_configs()["cpu"])


def planned(accelerate=ONE, peft_config=None, said=None, **config) -> PlannedRun:
    args = settings(**{"teacher_model_name_or_path": TEACHER, **config})
    parts = {"model": STUDENT, "args": args, "peft_config": peft_config, "quantization_config": None}
    return run_of_arguments(parts, accelerate, **(said or {}))


def test_one_machine_has_room_for_eight_and_several_share_them_evenly():
    assert planned(said={"gpus": 8}).gpus_per_node == 8
    assert planned(read_accelerate(accelerate_configs()["multinode_zero3"])).gpus_per_node == 8


def test_configurations_of_accelerate():
    assert {name: ZERO3[name] for name in ("gpus", "gpus_per_node", "device", "sharding", "mixed_precision")} == {
        "gpus": 8, "gpus_per_node": 8, "device": "cuda", "sharding": "zero3", "mixed_precision": "bf16"
    }  # fmt: skip
    assert (
        not ZERO3["offload_optimizer"] and read_accelerate(accelerate_configs()["zero3_offload"])["offload_parameters"]
    )
    assert read_accelerate(accelerate_configs()["zero2"])["sharding"] == "zero2"
    assert read_accelerate(accelerate_configs()["fsdp2"])["sharding"] == "fsdp2"
    assert (ONE["sharding"], ONE["device"], ONE["gpus"]) == ("none", "cpu", 1)
    assert read_accelerate(None)["sharding"] == "none"


def test_deepspeeds_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # accelerate looks for it in the working directory
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}')
    (tmp_path / "acc.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 16\nnum_machines: 2\n"
        "deepspeed_config: {deepspeed_config_file: ds.json}\n"
    )
    said = read_accelerate(tmp_path / "acc.yaml")
    assert (said["sharding"], said["gpus"], said["gpus_per_node"]) == ("zero3", 16, 8)
    run = planned(said)
    assert run.reduce_bucket == run.student.hidden**2  # what transformers sets for "auto"
    assert run.prefetch_bucket == 50_000_000 and planned(ZERO3).reduce_bucket == 500_000_000  # DeepSpeed's defaults


@pytest.mark.parametrize(
    ("section", "own", "stage", "on_host"),
    [
        ({}, None, 2, False),  # accelerate.utils.DeepSpeedPlugin takes 2 where nothing is said
        ({"zero_stage": 0}, None, 0, False),
        ({"zero_stage": 1, "offload_optimizer_device": "cpu"}, None, 1, True),
        ({}, {}, 0, False),  # and DeepSpeed 0 in a file of its own
        ({}, {"stage": "auto", "offload_optimizer": {"device": "auto"}}, 2, False),
        ({}, {"stage": 3, "offload_optimizer": {"device": "cpu"}}, 3, True),
    ],
)
def test_the_stage_is_the_one_that_accelerate_takes(tmp_path, section, own, stage, on_host):
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin, patch_environment

    if own is not None:
        (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": own}))
        section = {**section, "deepspeed_config_file": str(tmp_path / "ds.json")}
    (tmp_path / "acc.yaml").write_text(json.dumps({"distributed_type": "DEEPSPEED", "deepspeed_config": section}))
    said = read_accelerate(tmp_path / "acc.yaml")
    assert (said["zero"]["stage"], said["offload_optimizer"]) == (stage, on_host)
    assert said["sharding"] == (f"zero{stage}" if stage else "none")
    # As `accelerate launch` hands it to the ranks: by variables of the environment.
    told = {f"accelerate_deepspeed_{name.removeprefix('deepspeed_')}": value for name, value in section.items()}
    with patch_environment(**told):
        zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    assert zero.get("stage", 0) == stage and (zero.get("offload_optimizer", {}).get("device") == "cpu") == on_host


def test_precisions():
    assert (planned().student_bits, planned().compute_bytes, planned().autocast) == (32, 4, False)
    sharded = planned(ZERO3)  # DeepSpeed casts the module to bf16 and computes in it
    assert (sharded.student_bits, sharded.compute_bytes, sharded.autocast) == (16, 2, False)
    on_one = planned({**ONE, "mixed_precision": "bf16"})
    assert (on_one.student_bits, on_one.compute_bytes, on_one.autocast) == (32, 2, True)
    fsdp = planned(read_accelerate(accelerate_configs()["fsdp2"]))
    assert (fsdp.student_bits, fsdp.autocast) == (32, True)
    config = AutoConfig.from_pretrained(TEACHER)
    eight = shape_of(config_for("Qwen/Qwen3-8B"), "Qwen/Qwen3-8B")
    assert weight_bits(config, "bfloat16", None, eight) == 16
    # 8.19e9 parameters, of which embeddings and head are 2 x 151 936 x 4096 = 1.245e9: those have 2 bytes.
    for bits, said in ((4.5, {"load_in_4bit": True}), (8, {"load_in_8bit": True})):
        for given in (said, BitsAndBytesConfig(**said)):
            packed = weight_bits(config, "auto", given, eight) / 8 * eight.parameters
            assert packed == pytest.approx((8.191e9 - 1.245e9) * bits / 8 + 1.245e9 * 2, rel=1e-3)
    # GPTQ: groups of 128 weights share a scale of 16 bits and a zero as wide as a weight.
    gptq = {"quant_method": "gptq", "bits": 8, "group_size": 128}
    packed = weight_bits(config, "auto", gptq, eight) / 8 * eight.parameters
    assert packed == pytest.approx((8.191e9 - 1.245e9) * (8 + 24 / 128) / 8 + 1.245e9 * 2, rel=1e-3)
    with pytest.raises(ValueError, match="how many bits a weight has with quantization 'torchao' is not known"):
        weight_bits(config, "auto", {"quant_method": "torchao"}, eight)


def test_bitsandbytes_leaves_the_experts_of_a_mixture_in_16_bits():
    name = "Qwen/Qwen3-30B-A3B"
    mixture = shape_of(config_for(name), name)
    # 48 layers of queries and output of 2048 x 4096, keys and values of 2048 x 512 are linear layers.
    linear = 48 * (2 * 2048 * 4096 + 2 * 2048 * 512)
    assert mixture.in_linear == linear
    packed = weight_bits(config_for(name), "auto", {"load_in_4bit": True}, mixture) / 8 * mixture.parameters
    assert packed == pytest.approx(2 * mixture.parameters - linear * (16 - 4.5) / 8)


def test_teachers_and_references():
    assert planned(ZERO3).teachers["teacher"].placement == "sharded"
    assert planned().teachers["teacher"].placement == "replicated"
    assert planned(teacher_placement="offload").teachers["teacher"].placement == "offload"
    two = planned(teacher_model_name_or_path={"a": TEACHER, "b": "Qwen/Qwen3-4B"})
    assert [teacher.shape.layers for teacher in two.teachers.values()] == [two.teachers["a"].shape.layers, 36]
    assert planned().reference is None and planned(beta=0.1).reference.shape == planned().student


def test_eager_attention():
    assert not planned().eager and not planned(model_init_kwargs={"attn_implementation": "sdpa"}).eager
    assert planned(model_init_kwargs={"attn_implementation": "eager"}).eager


def test_methods():
    assert not planned().divergence and planned().drop_fraction == 0
    assert planned(method="fire", drop_fraction=0.3).drop_fraction == 0.3
    whole = planned(method="opd_full")
    assert whole.whole_distributions and whole.divergence
    assert planned(method="eopd", method_kwargs={"top_k": 8}).top_k == 8


def test_adapters_are_counted():
    run = planned(peft_config=LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM"))
    # a matrix of 2 x (inside) and one of (width) x 2 in each layer
    assert run.adapter == run.student.layers * 2 * (run.student.intermediate + run.student.hidden)
    assert (
        planned(peft_config=LoraConfig(), teacher_model_name_or_path="self").teachers["teacher"].placement == "student"
    )


def test_a_column_that_someone_has_named_has_the_teachers_prompts():
    assert planned(teacher_prompt_column="hint").teacher_prompts and not planned().teacher_prompts


def test_what_no_configuration_says_is_assumed_and_named():
    assumed = {item.name: (item.value, item.option) for item in planned(max_completion_length=400).assumed}
    assert assumed == {
        "longest prompt": (1024, "--longest_prompt"), "mean prompt": (256, "--mean_prompt"),
        "mean completion": (100, "--mean_completion"),
    }  # fmt: skip
    said = planned(said={"prompts": (30.0, 70), "mean_completion": 11})
    assert said.assumed == () and (said.prompt_mean, said.prompt_longest, said.completion_mean) == (30, 70, 11)
    assert planned(max_prompt_length=77).prompt_longest == 77


def test_a_server_has_a_share_and_engines_of_its_own():
    # vllm_gpu_memory_utilization and vllm_tensor_parallel_size are of colocation; vLLM's own defaults are 0.9 and 1
    settings_of_colocation = {"vllm_gpu_memory_utilization": 0.3, "vllm_tensor_parallel_size": 4}
    served = {"use_vllm": True, "vllm_mode": "server", **settings_of_colocation}
    run = planned(**served)
    assert (run.engine.memory, run.engine.tensor_parallel, run.engine.gpus) == (0.9, 1, 1)
    assert {"--engine_fraction", "--engine_tensor_parallel", "--engine_gpus"} <= {a.option for a in run.assumed}
    said = planned(said={"engine_gpus": 4, "engine_tensor_parallel": 2, "engine_fraction": 0.8}, **served).engine
    assert (said.memory, said.tensor_parallel, said.gpus) == (0.8, 2, 4)
    beside = planned(use_vllm=True, vllm_mode="colocate", **settings_of_colocation).engine
    assert (beside.memory, beside.tensor_parallel, beside.gpus) == (0.3, 4, 0)
