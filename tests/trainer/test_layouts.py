"""
The same work in every layout gives the same model: micro-batch x accumulation on one process, DDP, ZeRO-3 and FSDP2 on
two gloo ranks. The completions are frozen and ragged, and on two ranks the second has far fewer survivors.
"""

import shutil

import pytest
import torch
from support.folders import rescaled_folder
from support.layouts import METHODS, OTHERS, TOLERANCE, assert_same, in_this_process, layout
from support.worker import built, trained
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from fire_opd_trl import METHODS as RECIPES
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.scoring.forward import score_lines
from fire_opd_trl.scoring.heads import make_observable


# What tells whole distributions apart has other collectives than the sampled token: the head is gathered in a kernel.
WHOLE = ("fire_full", "tip", "eopd", "tip, two teachers")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Each method at 32 x 1 on one process."""
    folder = tmp_path_factory.mktemp("reference")
    return {name: in_this_process(layout(32, 1, case), folder / name) for name, case in METHODS.items()}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """`others(name)`: a method of OTHERS at 32 x 1 on one process, trained once."""
    folder, done = tmp_path_factory.mktemp("others"), {}

    def reference(name: str) -> dict:
        if name not in done:
            done[name] = in_this_process(layout(32, 1, OTHERS[name]), folder / str(len(done)))
        return done[name]

    return reference


def test_the_reference_moves_and_the_methods_differ(references, tmp_path):
    start = built({"batch": 32, "accumulation": 1}, str(tmp_path)).model.state_dict()
    ends = [reference["parameters"] for reference in references.values()]
    for end in ends:
        assert max((end[n] - start[n]).abs().max().item() for n in end) > 1e3 * TOLERANCE
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert max((ends[i][n] - ends[j][n]).abs().max().item() for n in ends[i]) > 1e2 * TOLERANCE


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 4), (1, 32)])
@pytest.mark.parametrize("name", METHODS)
def test_accumulation_never_changes_the_result(references, name, batch, accumulation, tmp_path):
    assert_same(references[name], in_this_process(layout(batch, accumulation, METHODS[name]), tmp_path))


@pytest.mark.launch
@pytest.mark.parametrize(
    ("launcher", "batch", "accumulation"), [("ddp", 4, 4), ("zero3", 4, 4), ("zero3", 1, 16), ("fsdp2", 4, 4)]
)
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_never_change_the_result(references, on_two_ranks, name, launcher, batch, accumulation):
    two = on_two_ranks(launcher, layout(batch, accumulation, METHODS[name]))
    assert_same(references[name], two)
    first, second = two["survivors_of_ranks"]  # of 32: 5 empty, and 5 of 27 dropped, all of them on the second rank
    assert first + second == (27 if name == "opd" else 22) and second > (11 if name == "opd" else 6)
    assert two["metrics"][0]["fire/rank_excess"] < 0.1
    sharded = launcher in ("zero3", "fsdp2")
    assert two["student_is_sharded"] == two["teachers_are_sharded"] == sharded
    assert not two["teachers_train"]


def norm_of(name: str) -> float:
    # TIP trains on the tokens furthest from the teacher alone: curvature is larger, and parameters that are 1e-7 apart
    # after three steps gave norms 2e-5 apart (measured on ZeRO-3; on DDP and FSDP2 below 1e-5).
    return 1e-4 if name.startswith("tip") else 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_accumulation_never_changes_any_method(name, others, tmp_path):
    assert_same(others(name), in_this_process(layout(8, 4, OTHERS[name]), tmp_path), norm_of(name))


@pytest.mark.launch
@pytest.mark.parametrize(
    ("launcher", "name"), [*(("zero3", name) for name in OTHERS), *(("fsdp2", n) for n in WHOLE), ("ddp", "tip")]
)
def test_every_method_trains_alike_on_two_ranks(launcher, name, others, on_two_ranks):
    two = on_two_ranks(launcher, layout(4, 4, OTHERS[name]))
    assert_same(others(name), two, norm_of(name))
    assert two["student_is_sharded"] == two["teachers_are_sharded"] == (launcher != "ddp")


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_moves_the_student_and_differs_from_opd(name, others, references, tmp_path):
    start = built({**OTHERS[name], "batch": 32, "accumulation": 1}, str(tmp_path)).model.state_dict()
    end, opd = others(name)["parameters"], references["opd"]["parameters"]
    assert max((end[n] - start[n]).abs().max().item() for n in end) > 1e3 * TOLERANCE
    if end.keys() == opd.keys():  # LoRA's are others
        assert max((end[n] - opd[n]).abs().max().item() for n in end) > 1e2 * TOLERANCE


@pytest.mark.parametrize("name", [*METHODS, *OTHERS])
def test_every_method_records_what_its_loss_uses(name, others, references):
    run = references[name] if name in METHODS else others(name)
    last = [row for row in run["records"] if row["step"] == run["records"][-1]["step"]]
    assert len(last) == 7 and any(row["kept"] for row in last)
    method = RECIPES[{**METHODS, **OTHERS}[name]["method"]]()
    for row in last:
        assert len(row["tokens"]) == len(row["trains"]) == len(row["teacher_entropy"]) == len(row["student_logp"])
        assert "".join(row["tokens"]) == row["completion"] and row["kept"] == (row["dropped_because"] is None)
        assert (row["advantage"] is None) == (method.advantage is None)
        if row["kept"]:
            advantage, *divergence = run["trained"][tuple(row["token_ids"])]
            assert row["weight"] == (divergence[0] if method.advantage is None else row["weight"])
            assert row["advantage"] in (advantage, None)
        else:
            assert not any(row["weight"])
        assert row["dropped_because"] != "filter" or row["score"] <= row["threshold"]


def test_every_method_has_a_layout_here():
    assert {case["method"] for case in (*METHODS.values(), *OTHERS.values())} == set(RECIPES)


@pytest.mark.launch
@pytest.mark.parametrize(
    ("launcher", "holes", "loss_type", "balance", "expected"),
    [
        ("ddp", True, "grpo", "none", [16, 6]),
        ("ddp", "second half", "grpo", "none", [13, 0]),
        ("ddp", True, "dapo", "none", [16, 6]),
        ("zero3", "second half", "dapo", "none", [13, 0]),
        ("ddp", "second half", "dapo", "tokens", [5, 8]),
        ("zero3", "second half", "grpo", "tokens", [5, 8]),
    ],
)
def test_a_rank_with_few_or_no_survivors_joins_every_collective(
    on_two_ranks, launcher, holes, loss_type, balance, expected, tmp_path
):
    case = {"method": "fire", "loss_type": loss_type, "holes": holes, "config": {"balance": balance}}
    one = in_this_process(layout(32, 1, case), tmp_path / "one")
    two = on_two_ranks(launcher, layout(4, 4, case))
    assert_same(one, two)
    assert two["survivors_of_ranks"] == expected
    # All survivors were sampled on the first rank; dealt, its five are about as long together as the eight.
    assert (two["metrics"][0]["fire/rank_excess"] < 0.1) == (balance == "tokens")


@pytest.mark.parametrize("name", ["dapo", "two iterations", "a small scoring budget", "checkpointed"])
def test_variants_agree_over_accumulation(name, tmp_path):
    variant = {
        "dapo": {"loss_type": "dapo"},
        "two iterations": {"num_iterations": 2},
        "a small scoring budget": {"scoring_token_budget": 40},
        "checkpointed": {"gradient_checkpointing": True},
    }[name]
    case = {"method": "fire", **variant}
    one = in_this_process(layout(32, 1, case), tmp_path / "one")
    assert_same(one, in_this_process(layout(1, 32, case), tmp_path / "other"))


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["ddp", "zero3"])
def test_a_lora_student_agrees_on_two_ranks(on_two_ranks, launcher, tmp_path):
    pytest.importorskip("peft")
    case = {"method": "fire", "lora": True, "learning_rate": 0.1}
    one = in_this_process(layout(32, 1, case), tmp_path / "one")
    two = on_two_ranks(launcher, layout(4, 4, case))
    lora = [name for name in one["parameters"] if "lora_B" in name]
    assert lora and max(one["parameters"][name].abs().max().item() for name in lora) > 1e-3  # B starts at zero
    assert_same(one, two)


@pytest.mark.launch
def test_zero2_never_changes_the_result(references, on_two_ranks):
    two = on_two_ranks("zero2", layout(4, 4, METHODS["fire"]))
    assert_same(references["fire"], two)
    assert not two["student_is_sharded"] and not two["teachers_are_sharded"] and not two["teachers_train"]


@pytest.mark.launch
def test_a_padded_teacher_is_cut_under_zero3_too(references, on_two_ranks, tmp_path):
    from fire_opd_trl.demo.run import model_path

    folder = tmp_path / "padded"
    shutil.copytree(model_path("teacher"), folder)
    padded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    padded.resize_token_embeddings(64, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[16:] = 10.0
    padded.save_pretrained(folder)
    assert_same(references["fire"], on_two_ranks("zero3", layout(4, 4, {"method": "fire", "teacher": str(folder)})))


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 40), (40, 1), (8, 5), (5, 8)])
def test_of_40_rollouts_exactly_8_are_dropped(batch, accumulation, tmp_path):
    case = {"method": "fire", "rows": 40, "holes": False, "max_steps": 1, "batch": batch, "accumulation": accumulation}
    trainer = trained(case, str(tmp_path))
    (log,) = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert (log["fire/rows"], log["fire/kept_rows"]) == (40, 32)
    trained_rows = sum(int((part["scale"] > 0).sum()) for part in trainer._buffered_inputs)
    assert (len(trainer._buffered_inputs), trained_rows) == (accumulation, 32)


def test_dropped_rows_cost_no_update_and_micro_batches_are_short(tmp_path):
    trainer = trained({"method": "fire", "batch": 4, "accumulation": 8, "max_steps": 1}, str(tmp_path))
    parts = trainer._buffered_inputs
    widths = [part["completion_ids"].shape[1] for part in parts]
    assert sum(len(part["completion_ids"]) for part in parts) == 22  # 32 rows, 5 empty, 5 dropped
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]
    assert all(part["completion_mask"].sum(1).max() == part["completion_ids"].shape[1] for part in parts)
    assert torch.stack([part["scale"].sum() for part in parts]).sum() > 0


# Models that read long rows otherwise


@pytest.mark.launch
def test_longrope_gives_the_same_in_every_layout(on_two_ranks, tmp_path):
    """
    The reference has one row to a micro-batch and to a forward: none of them has neighbours. Where rows of both kinds
    had a forward in common, the parameters were 6e-3 apart.
    """
    models = {name: rescaled_folder(tmp_path / name, name) for name in ("student", "teacher")}
    case = {"method": "fire", **models}
    one = in_this_process(layout(1, 32, {**case, "scoring_token_budget": 1}), tmp_path / "one")
    # Frequencies that the models were not trained with leave steep places: norms 2e-5 apart at parameters 1e-7 apart.
    assert_same(one, in_this_process(layout(8, 4, case), tmp_path / "other"), 1e-4)
    assert_same(one, on_two_ranks("zero3", layout(8, 2, case)), 1e-4)


# Precision


def in_plain_models(outputs: list[dict], student: torch.dtype) -> list[dict]:
    """The same forwards in this process, by models that nothing wraps."""
    models = {}
    for name in {note["of"] for note in outputs}:
        folder, dtype = ("teacher", torch.bfloat16) if name == "teacher" else ("student", student)
        models[name] = AutoModelForCausalLM.from_pretrained(model_path(folder), dtype=dtype).eval()
        add_fused_lm_head(models[name], outputs=("log_probs", "entropy"))
        make_observable(models[name])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return [score_lines(models[note["of"]], models[note["of"]], note["part"], None, False, 1) for note in outputs]


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["fsdp2", "zero3", "autocast"])
def test_what_heads_compute_in_float32_reaches_scorers_and_loss_as_it_is(launcher, on_two_ranks, tmp_path):
    """
    Layers compute in bfloat16. Were outputs rounded to it too, values of 5 to 16 nats would be off by up to 2^-5, and
    the advantage of these models, a difference of two of them, by 1 % in the mean.
    """
    case = {"method": "exopd", "bf16": True, "watch_outputs": True, "max_steps": 1, "config": {"beta": 0.1}}
    case.update(teacher_kwargs={"dtype": "bfloat16"}, dtype="float32" if launcher == "autocast" else "bfloat16")
    if launcher == "autocast":
        outcome = in_this_process(layout(4, 8, case), tmp_path)
    else:
        outcome = on_two_ranks(launcher, layout(4, 4, case))
    assert outcome["stepped"] == ["torch.float32"]  # accelerate and DeepSpeed keep float32 copies of the weights
    for outputs in outcome["outputs_of_ranks"]:
        assert {note["of"] for note in outputs} == {"student", "teacher", "reference", "ref_model"}
        assert {note["loss"] for note in outputs if note["of"] == "student"} == {True, False}
        for note, plain in zip(outputs, in_plain_models(outputs, getattr(torch, case["dtype"])), strict=True):
            assert note["logp"].dtype == torch.float32 and torch.equal(note["logp"], plain.logp_BC)
            if note["of"] == "student":
                assert note["entropy"].dtype == torch.float32 and torch.equal(note["entropy"], plain.entropy_BC)
