"""Whatever is trained is stepped in float32, or it is said before weights are loaded what would be lost."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from support.inspections import STUDENT, TEACHER, fault, looked, said, without_weights
from support.worker import built
from transformers import AutoModelForCausalLM

from fire_opd_trl.preflight.command import planned_run, trainer_arguments
from fire_opd_trl.preflight.findings import Checked
from fire_opd_trl.preflight.packaged import accelerate_configs, recipes, training_script
from fire_opd_trl.preflight.precision import check_precision
from fire_opd_trl.teachers.vocabulary import config_of


ONE_STEP = {"batch": 8, "accumulation": 4, "method": "opd", "max_steps": 1, "learning_rate": 1e-6}
BF16, FP16 = ({"model_init_kwargs": {"dtype": dtype}} for dtype in ("bfloat16", "float16"))


# What is lost


def moved(dtype: torch.dtype, folder: Path) -> float:
    """The share of the weights with a gradient that one step of AdamW at 1e-6 moves."""
    student = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=dtype)
    before = {name: value.clone() for name, value in student.named_parameters()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, weight_decay=0.0)
    built(ONE_STEP, str(folder), model=student, optimizers=(optimizer, None)).train()
    changed = [
        (value != before[name])[optimizer.state[value]["exp_avg"] != 0] for name, value in student.named_parameters()
    ]
    return torch.cat(changed).float().mean().item()


def test_of_weights_in_16_bits_hardly_any_move_at_a_usual_learning_rate(tmp_path):
    # The first step of AdamW is the learning rate, 1e-6, wherever there is a gradient. It moves a bfloat16 number if
    # it is more than half of the distance to the next, eps / 2 = 2^-8 of its power of two: below 2^-11 = 4.9e-4.
    # With a typical size of 0.05 these are 0.8 x 4.9e-4 / 0.05 = 0.8 % of the weights. Float32 is 65536 times finer.
    assert moved(torch.bfloat16, tmp_path / "16") == pytest.approx(0.008, abs=0.005)
    assert moved(torch.float32, tmp_path / "32") > 0.99


# What is refused, and what is said of the rest


LOST = (
    "The student's trainable weights are bfloat16, and nobody keeps them in float32: a step of less than 1/512 of a "
    "weight is lost in rounding, so that at learning_rate=1e-06 no weight above 0.0005 moves. Load the student in "
    "float32 (dtype float32, the default), and leave bf16=True: it still computes in bfloat16. Or let DeepSpeed or "
    "FSDP keep float32 copies (configs/accelerate/zero2.yaml, fsdp2.yaml), train a LoRA adapter, or give the trainer "
    "an optimizer that keeps copies itself (optimizers=...)."
)


def test_weights_in_16_bits_that_nobody_keeps_in_float32_are_refused_before_they_are_loaded(tmp_path):
    assert fault(looked(**BF16)) == LOST
    assert "float16, and nobody" in fault(looked(**FP16)) and "1/4096 of a weight" in fault(looked(**FP16))
    automatic = without_weights(tmp_path / "student", "student", dtype="bfloat16")
    assert fault(looked(model=automatic, model_init_kwargs={"dtype": "auto"})) == LOST
    assert looked(model=automatic).faults == []  # TRL loads in float32 unless one says otherwise


@pytest.mark.parametrize(
    ("engine", "mixed", "kept"),
    [
        (None, "bf16", False),
        ("FSDP", "no", False),
        ("FSDP", "bf16", True),
        ("DeepSpeed", "no", True),
        ("ZeRO-3", "bf16", True),
    ],
)
def test_deepspeed_keeps_float32_copies_and_so_does_fsdp_under_mixed_precision(engine, mixed, kept):
    checked = looked(others={"engine": engine, "mixed_precision": mixed}, **BF16)
    if kept:
        assert said(checked)["precision"] == ("ok", f"{engine} keeps float32 copies of the bfloat16 weights")
    else:
        assert fault(checked) == LOST
    assert said(looked(others={"engine": engine, "mixed_precision": mixed}))["precision"] == (
        "ok", "the optimizer steps float32 weights"
    )  # fmt: skip


@pytest.mark.parametrize(("mixed", "kept"), [("no", False), ("bf16", True)])
def test_deepspeed_without_zero_keeps_copies_under_mixed_precision_alone(mixed, kept, tmp_path):
    planned = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 0}, "mixed_precision": mixed}
    (tmp_path / "zero0.yaml").write_text(json.dumps(planned))
    checked = looked(others=planned_run(tmp_path / "zero0.yaml", 2)[1], **BF16)
    assert checked.faults == ([] if kept else [LOST])


def test_a_dtype_that_does_not_exist_is_a_fault_of_the_student():
    assert "bf16" in fault(looked(model_init_kwargs={"dtype": "bf16"}))


def test_a_module_is_judged_by_the_weights_that_train():
    student = AutoModelForCausalLM.from_config(config_of(STUDENT), dtype=torch.bfloat16)
    student.config._name_or_path = STUDENT
    assert fault(looked(model=student)) == LOST
    student.requires_grad_(False).lm_head.float().requires_grad_(True)
    assert looked(model=student).faults == []


def test_adapters_are_float32_but_for_those_of_a_quantized_base(tmp_path):
    adapter = {"peft_config": object()}
    assert said(looked(others=adapter, **BF16))["precision"][0] == "ok"
    four_bits = without_weights(tmp_path / "packed", "student", quantization_config={"load_in_4bit": True})
    for engine, outcome in ((None, "warning"), ("FSDP", "warning"), ("DeepSpeed", "ok")):
        others = {**adapter, "engine": engine, "mixed_precision": "bf16"}
        assert said(looked(model=four_bits, others=others))["precision"][0] == outcome
        packed = {**others, "quantization_config": object()}
        assert said(looked(others=packed))["precision"][0] == outcome
    text = said(looked(model=four_bits, others=adapter))["precision"][1]
    assert text.startswith("TRL casts the adapters of a quantized student to bfloat16, and nobody keeps them in")


def test_what_peft_copies_of_a_base_in_16_bits_is_refused_when_it_is_loaded(tmp_path):
    from peft import LoraConfig

    def trainer(name: str, **lora):
        config = LoraConfig(r=4, target_modules=["q_proj"], **lora)
        return built({**ONE_STEP, "dtype": "bfloat16"}, str(tmp_path / name), peft_config=config)

    adapted = trainer("adapted").model
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    with pytest.raises(ValueError, match="The student's trainable weights are bfloat16, and nobody keeps them"):
        trainer("copied", modules_to_save=["embed_tokens"])


# What is shipped


def shipped_lines() -> dict[str, list[str]]:
    """The arguments of every training that this package proposes, by where it does."""
    lines = {}
    for recipe in recipes().values():
        head = recipe.read_text()
        named = re.search(r"--accelerate_config (\w+)|configs/accelerate/(\w+)\.yaml", head)
        config = next(filter(None, named.groups())) if named else "cpu"
        lines[recipe.stem] = ["--accelerate_config", config, "--config", str(recipe)]
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    launch = r"(?:accelerate launch --config_file|fire-opd train --accelerate_config) (?:.*\\\n)*.*"
    for place, text in (("train_fire.py", training_script().__doc__), ("README", readme)):
        found = re.findall(launch, text)
        for number, line in enumerate(found):
            config, *rest = shlex.split(line.replace("\\\n", " ").split(maxsplit=3)[3], comments=True)
            rest = [word for word in rest if not word.endswith(".py")]
            lines[f"{place} {number}"] = ["--accelerate_config", Path(config).stem, *rest]
    return lines


def test_every_shipped_training_steps_float32(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1="}))
    here = ["--model_name_or_path", STUDENT, "--teacher_model_name_or_path", TEACHER]
    here += ["--dataset_name", str(tmp_path / "rows.jsonl"), "--teacher_chat_template_kwargs", "{}"]
    outcomes = {}
    for place, (_, config, *line) in shipped_lines().items():
        for launch in {config, "single_gpu"}:
            processes, others = planned_run(accelerate_configs()[launch], None)
            parts = trainer_arguments(training_script(), [*line, *here], processes, Checked())
            others.update({name: parts[name] for name in ("peft_config", "quantization_config")})
            checked = Checked()
            with checked.check("precision"):
                check_precision(checked, STUDENT, config_of(STUDENT), parts["args"], others)
            outcomes[place, launch] = checked.findings[0].outcome
            assert launch != config or checked.findings[0].outcome == "ok", (place, checked.findings[0].text)
    assert len(outcomes) >= 12 and outcomes["strong-to-weak", "single_gpu"] == "fault"
