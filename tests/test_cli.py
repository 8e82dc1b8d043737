"""`fire-opd`: fast to say what it can do, exact in what it passes on, one sentence for what is wrong."""

import dataclasses
import resource
import sys
from types import SimpleNamespace

import pytest
import yaml
from support.launches import run_killably

from fire_opd_trl import METHODS, __version__, cli
from fire_opd_trl.preflight import packaged


CONFIGS = packaged.packaged_folder("configs")
SCRIPT = packaged.packaged_folder("examples") / "train_fire.py"
MODELS = packaged.packaged_folder("demo") / "models"
ACCELERATE_CONFIGS = {  # name: what it starts, on how many processes
    "cpu": ("NO", 1),
    "fsdp2": ("FSDP", 8),
    "single_gpu": ("NO", 1),
    "zero2": ("DEEPSPEED", 8),
    "zero3": ("DEEPSPEED", 8),
    "zero3_offload": ("DEEPSPEED", 8),
}


def refusal(capsys, *argv: str) -> str:
    """What `fire-opd *argv` says when it refuses, below its usage."""
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 2
    usage, *message = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: fire-opd")
    return " ".join(message)


@pytest.fixture
def launched(monkeypatch):
    """What would have been launched, by `fire-opd train *argv`."""
    seen = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)

    def launch(*argv: str):
        assert cli.main(["train", *argv]) == 0
        return seen.pop()

    return launch


def test_help_is_fast_and_imports_neither_trl_nor_transformers():
    program = (
        "import sys; from fire_opd_trl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as exit: print('exit', exit.code, [m for m in ('trl', 'transformers') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, output = run_killably([sys.executable, "-c", program])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and output.endswith("exit 0 []\n")
    # Seconds of work, not of waiting: a busy machine is not our fault.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 3
    for name in cli.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in output.splitlines()) == 1


def test_without_a_command_help_is_shown(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fire-opd {__version__}\n"


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    message = refusal(capsys, "trian")
    assert all(name in message for name in cli.COMMANDS)


def test_methods_are_listed_with_their_arguments_and_first_lines(capsys):
    assert cli.main(["methods"]) == 0
    output = capsys.readouterr().out
    assert [line.split("(")[0] for line in output.splitlines() if not line.startswith(" ")] == list(METHODS)
    assert "fire(drop_fraction=0.2, confidence=1.0, confusion=1.0, scope='batch', rows='hard'," in output
    assert "exopd(extrapolation=1.25)\n    ExOPD" in output
    assert len(output.splitlines()) == 2 * len(METHODS)
    for recipe in METHODS.values():  # the first line stands alone
        assert (recipe.__doc__ or "").strip().split("\n")[0].endswith((".", ":"))


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_explained_in_full(capsys, name):
    assert cli.main(["methods", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}(") and len(lines) > 3
    told = " ".join(lines)
    assert (name == "opd" or "opd`" in told) and any(word in told for word in ("Source", "described in", "Ours"))


def test_an_unknown_method_is_answered_with_the_known_ones(capsys):
    message = refusal(capsys, "methods", "grpo")
    assert all(name in message for name in METHODS)


def test_demo_gets_its_arguments(monkeypatch):
    monkeypatch.setitem(sys.modules, "fire_opd_trl.demo.run", SimpleNamespace(main=lambda argv: len(argv)))
    assert cli.main(["demo", "--steps", "3"]) == 2


def test_train_help_shows_every_field(capsys):
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from fire_opd_trl import FiReOPDConfig

    with pytest.raises(SystemExit) as exit:  # a stray % in a help text would raise here
        cli.main(["train", "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for owner in (ScriptArguments, FiReOPDConfig, ModelConfig, DatasetMixtureConfig):
        for field in dataclasses.fields(owner):
            assert not field.init or f"--{field.name} " in shown or f"--{field.name}," in shown, field.name
    assert "--reward_funcs" in shown
    assert all(name in shown.split("--accelerate_config")[1] for name in ACCELERATE_CONFIGS)


def test_arguments_go_to_the_script_and_launch_options_to_accelerate(launched):
    launch = launched(
        *("--max_steps", "2", "--num_processes", "2", "--method", "opd", "--config", "recipe.yaml"),
        *("--accelerate_config", "zero3", "--mixed_precision", "no", "--use_vllm", "--main_process_port=0"),
    )
    assert launch.config_file == str(CONFIGS / "accelerate" / "zero3.yaml")
    assert (launch.num_processes, launch.mixed_precision, launch.main_process_port) == (2, "no", 0)
    assert launch.training_script == str(SCRIPT)
    assert launch.training_script_args == (
        ["--config", "recipe.yaml", "--max_steps", "2", "--method", "opd", "--use_vllm"]
    )


def test_an_accelerate_config_may_be_a_file(launched, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((CONFIGS / "accelerate" / "cpu.yaml").read_text())
    assert launched("--accelerate_config", str(file)).config_file == str(file)
    assert launched(f"--accelerate_config={file}").config_file == str(file)
    assert launched().config_file is None


def test_the_launcher_does_not_judge_windows_by_its_one_process(launched):
    # 1 x 1 on one process cannot hold 8 completions of a prompt; on eight processes it can.
    window = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--num_generations", "8")
    assert launched(*window, "--num_processes", "8").training_script_args == list(window)


def test_an_unknown_accelerate_config_is_answered_with_the_packaged_ones(capsys):
    message = refusal(capsys, "train", "--accelerate_config", "zero4")
    assert f"zero4 is neither a file nor one of: {', '.join(ACCELERATE_CONFIGS)}." in message


def test_a_misspelt_argument_is_refused_before_anything_starts(capsys):
    message = refusal(capsys, "train", "--learning_rat", "1e-5")
    assert "--learning_rat is an argument of neither the training nor `accelerate launch`." in message
    assert message.endswith("Did you mean --learning_rate?")


def test_a_stray_word_is_refused(capsys):
    assert "oops is an argument of neither" in refusal(capsys, "train", "oops", "--max_steps", "2")


def test_a_value_of_the_wrong_type_is_refused_in_two_lines(capsys):
    assert refusal(capsys, "train", "--max_steps", "many").endswith("invalid int value: 'many'")


def test_the_packaged_accelerate_configs_are_found_and_load():
    from accelerate.commands.config.config_args import load_config_from_file

    files = {file.stem: file for file in (CONFIGS / "accelerate").glob("*.yaml")}
    assert sorted(files) == sorted(ACCELERATE_CONFIGS)
    for name, file in files.items():
        config = load_config_from_file(str(file))
        assert (config.distributed_type, config.num_processes) == ACCELERATE_CONFIGS[name]
        assert f"fire-opd train --accelerate_config {name} " in file.read_text()


def test_the_recipes_set_only_arguments_that_exist():
    parser = packaged.load_module(SCRIPT).make_parser()
    recipes = list((CONFIGS / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert parser.set_defaults_with_config(**yaml.safe_load(recipe.read_text())) == [], recipe.name


def test_fire_opd_train_trains(tmp_path):
    from fire_opd_trl.demo.task import dataset

    dataset("train", 32).to_parquet(tmp_path / "data" / "train.parquet")
    code, output = run_killably(
        [
            *(sys.executable, "-m", "fire_opd_trl.cli", "train", "--accelerate_config", "cpu"),
            *("--num_cpu_threads_per_process", "1", "--config", str(CONFIGS / "recipes" / "smoke.yaml")),
            *("--model_name_or_path", str(MODELS / "student")),
            *("--teacher_model_name_or_path", str(MODELS / "teacher")),
            *("--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "student")),
        ],
        HF_HOME=str(tmp_path / "hf"),
    )
    assert code == 0, output
    assert "fire/keep_ratio" in output and "reward" not in output
    assert (tmp_path / "student" / "model.safetensors").is_file()
    card = (tmp_path / "student" / "README.md").read_text()
    assert "FiRe-OPD" in card and "2606.02684" in card


def test_a_wrong_value_ends_in_one_sentence_and_an_exit_code():
    code, output = run_killably(
        [
            *(sys.executable, "-m", "fire_opd_trl.cli", "train", "--accelerate_config", "cpu"),
            *("--config", str(CONFIGS / "recipes" / "smoke.yaml"), "--drop_fraction", "1.5"),
        ]
    )
    assert code != 0
    assert "Traceback" not in output
    assert output.endswith(
        "error: drop_fraction=1.5 is refused. Give a share in [0, 1), for example 0.2; 0 keeps every row.\n"
    )
