"""What the package ships is found and loads."""

from pathlib import Path

from support.commands import ACCELERATE_CONFIGS, CONFIGS, refusal

from fire_opd_trl.preflight import packaged


def test_an_unknown_accelerate_config_is_answered_with_the_packaged_ones(capsys):
    message = refusal(capsys, "train", "--accelerate_config", "zero4")
    assert f"zero4 is neither a file nor one of: {', '.join(ACCELERATE_CONFIGS)}." in message


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
