"""Wrong flags, missing files, bad YAML: every command says so in a line, with exit code 2, before it loads a model."""

import re

import pytest

from fire_opd_trl import cli


FILES = {
    "bad.yaml": b"a: [1\nb: }",
    "list.yaml": b"- 1\n- 2\n",
    "unknown.yaml": b"learning_rat: 1\n",
    "binary.yaml": b"\xff\xfe\x00",
    "types.yaml": b"extends: smoke\nmodel_name_or_path: [1, 2]\n",
}
AS_TRAIN = ("train", "preflight", "plan")  # they take the arguments of `train`
# A command line, and what its one line must say.
CASES = [
    *((f"{verb} --no_such_flag 1", "no_such_flag") for verb in cli.COMMANDS if verb != "data"),
    *((f"{verb} --config missing.yaml", "missing.yaml: there is no such file") for verb in AS_TRAIN),
    *((f"{verb} --config no-such-recipe", "no-such-recipe is neither a file nor a recipe") for verb in AS_TRAIN),
    *((f"{verb} --config bad.yaml", "bad.yaml is no YAML file: line 2") for verb in AS_TRAIN),
    *((f"{verb} --config list.yaml", "list.yaml holds a list") for verb in AS_TRAIN),
    *((f"{verb} --config binary.yaml", "binary.yaml cannot be read") for verb in AS_TRAIN),
    *((f"{verb} --config types.yaml", "model_name_or_path is [1, 2]. It takes no list.") for verb in AS_TRAIN),
    *((f"{verb} --config", "--config needs") for verb in AS_TRAIN),
    *(
        (f'{verb} --config smoke --teacher_model_name_or_path {{"a":"S"', '{"a":"S"\' is not JSON: Expecting')
        for verb in AS_TRAIN
    ),
    *((f"{verb} --config smoke --max_steps many", "invalid int value: 'many'") for verb in AS_TRAIN),
    *((f"{verb} --config smoke --accelerate_config zero4", "zero4 is neither a file nor one of") for verb in AS_TRAIN),
    *((f"{verb} --config smoke --accelerate_config bad.yaml", "bad.yaml cannot be read as YAML") for verb in AS_TRAIN),
    *((f"{verb} --config smoke --accelerate_config binary.yaml", "cannot be read as YAML") for verb in AS_TRAIN),
    *((f"{verb} --config smoke --accelerate_config list.yaml", "no configuration of accelerate") for verb in AS_TRAIN),
    *((f"{verb} --config smoke --accelerate_config unknown.yaml", "no distributed_type") for verb in AS_TRAIN),
    ("train --config unknown.yaml", "there is no argument learning_rat. Did you mean 'learning_rate'?"),
    ("train --config smoke --num_machines 2", "2 machines need --machine_rank"),
    ("plan --config unknown.yaml", "there is no argument learning_rat"),
    ("inspect", "which run?"),
    ("inspect no_such_run", "no_such_run is no run: there is no such folder"),
    ("inspect .", "it holds no run.json"),
    ("inspect --student x", "--teacher and --prompts missing"),
    ("evaluate --model no_such --tasks embedded", "--model no_such: there is no such folder"),
    ("evaluate --model no_such --tasks no_such_task", "There is no task 'no_such_task'"),
    ("evaluate --config missing.yaml", "No such file or directory: 'missing.yaml'"),
    ("evaluate --config bad.yaml", "--config bad.yaml: it cannot be read as YAML"),
    ("evaluate --config list.yaml", "--config list.yaml: it must hold options"),
    ("evaluate --config unknown.yaml", "there is no option 'learning_rat'"),
    ("evaluate --n x", "'x' is no whole number"),
    ("compare --preset nope", "there is no preset 'nope'"),
    ("compare --seeds x", "invalid int value: 'x'"),
    ("demo --steps x", "invalid int value: 'x'"),
    ("demo --output_dir bad.yaml", "--output_dir bad.yaml: no such folder can be made (File exists). Name another."),
    ("demo --output_dir bad.yaml/x", "bad.yaml/x: no such folder can be made (Not a directory)"),
    ("demo --export bad.yaml", "--export bad.yaml: it is a file. Name a folder that is not there yet."),
    ("demo --method nope", "there is no method 'nope'"),
    ("recipes nope", "nope is neither a file nor a recipe"),
    ("methods nope", "there is no method 'nope'"),
    ("env x", "unrecognized arguments: x"),
    ("data nope", "there is no command 'nope'"),
    ("data check missing.jsonl", "FILE='missing.jsonl': no such file"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with files that are no good, where no model can be loaded and nothing starts."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)

    def never(*args, **kwargs):
        raise AssertionError("a model was loaded, or a run was started")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", never)
    monkeypatch.setattr("accelerate.commands.launch.launch_command", never)


@pytest.mark.parametrize(("line", "said"), CASES, ids=[line for line, _ in CASES])
def test_what_is_wrong_is_said_in_one_line(line, said, folder, capsys):
    try:
        code = cli.main(line.split())
    except SystemExit as exit:
        code = exit.code
    output, errors = capsys.readouterr()
    messages = [one for one in errors.splitlines() if not re.match("usage: |  |Failed to load CPU gemm", one)]
    assert (code, output, len(messages)) == (2, "", 1), errors
    assert messages[0].startswith(f"fire-opd {line.split()[0]}") and said in messages[0]


def test_every_command_is_misused_here():
    assert {line.split()[0] for line, _ in CASES} == set(cli.COMMANDS)
