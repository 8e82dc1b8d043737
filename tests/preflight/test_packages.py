"""A package that a setting needs and that is not installed is said at once, with the line that installs it."""

import sys

import pytest
from support.inspections import STUDENT, TEACHER, adapter, fault, looked, preflight_table, settings

from fire_opd_trl.preflight.packages import EXTRAS, needed, pip_line, refuse_missing
from fire_opd_trl.teachers.sources import teacher_sources


ABSENT = ("vllm", "wandb", "tensorboard", "tensorboardX", "bitsandbytes", "peft", "deepspeed", "flash_attn", "kernels")


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    """As on a machine without any of the extras: Python then finds none of them, and cannot import them."""
    for module in (*ABSENT, "liger_kernel", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)


QUANTIZED = {"quantization_config": {"load_in_4bit": True}}


@pytest.mark.parametrize(
    ("config", "setting", "line"),
    [
        ({"use_vllm": True}, "use_vllm=True needs the package vllm", "pip install -e '.[vllm]'"),
        ({"report_to": ["wandb"]}, "report_to='wandb' needs the package wandb", "pip install wandb"),
        ({"report_to": "tensorboard"}, "report_to='tensorboard' needs the package tensorboard", "install tensorboard"),
        ({"use_liger_kernel": True}, "use_liger_kernel=True needs the package liger_kernel", "install liger-kernel"),
        ({"optim": "adamw_bnb_8bit"}, "needs the package bitsandbytes", "pip install -e '.[quantization]'"),
        (
            {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}},
            "attn_implementation='flash_attention_2' needs the package flash_attn",
            "pip install flash-attn",
        ),
        (
            {"teacher_model_init_kwargs": {"attn_implementation": "kernels-community/flash-attn2"}},
            "attn_implementation='kernels-community/flash-attn2' needs the package kernels",
            "pip install kernels",
        ),
        (
            {"teacher_model_init_kwargs": QUANTIZED},
            "quantization_config in teacher_model_init_kwargs of 'teacher' needs the package bitsandbytes",
            "pip install -e '.[quantization]'",
        ),
    ],
)
def test_a_setting_whose_package_is_missing_is_a_fault_with_the_line_that_installs_it(config, setting, line):
    text = fault(looked(**config))
    assert setting in text and text.endswith(f"which is not installed. Run: {text.partition('Run: ')[2]}")
    assert line in text.partition("Run: ")[2]


def test_an_adapter_as_a_teacher_needs_peft(tmp_path):
    args = settings()
    sources = teacher_sources(adapter(tmp_path / "adapter"), STUDENT, args, adapted=False)
    assert needed(args, sources, None) == {f"the adapter {tmp_path / 'adapter'}": ("peft",)}


def test_one_of_several_packages_is_enough(monkeypatch):
    refuse_missing({"report_to='tensorboard'": ("tensorboardX", "json")})


def test_what_needs_no_package_is_no_fault():
    assert looked(report_to="none", optim="adamw_torch_fused").faults == []
    assert needed(settings(report_to=["none", "kubeflow"]), {}, "FSDP") == {}


def test_the_extras_are_those_of_the_project():
    import tomllib

    from fire_opd_trl.preflight.packaged import packaged_folder

    project = tomllib.loads((packaged_folder("configs").parent / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    for module, extra in EXTRAS.items():
        assert any(module in line for line in project["optional-dependencies"][extra])
        assert pip_line(module) == f"pip install -e '.[{extra}]'"


def test_all_that_is_wrong_stands_in_one_table(tmp_path, capsys):
    """Two settings, one of TRL's, packages, the student, the teacher's files and the data."""
    code, table = preflight_table(
        capsys,
        *("--accelerate_config", "zero3", "--teacher_model_name_or_path", "nobody/nothing"),
        *("--dataset_name", str(tmp_path / "nofile.jsonl"), "--reward_funcs", "no.such.reward", "--use_peft"),
        *("--drop_fraction", "2", "--scoring_token_budget", "0", "--num_generations", "3"),
        *("--load_in_4bit", "--use_vllm", "--report_to", "wandb", "--bf16", "false"),
    )
    assert code == 1
    for text in (
        "drop_fraction=2.0 is refused",
        "scoring_token_budget=0 is refused",
        "generation_batch_size=64 is refused",  # 8 processes x 8 x 1
        "There is no student.",
        "nofile.jsonl': no such file or folder",
        "reward_funcs: 'no.such.reward' does not import",
        "use_peft needs the package peft",
        "load_in_4bit needs the package bitsandbytes",
        "use_vllm=True needs the package vllm",
        "report_to='wandb' needs the package wandb",
        "the accelerate configuration with DeepSpeed needs the package deepspeed",
        "checked with the default in place of each wrong value",
    ):
        assert table.count(text) == 1, text
    assert "11 faults: training would not start." in table


def test_what_trl_refuses_of_a_window_is_said_beside_the_wrong_values(capsys):
    models = ("--model_name_or_path", STUDENT, "--teacher_model_name_or_path", TEACHER)
    code, table = preflight_table(capsys, *models, "--auto_find_batch_size", "true", "--confidence", "-1")
    assert code == 1 and "confidence=-1.0 is refused" in table
    assert "auto_find_batch_size is not supported" in table and "the settings cannot be read" in table
