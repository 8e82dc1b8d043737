"""
Teachers on real ranks: partitioned, replicated, on the host; adapters that share a base; the student without its
adapter; a mixture of experts. Wherever the teacher is, the student becomes the same.
"""

import json

import pytest
from support.folders import adapter_folder, loaded, mixture_folder
from support.layouts import assert_same, in_this_process, layout
from support.worker import built, result, trained

from fire_opd_trl.demo.run import model_path


STIRRED = {"lora": "stirred", "learning_rate": 0.003}  # an adapter that differs from its base from the start


# W x + B (A x) and (W + B A) x round differently: their log-probabilities agree to 1e-5, and so do norms of gradients.
MERGED = 3e-5


TWO = {"method": "fire", "two_teachers": True, "config": {"statistics_scope": "teacher"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of the embedded teacher, each also merged into it, and a mixture of experts."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("models")
    pairs = [adapter_folder(folder, seed) for seed in (1, 2)]
    names = {"adapter1": pairs[0][0], "merged1": pairs[0][1], "adapter2": pairs[1][0], "merged2": pairs[1][1]}
    return {**names, "mixture": mixture_folder(folder), "teacher": model_path("teacher")}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """`references(case)`: a case at 32 x 1 on one process, trained once."""
    folder, done = tmp_path_factory.mktemp("reference"), {}

    def reference(case: dict) -> dict:
        key = json.dumps(case, sort_keys=True)
        if key not in done:
            done[key] = in_this_process(layout(32, 1, case), folder / str(len(done)))
        return done[key]

    return reference


def adapters(folders: dict, *names: str) -> dict:
    return {"method": "fire", "teacher": dict(zip("ab", (folders[name] for name in names), strict=True))}


# Placements


PLACED = {
    ("zero3", "replicated"): {},
    ("zero3", "offload"): {},
    ("zero3", "sharded"): {"teacher_deepspeed": {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 1}}},
    ("zero2", "offload"): {},
    ("ddp", "replicated"): {},
    ("ddp", "offload"): {},
    ("fsdp2", "replicated"): {},
    ("fsdp2", "offload"): {},
}


@pytest.mark.launch
@pytest.mark.parametrize(("launcher", "placement"), PLACED)
def test_wherever_the_teachers_are_the_student_becomes_the_same(launcher, placement, references, on_two_ranks):
    config = {"teacher_placement": placement, **PLACED[launcher, placement], **TWO["config"]}
    two = on_two_ranks(launcher, layout(4, 4, {**TWO, "config": config}))
    assert_same(references(TWO), two)
    assert two["teachers_are_sharded"] == (launcher == "zero3" and placement != "replicated")
    assert two["student_is_sharded"] == (launcher in ("zero3", "fsdp2")) and not two["teachers_train"]
    # What comes to the device in every forward: nothing of a replica, and of a partitioned model its 4 bytes a number.
    sizes = [sum(p.numel() for p in model.parameters()) for model in (loaded("teacher"), loaded("student"))]
    brought = two["brought_bytes_of_teachers"]
    if placement == "replicated":
        assert brought == [0, 0]
    elif launcher == "zero3":
        assert brought == [4 * size for size in sizes]
    else:  # layers alone: embeddings and head are on the device
        assert all(0.9 * 4 * size < some < 4 * size for some, size in zip(brought, sizes, strict=True))


@pytest.mark.launch
def test_fsdp_gathers_a_teacher_layer_by_layer(references, on_two_ranks):
    two = on_two_ranks("fsdp2", layout(4, 4, {"method": "fire", "config": {"teacher_placement": "sharded"}}))
    assert_same(references({"method": "fire"}), two)
    assert two["fsdp_units_of_teachers"] == [5]  # four layers and the rest
    assert two["brought_bytes_of_teachers"] == [4 * sum(p.numel() for p in loaded("teacher").parameters())]


@pytest.mark.launch
@pytest.mark.parametrize("placement", ["auto", "replicated", "offload"])
def test_fsdp_with_efficient_loading_of_the_student(placement, references, on_two_ranks):
    """Only the first rank then reads the student's file; a teacher must not be left without weights on the other."""
    case = layout(4, 4, {"method": "fire", "config": {"teacher_placement": placement}})
    two = on_two_ranks("fsdp2", case, FSDP_CPU_RAM_EFFICIENT_LOADING="true")  # as in configs/accelerate/fsdp2.yaml
    assert two["efficient_loading"]
    assert_same(references({"method": "fire"}), two)


@pytest.mark.launch
@pytest.mark.parametrize("placement", ["replicated", "offload"])
def test_whole_distributions_of_a_teacher_that_is_placed_otherwise(placement, references, on_two_ranks):
    case = {"method": "fire_full"}
    two = on_two_ranks("zero3", layout(4, 4, {**case, "config": {"teacher_placement": placement}}))
    assert_same(references(case), two)
    assert two["teachers_are_sharded"] == (placement == "offload")


def test_a_teacher_that_is_read_layer_by_layer_says_the_same(references, tmp_path):
    trainer = trained(layout(8, 4, {"method": "fire", "config": {"teacher_placement": "offload"}}), str(tmp_path))
    assert_same(references({"method": "fire"}), result(trainer))
    parameters = dict(trainer.teachers["teacher"].module.named_parameters())
    streamed = {name for name, parameter in parameters.items() if parameter.device.type == "meta"}
    assert streamed == {name for name in parameters if ".layers." in name} and streamed


# Several teachers, and a rank without a row for one of them


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["ddp", "zero3", "fsdp2"])
@pytest.mark.parametrize("method", ["fire", "tip"])
def test_a_rank_without_a_row_for_a_teacher_joins_its_forwards(launcher, method, references, on_two_ranks):
    case = {"method": method, "two_teachers": True, "routing": "halves"}
    two = on_two_ranks(launcher, layout(4, 4, case))
    # TIP's norms: see tests/trainer/test_layouts.py
    assert_same(references(case), two, 1e-4 if method == "tip" else 1e-5)
    last = two["metrics"][-1]
    assert (last["fire/a/rows"], last["fire/b/rows"]) == (16, 16)


# Adapters


def test_an_adapter_is_the_model_into_which_it_is_merged(folders, references, tmp_path):
    merged = references({"method": "fire", "teacher": folders["merged1"]})
    case = {"method": "fire", "teacher": folders["adapter1"]}
    assert_same(merged, in_this_process(layout(32, 1, case), tmp_path), MERGED)
    plain = references({"method": "fire"})["parameters"]
    assert max((plain[n] - merged["parameters"][n]).abs().max().item() for n in plain) > 1e-4


@pytest.mark.parametrize("second", ["adapter2", "teacher"])
def test_teachers_of_one_base_share_it(folders, second, references, tmp_path):
    apart = references(adapters(folders, "merged1", second.replace("adapter", "merged")))
    trainer = trained(layout(8, 4, adapters(folders, "adapter1", second)), str(tmp_path))
    assert_same(apart, result(trainer), MERGED)
    a, b = trainer.teachers.values()
    assert a.module is b.module and (a.adapter, b.adapter) == (
        "teacher0",
        "teacher1" if second == "adapter2" else None,
    )


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["ddp", "zero3", "fsdp2"])
@pytest.mark.parametrize("second", ["adapter2", "teacher"])
def test_teachers_of_one_base_share_it_on_two_ranks(folders, launcher, second, references, on_two_ranks):
    apart = references(adapters(folders, "merged1", second.replace("adapter", "merged")))
    two = on_two_ranks(launcher, layout(4, 4, adapters(folders, "adapter1", second)))
    assert_same(apart, two, MERGED)
    assert two["teachers_are_sharded"] == (launcher != "ddp") and not two["teachers_train"]


def test_a_peft_model_in_memory_is_a_teacher(folders, references, tmp_path):
    from peft import PeftModel

    case = layout(32, 1, {"method": "fire"})
    teacher = PeftModel.from_pretrained(loaded("teacher"), folders["adapter1"])
    trainer = built(case, str(tmp_path), teacher_model=teacher)
    trainer.train()
    assert_same(references({"method": "fire", "teacher": folders["merged1"]}), result(trainer), MERGED)


@pytest.mark.parametrize("target", [["lm_head"], ".*head"])
def test_an_adapter_of_the_head_is_refused_in_every_form(target, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    case = layout(32, 1, {"method": "fire"})
    model = get_peft_model(loaded("teacher"), LoraConfig(target_modules=target))
    with pytest.raises(ValueError, match="its adapter changes the head"):
        built(case, str(tmp_path), teacher_model=model)
    model.peft_config["default"].base_model_name_or_path = model_path("teacher")
    model.save_pretrained(tmp_path / "adapter")
    assert isinstance(model, PeftModel)
    with pytest.raises(ValueError, match="changes the head|changes lm_head"):
        built({**case, "teacher": str(tmp_path / "adapter")}, str(tmp_path))


def test_a_model_with_virtual_tokens_is_refused(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(loaded("teacher"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="writes virtual tokens before the prompt"):
        built(layout(32, 1, {"method": "fire"}), str(tmp_path), teacher_model=model)


# The student without its adapter


@pytest.mark.parametrize("method", ["fire", "tip"])
def test_the_student_without_its_adapter_is_a_teacher(method, references, tmp_path):
    copied = references({**STIRRED, "method": method, "demo_teacher": "student"})
    assert max(abs(loss) for loss in copied["loss"]) > 0.1  # the adapter makes a difference
    trainer = trained(layout(8, 4, {**STIRRED, "method": method, "teacher": "self"}), str(tmp_path))
    assert_same(copied, result(trainer), 1e-4 if method == "tip" else 1e-5)
    assert trainer.teachers["teacher"].module is None
    trains = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trains and all("lora_" in name for name in trains)


@pytest.mark.launch
@pytest.mark.parametrize(
    ("launcher", "method"), [("ddp", "fire"), ("zero3", "fire"), ("zero3", "tip"), ("fsdp2", "fire")]
)
def test_the_student_without_its_adapter_is_a_teacher_on_two_ranks(launcher, method, references, on_two_ranks):
    copied = references({**STIRRED, "method": method, "demo_teacher": "student"})
    two = on_two_ranks(launcher, layout(4, 4, {**STIRRED, "method": method, "teacher": "self"}))
    assert_same(copied, two, 1e-4 if method == "tip" else 1e-5)


# Mixtures of experts


@pytest.mark.launch
def test_ranks_whose_tokens_go_to_other_experts_do_not_wait_for_each_other(folders, references, on_two_ranks):
    case = {"method": "fire", "teacher": folders["mixture"], "learning_rate": 1e-3}
    case["scoring_token_budget"] = 40  # a row or two at once
    two = on_two_ranks("zero3", layout(4, 4, {**case, "watch_experts": True}))
    assert_same(references(case), two)
    first, second = two["experts_of_ranks"]
    apart = [forward for forward, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
    assert len(apart) > len(first) / 2  # in most forwards some expert had tokens of one rank alone
    assert two["leaves"] == ["Qwen3MoeSparseMoeBlock"]


def test_a_streamed_mixture_says_the_same_and_its_experts_go_where_one_says(folders, references, tmp_path):
    """The files hold the experts one by one, the model all in one tensor: they are written anew."""
    case = {"method": "fire", "teacher": folders["mixture"], "learning_rate": 1e-3}
    kwargs = {"teacher_kwargs": {"offload_folder": str(tmp_path / "experts")}}
    offload = {**case, **kwargs, "config": {"teacher_placement": "offload"}}
    assert_same(references(case), in_this_process(layout(8, 4, offload), tmp_path / "out"))
    assert list((tmp_path / "experts").iterdir())


# Quantized teachers


FOUR_BITS = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}


def test_a_quantized_teacher_says_nearly_the_same(references, tmp_path):
    pytest.importorskip("bitsandbytes")
    trainer = trained(layout(8, 4, {"method": "fire", "teacher_kwargs": FOUR_BITS}), str(tmp_path))
    packed = {type(module).__name__ for module in trainer.teachers["teacher"].module.modules()}
    assert "Linear4bit" in packed
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    plain, quantized = references({"method": "fire"})["metrics"][0]["fire/teacher_logp"], logs[0]["fire/teacher_logp"]
    assert plain != quantized and quantized == pytest.approx(plain, abs=0.1)


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["ddp", "zero3"])
def test_a_quantized_teacher_is_replicated_beside_any_student(launcher, references, on_two_ranks):
    pytest.importorskip("bitsandbytes")
    case = {"method": "fire", "teacher_kwargs": FOUR_BITS}
    two = on_two_ranks(launcher, layout(4, 4, case))
    assert_same(references(case), two)
    assert not two["teachers_are_sharded"]


def test_a_quantized_teacher_cannot_be_offloaded(tmp_path):
    case = {"method": "fire", "teacher_kwargs": FOUR_BITS, "config": {"teacher_placement": "offload"}}
    with pytest.raises(ValueError, match="teacher 'teacher' is quantized, and its packed weights"):
        built(layout(32, 1, case), str(tmp_path))
