"""`fire-opd preflight` as a user runs it: the table, the exit code, with and without weights."""

import json
import shutil
import sys
import time

import pytest
from support.forks import Commands
from support.inspections import settings
from support.launches import run_killably
from transformers import AutoTokenizer

from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight import command


FIRE_OPD = [sys.executable, "-m", "fire_opd_trl.cli"]
SIZES = ["--max_completion_length", "33", "--gradient_accumulation_steps", "4"]


@pytest.fixture
def data(tmp_path):
    """Sixty-four additions in a file."""
    path = tmp_path / "addition.jsonl"
    task.dataset("train", 64, seed=0).to_json(path)
    return str(path)


@pytest.fixture
def teacher_folder(tmp_path):
    """A copy of the demo teacher that a test may change, without its weights."""
    folder = tmp_path / "a_teacher"
    shutil.copytree(model_path("teacher"), folder)
    (folder / "model.safetensors").unlink()
    return folder


COMMANDS = Commands()


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left():
    yield
    COMMANDS.close()


def words(data: str, teacher: str, *arguments: str) -> list[str]:
    models = ["--model_name_or_path", model_path("student"), "--teacher_model_name_or_path", teacher]
    return ["preflight", *models, "--dataset_name", data, *SIZES, *arguments, "--output_dir", "never"]


def preflight(data: str, teacher: str, *arguments: str) -> tuple[int, str]:
    return COMMANDS.run(*words(data, teacher, *arguments))


def test_a_command_in_a_fork_ends_as_one_that_is_started():
    for argv in (["--version"], ["nonsense"]):
        assert COMMANDS.run(*argv) == run_killably([*FIRE_OPD, *argv])


def said(output: str) -> str:
    """The table without its line breaks."""
    return " ".join(output.split())


def test_a_wrong_pair_is_found_in_under_30_seconds_without_weights(data, teacher_folder):
    path = teacher_folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["3"], vocabulary["7"] = vocabulary["7"], vocabulary["3"]
    path.write_text(json.dumps(tokenizer))
    started = time.monotonic()
    code, output = run_killably([*FIRE_OPD, *words(data, str(teacher_folder))])  # with its imports
    assert time.monotonic() - started < 30
    three = AutoTokenizer.from_pretrained(model_path("student")).convert_tokens_to_ids("3")
    assert code == 1 and "1 fault: training would not start." in output
    assert f"id {three} is '3' to the student and '7' to the teacher" in said(output)
    assert "dataset ok 64 rows" in said(output)  # one fault does not hide what else was checked


def test_a_right_pair_passes_without_weights_and_writes_nothing(data, teacher_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, output = preflight(data, str(teacher_folder))
    assert code == 0, output
    assert "Training can start; no warnings. Weights were not looked at: --with-models does." in output
    assert sorted(tmp_path.iterdir()) == before
    # bitsandbytes, if it is installed, has something to say of a CPU
    assert max(len(line) for line in output.splitlines() if not line.startswith("Failed to load CPU")) <= 118


def test_the_window_is_that_of_the_planned_run(data, teacher_folder):
    batch = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8"]
    code, output = preflight(data, str(teacher_folder), "--accelerate_config", "zero3", *batch)
    assert code == 0, output
    assert "64 trajectories = 8 processes x 1 x 8" in said(output)
    assert "fire drops 12 of 64 trajectories and updates on 52" in said(output) and "; sharded" in said(output)
    code, output = preflight(
        data, str(teacher_folder), "--num_processes", "2", "--teacher_placement", "sharded", *batch
    )
    assert code == 1 and "the student is whole on every rank" in said(output)
    assert "16 trajectories = 2 processes x 1 x 8" in said(output)


def test_a_wrong_setting_is_a_fault_and_an_unknown_argument_is_misuse(data, teacher_folder):
    code, output = preflight(data, str(teacher_folder), "--drop_fraction", "2")
    assert code == 1 and "drop_fraction=2.0 is refused" in output
    code, output = preflight(data, str(teacher_folder), "--drop_fractoin", "0.1")
    assert code == 2 and "There is no argument --drop_fractoin." in output and "student" not in output


def test_with_models_says_how_far_teacher_and_student_are_apart(data):
    code, output = preflight(data, model_path("teacher"), "--with-models")
    assert code == 0, output
    text = said(output)
    assert "teacher, answers ok mean log-probability of a token -0." in text and "guessing would be -2.77" in text
    assert "where teacher first finds a token less likely than the student" in text and " then '" in text
    assert "Training can start; no warnings.\n" in output


def test_with_models_finds_weights_that_know_nothing(data, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path / "guesses"
    shutil.copytree(model_path("teacher"), folder)
    config = Qwen3Config.from_pretrained(folder, initializer_range=0.2)
    Qwen3ForCausalLM(config).save_pretrained(folder)  # its tokenizer and config are right, its weights random
    assert preflight(data, str(folder))[0] == 0
    code, output = preflight(data, str(folder), "--with-models")
    assert code == 1 and "The teacher finds the answers no likelier than guessing" in said(output)


@pytest.fixture
def two_teachers(tmp_path):
    """A YAML file with two teachers, and its dataset."""
    rows = [{"prompt": f"{a}+{a}=", "teacher_id": "ab"[a % 2], "teacher_prompt": f"{a}={a}+{a}="} for a in range(64)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model_name_or_path": model_path("student"),
        "teacher_model_name_or_path": {"a": model_path("teacher"), "b": model_path("student")},
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "max_completion_length": 33,
        "per_device_train_batch_size": 16,
        "max_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "two.yaml").write_text(json.dumps(config))  # JSON is YAML
    return tmp_path


def test_two_teachers_from_a_yaml_file(two_teachers):
    code, output = COMMANDS.run("preflight", "--config", str(two_teachers / "two.yaml"))
    assert code == 0, output
    assert "`teacher_id`: a 32, b 32" in output and "and as teacher b sees it:" in output
    assert "one of its own in 32 of 32 rows" in output


def test_two_teachers_from_the_command_line_replace_those_of_the_file(two_teachers):
    teachers = json.dumps({"a": model_path("teacher"), "c": model_path("teacher")})
    command = ["preflight", "--config", str(two_teachers / "two.yaml")]
    code, output = COMMANDS.run(*command, "--teacher_model_name_or_path", teachers)
    assert code == 1
    assert "row 1: `teacher_id` is 'b'. Each row names one of: a, c." in said(output)


def test_two_teachers_train_from_a_yaml_file_and_training_begins_with_the_table(two_teachers):
    code, output = run_killably(
        [*FIRE_OPD, "train", "--accelerate_config", "cpu", "--config", str(two_teachers / "two.yaml")]
    )
    assert code == 0, output
    assert output.count("`teacher_id`: a 32, b 32") == 1
    metrics = (two_teachers / "out" / "metrics.jsonl").read_text()
    assert '"fire/a/keep_ratio"' in metrics and '"fire/b/reverse_kl"' in metrics
    assert (two_teachers / "out" / "model.safetensors").is_file()


def test_preflight_can_be_switched_off(two_teachers):
    command = [*FIRE_OPD, "train", "--accelerate_config", "cpu", "--config", str(two_teachers / "two.yaml")]
    code, output = run_killably([*command, "--preflight", "false"])
    assert code == 0 and "trajectories = 1 process" not in output


@pytest.fixture
def broken_teacher(tmp_path):
    """`broken_teacher(how)`: a copy of the demo teacher whose tokenizer and config are right, and weights are not."""
    import torch
    from transformers import AutoModelForCausalLM

    def make(how: str) -> str:
        folder = tmp_path / how
        shutil.copytree(model_path("teacher"), folder)
        if how == "nan":
            model = AutoModelForCausalLM.from_pretrained(folder)
            with torch.no_grad():
                model.model.norm.weight.fill_(torch.nan)
            model.save_pretrained(folder)
        else:
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        return str(folder)

    return make


@pytest.mark.parametrize(("how", "what"), [("nan", "NaN or infinite"), ("cut", "SafetensorError")])
def test_with_models_says_of_broken_weights_that_they_are(data, broken_teacher, how, what):
    code, output = preflight(data, broken_teacher(how), "--with-models")
    assert code == 1 and "models fault" in said(output) and what in output and "Traceback" not in output


def test_with_models_writes_nothing_and_tries_any_placement(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    planned = ["--accelerate_config", "zero3", "--teacher_placement", "sharded"]
    sizes = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8", "--push_to_hub", "true"]
    code, output = preflight(data, model_path("teacher"), *planned, *sizes, "--with-models")
    assert code == 0, output
    assert "; sharded" in said(output) and sorted(tmp_path.iterdir()) == before


def test_what_is_tried_needs_no_engine_and_no_placement():
    args = settings(use_vllm=True, teacher_placement="sharded", push_to_hub=True, report_to=["wandb"])
    args = command.arguments_to_try({"args": args, "peft_config": None, "quantization_config": True}, "folder")["args"]
    assert (args.use_vllm, args.teacher_placement, args.push_to_hub, args.report_to) == (False, "auto", False, [])


def test_a_deepspeed_file_says_whether_the_run_is_sharded(data, teacher_folder, tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    run = {"distributed_type": "DEEPSPEED", "num_processes": 2}
    run["deepspeed_config"] = {"deepspeed_config_file": str(tmp_path / "ds.json")}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    sharded = ["--teacher_placement", "sharded", "--main_process_port", "29999"]  # an option of accelerate
    code, output = preflight(data, str(teacher_folder), "--accelerate_config", str(tmp_path / "run.yaml"), *sharded)
    assert code == 0 and "; sharded" in said(output)


@pytest.mark.parametrize("text", ["", "{", '{"question": "1+1="}'])
def test_a_dataset_that_cannot_be_read_is_a_fault(tmp_path, teacher_folder, text):
    (tmp_path / "rows.jsonl").write_text(text)
    code, output = preflight(str(tmp_path / "rows.jsonl"), str(teacher_folder))
    assert code == 1 and "fault" in output and "Traceback" not in output


def test_nothing_is_said_of_the_filter_of_a_default_in_place_of_a_wrong_method(data):
    code, output = preflight(data, model_path("teacher"), "--method", "opdd")
    assert code == 1 and "method='opdd' is refused" in said(output) and "window ok" in said(output)
    assert "fire drops" not in said(output) and "filter" not in output.split("window")[1]
