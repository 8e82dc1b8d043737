"""Memory of runs, with every number derived by hand."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fire_opd_trl.preflight.plan.memory import PHASES, memory, peak, reduces, resident, saved, updated_tokens
from fire_opd_trl.preflight.plan.run import Engine, Placed, PlannedRun
from fire_opd_trl.preflight.plan.shapes import ModelShape, config_for, shape_of


SHAPE = ModelShape(
    name="by hand", parameters=1000, active=1000, embedding=70, head=70, tied=False, layers=2, hidden=10, heads=2,
    kv_heads=1, head_dim=5, intermediate=30, vocabulary=7, experts=0, experts_per_token=0, expert_intermediate=0,
    largest_layer=430, largest_parameter=300, in_linear=840, context=100, normed_heads=True,
)  # fmt: skip
TEACHER = replace(SHAPE, parameters=3000)
BF16 = {"student_bits": 16, "autocast": False}


def stays(**fields) -> dict[str, float]:
    return {name: size for name, size in resident(PlannedRun(SHAPE, {}, **fields)).items() if size}


def test_what_stays_of_a_student():
    # float32 weights and two moments of 4 bytes each
    assert stays() == {"student's weights": 4000, "optimizer": 8000}
    # DeepSpeed in bf16: 2 bytes of weights; copies in float32 and moments, 12 bytes, on 8 ranks
    assert stays(gpus=8, sharding="zero1", **BF16) == {
        "student's weights": 2000, "master weights": 500, "optimizer": 1000
    }  # fmt: skip
    # ZeRO-3: 2 + 2 + 4 + 8 = 16 bytes on 8 ranks, and a bucket of 64 gradients of 2 bytes
    sharded = stays(gpus=8, sharding="zero3", reduce_bucket=64, **BF16)
    assert sharded.pop("reduce bucket") == 128
    assert sum(sharded.values()) == 16 * 1000 / 8
    offloaded = stays(gpus=8, sharding="zero3", offload_optimizer=True, offload_parameters=True, **BF16)
    assert offloaded == {}
    # ZeRO-3 in float32: 4 + 4 + 4 + 8 bytes, since DeepSpeed steps copies of weights that have 32 bits already
    assert sum(stays(gpus=8, sharding="zero3", reduce_bucket=0).values()) == 20 * 1000 / 8
    # FSDP 2 keeps what is trained in float32
    assert stays(gpus=8, sharding="fsdp2") == {"student's weights": 500, "optimizer": 1000}
    # LoRA: a base in 4 bits with scales, and 50 parameters in float32 with moments
    assert stays(student_bits=4.5, adapter=50) == {"student's weights": 562.5, "adapter": 200, "optimizer": 400}


@pytest.mark.parametrize(
    ("placement", "bits", "expected"),
    [
        ("replicated", 16, 6000),
        ("sharded", 16, 750),
        ("replicated", 4.5, 1687.5),
        ("student", 16, 0),
        ("offload", 16, 0),  # with ZeRO-3 its parts are on the host
    ],
)
def test_what_stays_of_a_teacher(placement, bits, expected):
    run = PlannedRun(SHAPE, {"teacher": Placed(TEACHER, bits, placement)}, gpus=8, sharding="zero3")
    assert resident(run)["teacher"] == expected


def test_a_student_that_is_its_own_teacher_is_gathered_as_when_it_scores():
    run = PlannedRun(SHAPE, {"teacher": Placed(SHAPE, 16, "student")}, gpus=8, sharding="zero3", **BF16)
    found = memory(run)
    assert found["teacher scoring"]["gathered weights"] == found["student scoring"]["gathered weights"] > 0
    whole = memory(replace(run, gpus=1, sharding="none"))
    assert "gathered weights" not in whole["teacher scoring"]


def test_a_streamed_teacher_has_embeddings_and_head_on_the_device():
    run = PlannedRun(SHAPE, {"teacher": Placed(TEACHER, 16, "offload")})
    assert resident(run)["teacher"] == 2 * 140
    assert memory(run)["teacher scoring"]["gathered weights"] == 2 * 430  # one layer


def test_an_engine_that_sleeps_is_there_in_the_rollout_alone():
    run = PlannedRun(SHAPE, {}, engine=Engine("colocate", memory=0.3, tensor_parallel=2))
    assert memory(run, 100_000)["update"]["engine's weights"] == 1000  # 2 bytes on 2 GPUs
    assert memory(run, 100_000)["update"]["engine's cache"] == pytest.approx(30_000 - 1000)
    asleep = memory(replace(run, engine=replace(run.engine, sleeps=True)), 100_000)
    assert [phase for phase in PHASES if "engine's cache" in asleep[phase]] == ["rollout"]
    assert "engine's cache" not in memory(replace(run, engine=Engine("server", gpus=8)), 100_000)["rollout"]


def test_a_partitioned_student_is_gathered_for_its_engine():
    run = PlannedRun(SHAPE, {}, gpus=8, sharding="zero3", engine=Engine("colocate", memory=0.3), **BF16)
    assert memory(run, 10_000)["rollout"]["gathered weights"] == 2 * 300  # one parameter at a time
    adapted = memory(replace(run, adapter=50), 10_000)["rollout"]
    assert adapted["gathered weights"] == 2 * 1000  # whole, to merge the adapter
    # An engine that slept has no cache of 3000 - 2000 bytes yet. It is the larger moment of the first run, not of the
    # second.
    asleep = replace(run, engine=replace(run.engine, sleeps=True))
    assert "gathered weights" not in memory(asleep, 10_000)["rollout"]
    adapted = memory(replace(asleep, adapter=50), 10_000)["rollout"]
    assert adapted["gathered weights"] == 2000 and "engine's cache" not in adapted


def test_rows_of_a_window():
    # 4 rows of at most 100 tokens; the longest row decides where the mean is short
    run = PlannedRun(SHAPE, {}, rows=4, accumulation=8, steps_per_generation=8, prompt_longest=20, prompt_mean=10,
                     completion_longest=80, completion_mean=10)  # fmt: skip
    assert updated_tokens(run) == 100  # 1.1 x 4 x 20 = 88 tokens are less than the longest row
    assert updated_tokens(replace(run, completion_mean=40)) == pytest.approx(220)  # 1.1 x 4 x 50
    assert updated_tokens(replace(run, accumulation=1, steps_per_generation=1)) == 400


def test_states_of_teachers_wait_for_the_update():
    run = PlannedRun(SHAPE, {"teacher": Placed(TEACHER)}, rows=2, accumulation=4, steps_per_generation=4,
                     completion_mean=50, whole_distributions=True, divergence=True)  # fmt: skip
    # 8 rows of 50 tokens with 10 hidden numbers of 2 bytes; a top k of 16 has 8 bytes each
    assert memory(run)["update"]["teacher's states"] == 8 * 50 * 10 * 2
    top_k = replace(run, whole_distributions=False, top_k=16)
    assert memory(top_k)["update"]["teacher's states"] == 8 * 50 * 16 * 8
    assert "teacher's states" not in memory(replace(run, offload_teacher_states=True))["update"]


def test_the_cache_of_a_generation():
    run = PlannedRun(SHAPE, {}, rows=3, steps_per_generation=2, prompt_longest=20, completion_longest=80)
    # 6 rows x 100 tokens x 2 layers x (keys and values of one head of 5) x 2 bytes, and one layer again
    assert memory(run)["rollout"]["cache of keys and values"] == pytest.approx(6 * 100 * 2 * 10 * 2 * 1.5)


def test_eager_attention_has_the_scores_of_all_pairs_of_tokens():
    run = PlannedRun(SHAPE, {"teacher": Placed(TEACHER)}, rows=1, accumulation=4, steps_per_generation=4,
                     prompt_longest=20, completion_longest=80, scoring_token_budget=100)  # fmt: skip
    more = {
        phase: parts["activations"] - memory(run)[phase]["activations"]
        for phase, parts in memory(replace(run, eager=True)).items()
    }
    pairs = 2 * 100 * 100  # of 2 heads, in one row of 100 tokens
    # Of its forward a layer keeps 4 + 2 bytes, and keys and values of 5 numbers for the second head; 8 are under way.
    assert more["update"] == pytest.approx((6 + 8) * pairs + 100 * 2 * 2 * 5)
    assert more["teacher scoring"] == more["student scoring"] == pytest.approx(8 * pairs)
    assert more["rollout"] == pytest.approx(8 * 2 * 4 * 20 * 20)  # the prompts of 4 rows


def test_checkpointing_and_sharding_lower_the_peak():
    base = PlannedRun(SHAPE, {"teacher": Placed(TEACHER)}, gradient_checkpointing=False, rows=4)
    assert peak(memory(replace(base, gradient_checkpointing=True))["update"]) < peak(memory(base)["update"])
    sharded = replace(base, gpus=8, sharding="zero3", teachers={"teacher": Placed(TEACHER, 16, "sharded")})
    assert sum(resident(sharded).values()) < sum(resident(replace(base, gpus=8, sharding="zero2")).values())


def test_a_bucket_of_gradients_is_copied_when_it_is_reduced():
    before = {"activations": 600.0, "gathered weights": 2000.0, "cast weights": 0.0}
    run = PlannedRun(SHAPE, {}, gpus=2, sharding="zero3", reduce_bucket=10**9, **BF16)
    # all 1000 gradients of 2 bytes, behind the backward: one of two layers is left, and of the weights the head
    assert reduces(run, before, 0.0) == {
        "activations": 300, "gathered weights": 140, "cast weights": 0, "gradients on their way": 2000
    }  # fmt: skip
    # a bucket of 100 is full after a tenth of the backward
    assert reduces(replace(run, reduce_bucket=100), before, 0.0) == {
        **before, "activations": pytest.approx(540), "gradients on their way": 200
    }  # fmt: skip
    assert reduces(replace(run, device="cpu"), before, 0.0)["gradients on their way"] == 4000  # gloo's copy


def test_the_papers_teacher_in_eight_parts():
    student, teacher = (shape_of(config_for(name), name) for name in ("Qwen3-4B", "Qwen3-30B-A3B"))
    run = PlannedRun(student, {"teacher": Placed(teacher, 16, "sharded")}, gpus=8, sharding="zero3", **BF16)
    parts = resident(run)
    assert parts["teacher"] / 1e9 == pytest.approx(30.53 * 2 / 8, rel=1e-3)
    states = ("student's weights", "gradients", "master weights", "optimizer")
    assert sum(parts[name] for name in states) / 1e9 == pytest.approx(16 * 4.022 / 8, rel=1e-3)


DIMENSIONS = {
    "vocab_size": 100, "hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 4, "head_dim": 32,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
KINDS = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mixture": (
        Qwen3MoeConfig, Qwen3MoeForCausalLM, {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    ),
}  # fmt: skip


def saved_bytes(model: torch.nn.Module, tokens: int, autocast: bool) -> int:
    """What a forward saves for its backward, counted by PyTorch, without weights and their casts."""
    storages, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights and {tokens, 2 * tokens} & set(value.shape):
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    ids = torch.arange(tokens)[None] % 90
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            kept = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert kept is not None
    return sum(storages.values())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_saves_what_pytorch_counts(kind, precision, attention):
    if (kind, precision) == ("mixture", "autocast"):
        pytest.skip("on the CPU experts are not cast")
    config_type, model_type, more = KINDS[kind]
    counts, tokens = [], 63  # no other dimension has this size, so that casts of weights are left out
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    for layers in (1, 2):
        config = config_type(num_hidden_layers=layers, **DIMENSIONS, **more, architectures=[model_type.__name__],
                             attn_implementation=attention)  # fmt: skip
        counts.append(saved_bytes(model_type(config).to(dtype), tokens, precision == "autocast"))
    run = PlannedRun(shape_of(config, kind), compute_bytes=4 if precision == "float32" else 2,
                     autocast=precision == "autocast", eager=attention == "eager", prompt_longest=23,
                     completion_longest=40)  # fmt: skip
    # what the formula leaves out: a number for each row of a norm and of attention, and the routes of a mixture
    assert saved(run) == pytest.approx((counts[1] - counts[0]) / tokens, rel=0.03)
