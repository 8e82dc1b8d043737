"""What the package ships is found and loads."""

from pathlib import Path

import pytest
from support.commands import ACCELERATE_CONFIGS, CONFIGS, refusal

from fire_opd_trl.preflight import packaged


FILE_OF_DEEPSPEED = "{{distributed_type: DEEPSPEED, deepspeed_config: {{deepspeed_config_file: {}}}}}"


def test_an_unknown_accelerate_config_is_answered_with_the_packaged_ones(capsys):
    message = refusal(capsys, "train", "--accelerate_config", "zero4")
    assert f"zero4 is neither a file nor one of: {', '.join(ACCELERATE_CONFIGS)}." in message


@pytest.mark.parametrize("verb", ["train", "preflight", "plan"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "is no configuration of accelerate: it names no distributed_type"),
        ("distributed_type: [", "cannot be read as YAML"),
        (
            "{distributed_type: MULTI_GPUS}",
            "has distributed_type: 'MULTI_GPUS'. Did you mean 'MULTI_GPU'? Give one of",
        ),
        ("{distributed_type: NO, num_processes: many}", "has num_processes: 'many'. Give a whole number of at"),
        ("{distributed_type: NO, num_machines: }", "has num_machines: None. Give a whole number of at"),
        ("{distributed_type: NO, num_machines: 0}", "has num_machines: 0. Give a whole number of at least 1."),
        ("{distributed_type: FSDP, fsdp_config: [1]}", "has fsdp_config: [1]. It must hold settings"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: {zero_stage: three}}", "has the ZeRO stage 'three'."),
        (FILE_OF_DEEPSPEED.format("nowhere.json"), "deepspeed_config_file nowhere.json, which cannot be read as JSON"),
        (FILE_OF_DEEPSPEED.format("acc.yaml"), "deepspeed_config_file acc.yaml, which cannot be read as JSON"),
        (FILE_OF_DEEPSPEED.format("list.json"), "list.json, which has no settings under `zero_optimization`."),
        (FILE_OF_DEEPSPEED.format("empty.json"), "empty.json, which has no settings under `zero_optimization`."),
        (FILE_OF_DEEPSPEED.format("stage.json"), "stage.json, which has the ZeRO stage 3.0. Give 0, 1, 2 or 3."),
        (
            FILE_OF_DEEPSPEED.format("host.json"),
            "host.json, which has offload_optimizer: 'cpu'. It must hold settings",
        ),
        (
            FILE_OF_DEEPSPEED.format("big.json"),
            "big.json, which has reduce_bucket_size: 'big'. Give a number, or auto",
        ),
    ],
)
def test_a_wrong_accelerate_config_is_refused_by_every_verb(capsys, tmp_path, monkeypatch, verb, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text('{"zero_optimization": [3]}')
    (tmp_path / "empty.json").write_text("{}")
    for name, zero in (("stage", '"stage": 3.0'), ("host", '"offload_optimizer": "cpu"')):
        (tmp_path / f"{name}.json").write_text(f'{{"zero_optimization": {{{zero}}}}}')
    (tmp_path / "big.json").write_text('{"zero_optimization": {"stage": 3, "reduce_bucket_size": "big"}}')
    (tmp_path / "acc.yaml").write_text(text)
    message = refusal(capsys, verb, "--accelerate_config", "acc.yaml")
    assert "error: --accelerate_config acc.yaml" in message and said in message


def test_the_packaged_accelerate_configs_are_found_and_load():
    from accelerate.commands.config.config_args import load_config_from_file

    files = {file.stem: file for file in (CONFIGS / "accelerate").glob("*.yaml")}
    assert sorted(files) == sorted(ACCELERATE_CONFIGS)
    for name, file in files.items():
        config = load_config_from_file(str(file))
        assert (config.distributed_type, config.num_processes) == ACCELERATE_CONFIGS[name]
        assert f"fire-opd train --accelerate_config {name} " in file.read_text()


def test_recipes_are_found_by_name_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged.recipe("smoke") == CONFIGS / "recipes" / "smoke.yaml"
    (tmp_path / "smoke").write_text("method: opd\n")
    assert packaged.recipe("smoke") == Path("smoke")


def test_the_kinds_of_launch_are_those_of_accelerate():
    from accelerate.utils import DistributedType

    assert set(packaged.ENGINES) == {kind.value for kind in DistributedType}
