"""Runs that are inspected without their weights."""

import json
import shutil
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer

from fire_opd_trl import FiReOPDConfig
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight import arguments
from fire_opd_trl.preflight.findings import Checked
from fire_opd_trl.preflight.inspection import inspect_run
from fire_opd_trl.refusals import chosen_method
from fire_opd_trl.teachers.sources import teacher_sources


TEACHER, STUDENT = model_path("teacher"), model_path("student")


ROWS = [{"prompt": "12+34="}, {"prompt": "123+456="}]


TWO = {"a": TEACHER, "b": STUDENT}


ROUTED = [{"prompt": "12+34=", "teacher_id": "a"}, {"prompt": "123+456=", "teacher_id": "b"}]


def settings(**config) -> FiReOPDConfig:
    config = {"method": "opd", "max_completion_length": 33, "per_device_train_batch_size": 1, **config}
    return FiReOPDConfig("output", use_cpu=True, bf16=False, **config)


def looked(
    teacher=TEACHER, rows=ROWS, *, model=STUDENT, tokenizer=None, evaluated=None, recipe=None, others=(), **config
) -> Checked:
    """What the inspection says of a student, its teachers and rows."""
    args, others = settings(**({"method": "fire"} if recipe else {}), **config), dict(others)
    sources = teacher_sources(teacher, model, args, adapted="peft_config" in others)
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    method = chosen_method(recipe, args, rewarded=False)
    return inspect_run(model, sources, args, method, dataset, evaluated, tokenizer, others)


def preflight_table(capsys, *argv: str) -> tuple[int, str]:
    """The exit code and the table of `fire-opd preflight`, in this process, without line breaks."""
    code = arguments.main([*argv, "--output_dir", "never"])
    return code, " ".join(capsys.readouterr().out.split())


def said(checked: Checked) -> dict[str, tuple[str, str]]:
    assert len({finding.subject for finding in checked.findings}) == len(checked.findings)
    return {finding.subject: (finding.outcome, finding.text) for finding in checked.findings}


def fault(checked: Checked) -> str:
    (only,) = checked.faults
    return only


def without_weights(folder: Path, name: str = "teacher", **changes) -> str:
    """Config and tokenizer of an embedded model, with other entries in the config."""
    shutil.copytree(model_path(name), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def with_template():
    """The embedded tokenizer with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}=;"
    return tokenizer


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def adapter(folder: Path, **config) -> str:
    folder.mkdir()
    base = {"peft_type": "LORA", "base_model_name_or_path": TEACHER, "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**base, **config}))
    return str(folder)
