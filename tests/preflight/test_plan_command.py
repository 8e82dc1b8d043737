"""`fire-opd plan` as a user runs it, in this process."""

import json
from dataclasses import replace

import pytest
from support.commands import refusal
from support.plans import EXACT, RUN

from fire_opd_trl import cli
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight import command
from fire_opd_trl.preflight.findings import Checked
from fire_opd_trl.preflight.plan.fit import Plan
from fire_opd_trl.preflight.plan.hardware import HARDWARE


MODELS = ["--model_name_or_path", model_path("student"), "--teacher_model_name_or_path", model_path("teacher")]


def plan(capsys, *argv: str) -> tuple[int, str]:
    code = cli.main(["plan", *argv])
    return code, capsys.readouterr().out


def test_the_recipe_of_the_paper_is_planned_without_a_network(capsys):
    arguments = ("--config", "strong-to-weak", "--accelerate_config", "zero3", "--steps", "165", "--price", "2")
    code, output = plan(capsys, *arguments, "--json")
    told = json.loads(output)
    assert code == 0 and told["fits"] and told["steps"] == 165
    assert told["title"].startswith("Qwen3-4B from Qwen3-30B-A3B-Instruct-2507, 8 x h100, ZeRO-3, vLLM")
    assert told["money"] == pytest.approx(2 * told["card_hours"]) == pytest.approx(16 * told["hours"])
    options = {assumption["option"]: assumption["value"] for assumption in told["assumptions"]}
    assert options["--mean_completion"] == "4096"  # a quarter of 16384


def test_local_folders_and_the_options_of_a_plan(capsys):
    code, output = plan(capsys, *MODELS, "--hardware", "rtx4090", "--mean_completion", "20", "--spread", "0.1")
    assert code == 0 and "1 x rtx4090, one process, rollouts by transformers" in output
    assert "20 tokens in the mean" in output and "--spread 0.1" in output and "given" in output
    assert max(map(len, output.splitlines())) <= 100


def test_what_does_not_fit_has_exit_code_1_and_a_proposal(capsys):
    big = [
        "--model_name_or_path",
        "Qwen/Qwen3-32B",
        "--teacher_model_name_or_path",
        "Qwen3-32B",
        "--dtype",
        "bfloat16",
    ]
    code, output = plan(capsys, *big, "--hardware", "rtx4090", "--fit")
    assert code == 1 and "Does not fit on 1 x rtx4090" in output.replace("\n", " ") and "# Nothing fits" in output


@pytest.mark.parametrize(
    "argv, said",
    [
        (("--hardware", "h1000", *MODELS), "neither a file nor one of: h100, h200"),
        (("--config", "strong-to-wek"), "Did you mean 'strong-to-weak'?"),
        (("--accelerate_config", "zero33", *MODELS), "Did you mean 'zero3'?"),
        (("--num_processes", "0", *MODELS), "--num_processes is 0. Give a number above 0."),
        (("--price", "-1", *MODELS), "--price is -1.0. Give a number above 0."),
        (("--learning_rat", "1", *MODELS), "Did you mean '--learning_rate'?"),
        (("--hardwar", "h100", *MODELS), "Did you mean '--hardware'?"),
        (("--output", "x.yaml", *MODELS), "--output names the file of --calibrate"),
        (("--calibrate", "--method", "opd"), "takes no --method"),
        (("--json", "--markdown"), "not allowed with argument"),
        (("--method", "opd"), "There is no student"),
        (("--model_name_or_path", "no/where", *MODELS[2:]), "no/where"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_in_a_line(capsys, monkeypatch, argv, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert said in refusal(capsys, "plan", *argv)


def test_what_is_proposed_can_be_planned_and_is_what_was_proposed(capsys):
    paper = ["--config", "strong-to-weak", "--accelerate_config", "zero3", "--num_processes", "4", "--json"]
    large = ["--steps_per_generation", "64", "--max_completion_length", "4096", "--per_device_train_batch_size", "32"]
    code, output = plan(capsys, *paper, *large, "--gradient_checkpointing", "false", "--fit")
    proposed = json.loads(output)["proposed"]
    assert code == 1 and proposed["steps_per_generation"] >= proposed["gradient_accumulation_steps"]
    words = [word for name, value in proposed.items() for word in (f"--{name}", str(value))]
    assert plan(capsys, *paper, *large, *words)[0] == 0


def test_a_proposal_changes_no_more_than_it_must(capsys):
    paper = ["--config", "strong-to-weak", "--accelerate_config", "zero3", "--json", "--fit"]
    _, output = plan(capsys, *paper, "--vllm_gpu_memory_utilization", "0.05")
    assert set(json.loads(output)["proposed"]) <= {"vllm_gpu_memory_utilization", "scoring_token_budget"}


def test_a_run_on_the_cpu_is_planned_for_the_cpu(capsys):
    assert "1 x cpu" in plan(capsys, *MODELS, "--use_cpu", "true")[1]


def test_bad_yaml_is_said_in_a_line(capsys, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("method: [fire")
    assert "bad.yaml is no YAML file: line 1, column 14" in refusal(capsys, "plan", "--config", str(file))
    listed = tmp_path / "listed.yaml"
    listed.write_text("{distributed_type: DEEPSPEED, deepspeed_config: [1]}")
    said = refusal(capsys, "plan", *MODELS, "--accelerate_config", str(listed))
    assert "deepspeed_config: [1]. It must hold settings" in said
    assert "bad.yaml" in refusal(capsys, "plan", *MODELS, "--accelerate_config", str(file))


@pytest.mark.parametrize("bytes_of_card, outcome", [(10**12, "ok"), (10, "warning")])
def test_preflight_has_a_line_for_the_plan(monkeypatch, bytes_of_card, outcome):
    card = replace(HARDWARE["h100"], memory=bytes_of_card)
    monkeypatch.setattr(command, "plan_of_arguments", lambda *given, **said: Plan(RUN, card, EXACT))
    checked = Checked()
    command.record_plan({}, None, 8, checked)
    (finding,) = checked.findings
    assert (finding.subject, finding.outcome) == ("plan", outcome) and "8 x h100" in finding.text


def test_preflight_says_why_there_is_no_plan(monkeypatch):
    def broken(*given, **said):
        raise KeyError("layers")

    monkeypatch.setattr(command, "plan_of_arguments", broken)
    checked = Checked()
    command.record_plan({}, None, 8, checked)
    (finding,) = checked.findings
    assert finding.outcome == "warning" and "none could be made: KeyError: 'layers'" in finding.text
