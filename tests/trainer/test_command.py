"""`fire-opd train`: exact in what it passes on, one sentence for what is wrong."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.commands import ACCELERATE_CONFIGS, CONFIGS, SCRIPT, refusal
from support.launches import HARD_KILL_SECONDS, SUPPORT, free_port, kill, run_killably

from fire_opd_trl import cli
from fire_opd_trl.preflight import packaged


ACCELERATE = CONFIGS / "accelerate"
MODELS = packaged.packaged_folder("demo") / "models"


@pytest.fixture
def launched(monkeypatch):
    """What would have been launched, by `fire-opd train *argv`."""
    seen = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)

    def launch(*argv: str):
        assert cli.main(["train", *argv]) == 0
        return seen.pop()

    return launch


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
    assert all(name in shown.split("Besides these:")[1] for name in ACCELERATE_CONFIGS)


def test_arguments_go_to_the_script_and_launch_options_to_accelerate(launched):
    launch = launched(
        *("--max_steps", "2", "--num_processes", "2", "--method", "opd", "--config", "smoke"),
        *("--accelerate_config", "zero3", "--mixed_precision", "no", "--use_vllm", "--main_process_port=0"),
    )
    assert launch.config_file == str(CONFIGS / "accelerate" / "zero3.yaml")
    assert (launch.num_processes, launch.mixed_precision, launch.main_process_port) == (2, "no", 0)
    assert launch.training_script == str(SCRIPT)
    assert launch.training_script_args == (
        ["--config", str(CONFIGS / "recipes" / "smoke.yaml"), "--max_steps", "2", "--method", "opd", "--use_vllm"]
    )


def test_an_accelerate_config_may_be_a_file(launched, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((CONFIGS / "accelerate" / "cpu.yaml").read_text())
    assert launched("--accelerate_config", str(file)).config_file == str(file)
    assert launched(f"--accelerate_config={file}").config_file == str(file)
    assert launched().config_file is None


def test_one_of_several_cards_is_taken_and_a_choice_of_the_environment_stays(launched, monkeypatch, tmp_path):
    from accelerate.commands.launch import _validate_launch_command
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda *_: True)

    def cards(*argv):
        arguments, *_ = _validate_launch_command(launched("--accelerate_config", "single_gpu", *argv))
        return prepare_simple_launcher_cmd_env(arguments)[1].get("CUDA_VISIBLE_DEVICES")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (cards(), cards("--gpu_ids", "5")) == ("0", "5")
    for visible, first in (("3", "3"), ("6,7", "6"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert (cards(), cards("--gpu_ids", "5")) == (first, "5")
    several = {"distributed_type": "MULTI_GPU", "num_processes": 2, "gpu_ids": "4,5"}
    for own in ({"distributed_type": "NO", "num_processes": 1, "gpu_ids": "4"}, several):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"num_machines": 1, "mixed_precision": "bf16", **own}))
        assert launched("--accelerate_config", str(tmp_path / "own.yaml")).gpu_ids is None  # the file's own stay


def test_the_launcher_does_not_judge_windows_by_its_one_process(launched):
    # 1 x 1 on one process cannot hold 8 completions of a prompt; on eight processes it can.
    window = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--num_generations", "8")
    assert launched(*window, "--num_processes", "8").training_script_args == list(window)


def test_a_misspelt_argument_is_refused_before_anything_starts(capsys):
    message = refusal(capsys, "train", "--learning_rat", "1e-5")
    assert "There is no argument --learning_rat." in message
    assert message.endswith("Did you mean '--learning_rate'?")


def test_a_stray_word_is_refused(capsys):
    assert "oops is an argument of neither" in refusal(capsys, "train", "oops", "--max_steps", "2")


def test_a_value_of_the_wrong_type_is_refused_in_two_lines(capsys):
    assert refusal(capsys, "train", "--max_steps", "many").endswith("invalid int value: 'many'")


def test_fire_opd_train_trains(tmp_path):
    """The smoke recipe as it stands, which needs no other argument."""
    code, output = run_killably(
        [
            *(sys.executable, "-m", "fire_opd_trl.cli", "train", "--accelerate_config", "cpu", "--config", "smoke"),
            *("--num_cpu_threads_per_process", "1", "--output_dir", str(tmp_path / "student")),
        ],
        HF_HOME=str(tmp_path / "hf"),
    )
    assert code == 0, output
    assert "step 2/2  loss" in output and "fire/keep_ratio" not in output and "reward 0" not in output
    assert json.loads((tmp_path / "student" / "run.json").read_text())["status"] == "finished"
    assert (tmp_path / "student" / "model.safetensors").is_file()
    card = (tmp_path / "student" / "README.md").read_text()
    assert "FiRe-OPD" in card and "2606.02684" in card


@pytest.mark.launch
def test_a_wrong_value_ends_in_one_sentence_and_an_exit_code():
    """On two ranks, which both refuse it: it is said once, and torchrun has nothing to add."""
    where = ["--accelerate_config", str(SUPPORT / "zero3_cpu.yaml"), "--main_process_port", str(free_port())]
    code, output = run_killably(
        [
            *(sys.executable, "-m", "fire_opd_trl.cli", "train", *where, "--config", "smoke"),
            *("--drop_fraction", "1.5"),
        ]
    )
    assert code == 2
    assert "Traceback" not in output and output.count("error:") == 1
    assert output.endswith(
        "fire-opd train: error: drop_fraction=1.5 is refused. Give a share in [0, 1), for example 0.2; 0 keeps every "
        "row.\n"
    )


def test_machines_of_unknown_place_are_refused_instead_of_waited_for(launched, capsys, tmp_path):
    several = ("train", "--config", "smoke", "--accelerate_config", "multinode_zero3")
    rank = "--machine_rank (0 on the first machine, 1 on the next)"
    where = "--main_process_ip (the first one's address)"
    assert refusal(capsys, *several).endswith(f"2 machines need {rank} and {where}.")
    more = refusal(capsys, *several, "--num_machines", "4", "--main_process_ip", "10.0.0.1")
    assert more.endswith(f"4 machines need {rank}.")
    launch = launched(*several[1:], "--machine_rank", "0", "--main_process_ip", "10.0.0.1")
    assert (launch.machine_rank, launch.main_process_ip) == (0, "10.0.0.1")
    whole = tmp_path / "whole.yaml"  # a file may name both
    whole.write_text(several_machines(machine_rank=1, main_process_ip="10.0.0.1"))
    assert launched("--config", "smoke", "--accelerate_config", str(whole)).machine_rank is None
    assert launched(*several[1:], "--num_machines", "1").num_machines == 1


def several_machines(**changes) -> str:
    """The packaged configuration for two machines, changed."""
    return yaml.safe_dump({**yaml.safe_load(ACCELERATE.joinpath("multinode_zero3.yaml").read_text()), **changes})


def test_accelerate_makes_of_two_machines_what_torchrun_needs(monkeypatch):
    """The real parser, and the real translation to torchrun."""
    seen = []
    monkeypatch.setattr("torch.distributed.run.run", seen.append)
    where = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--main_process_port", "29501")
    assert cli.main(["train", "--config", "smoke", "--accelerate_config", "multinode_zero3", *where]) == 0
    (torchrun,) = seen
    assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.node_rank) == ("2", "8", 1)
    assert (torchrun.rdzv_endpoint, torchrun.rdzv_backend) == ("10.0.0.1:29501", "static")


def machine(log: Path, environment: dict[str, str], argv: list[str]) -> None:
    """One machine: `fire-opd *argv`, in a process that is forked from this one, since its imports take seconds."""
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    os.environ.update(environment)
    code = cli.main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.launch
def test_two_machines_train_together(tmp_path):
    """`fire-opd train` twice on this one, as two machines with a rank each, by ZeRO-3 on the CPU over 127.0.0.1."""
    from fire_opd_trl.demo.task import dataset

    dataset("train", 32).to_parquet(tmp_path / "data" / "train.parquet")
    (tmp_path / "machines.yaml").write_text(several_machines(num_processes=2, use_cpu=True, mixed_precision="no"))
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path / "hf")}
    port, machines, logs = str(free_port()), [], [tmp_path / "log0", tmp_path / "log1"]
    try:
        for rank, log in enumerate(logs):
            argv = [
                *("train", "--config", "smoke", "--accelerate_config", str(tmp_path / "machines.yaml")),
                *("--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", port),
                *("--model_name_or_path", str(MODELS / "student"), "--dataset_name", str(tmp_path / "data")),
                *("--teacher_model_name_or_path", str(MODELS / "teacher"), "--output_dir", str(tmp_path / "out")),
                *("--ddp_timeout", "20"),
            ]
            machines.append(multiprocessing.get_context("fork").Process(target=machine, args=(log, environment, argv)))
            machines[-1].start()
        end = time.monotonic() + HARD_KILL_SECONDS
        for one in machines:
            one.join(max(0, end - time.monotonic()))
        codes, said = [one.exitcode for one in machines], [log.read_text() for log in logs]
    finally:
        for one in machines:
            kill(one)  # with all that it started
            one.join()
    assert codes == [0, 0], "\n".join(text[-4000:] for text in said)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "finished"
    assert (run["world"]["processes"], run["world"]["distributed"]) == (2, "DEEPSPEED")
    assert "step 2/2  loss" in said[0] and "step 2/2" not in said[1]  # the first machine speaks
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_refusal_of_the_launcher_is_a_sentence_too(monkeypatch, capsys):
    def refuse(arguments):
        raise ValueError("You can only use one of `--cpu` and `--multi_gpu` at a time.")

    monkeypatch.setattr("accelerate.commands.launch.launch_command", refuse)
    assert "only use one of" in refusal(capsys, "train", "--config", "smoke")


def test_a_run_that_fails_names_the_checkpoint_in_the_folder_of_its_recipe(monkeypatch, capsys, tmp_path):
    def fail(arguments):
        raise subprocess.CalledProcessError(-9, "python")

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "outputs" / "smoke" / "checkpoint-5" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    assert cli.main(["train", "--config", "smoke"]) == 137
    assert capsys.readouterr().err == (
        "\nfire-opd train: the run was killed by SIGKILL, most often for want of memory. The last checkpoint is "
        "outputs/smoke/checkpoint-5; the same command with --resume_from_checkpoint true goes on from it.\n"
    )
    assert cli.main(["train", "--config", "smoke", "--output_dir", "elsewhere"]) == 137
    assert "There is no checkpoint in elsewhere yet" in capsys.readouterr().err
