"""The examples run as they are shipped: the script under accelerate, the notebook in a kernel of its own."""

import json
import re
import runpy
import shlex
import signal
import sys
import sysconfig
from importlib.machinery import PathFinder

import nbformat
import pytest
import yaml
from support.launches import run_killably
from support.notebook import NOTEBOOK, executed, pictures

import fire_opd_trl
from fire_opd_trl.demo import task
from fire_opd_trl.preflight import packaged


EXAMPLES = packaged.packaged_folder("examples")
CONFIGS = packaged.packaged_folder("configs")
MODELS = packaged.packaged_folder("demo") / "models"
SCRIPT = EXAMPLES / "train_fire.py"
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--gradient_accumulation_steps", "8"]
STUDENT = ["--model_name_or_path", str(MODELS / "student")]
TEACHER = ["--teacher_model_name_or_path", str(MODELS / "teacher")]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with the demo's problems as JSONL, Parquet, and a folder of two splits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("sys.path", list(sys.path))  # the script adds the working directory
    monkeypatch.chdir(tmp_path)
    task.dataset("train", 32).to_json(tmp_path / "addition.jsonl")
    task.dataset("train", 16).to_parquet(tmp_path / "addition.parquet")
    (tmp_path / "splits").mkdir()
    task.dataset("train", 8).to_json(tmp_path / "splits" / "train.jsonl")
    task.dataset("test", 4).to_json(tmp_path / "splits" / "test.jsonl")
    return tmp_path


class Built(Exception):
    """Carries what the trainer would have been built with."""


def run(*argv: str):
    """`main` of the script with the arguments of a command line."""
    module = packaged.load_module(SCRIPT)
    module.main(*module.make_parser().parse_args_and_config([*ON_CPU, *argv]))


@pytest.fixture
def built(data, monkeypatch):
    """What the trainer is built with, by `train_fire.py *argv`."""

    def trainer(**kwargs):
        raise Built(kwargs)

    monkeypatch.setattr(fire_opd_trl, "FiReOPDTrainer", trainer, raising=False)

    def build(*argv: str) -> dict:
        with pytest.raises(Built) as caught:
            run(*STUDENT, *TEACHER, *argv)
        return caught.value.args[0]

    return build


def test_the_script_trains_under_accelerate_launch(data):
    code, output = run_killably(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", str(SCRIPT)),
            *("--config", str(CONFIGS / "recipes" / "smoke.yaml"), *STUDENT, *TEACHER),
            *("--dataset_name", str(data / "addition.jsonl"), "--output_dir", str(data / "student")),
            *("--reward_funcs", "fire_opd_trl.demo.task.exact_match"),
        ],
        HF_HOME=str(data / "hf"),
    )
    assert code == 0, output
    assert len(re.findall(r"^step \d/2  loss", output, re.MULTILINE)) == 2  # two steps, each logged
    assert "  reward 0." in output or "  reward 1." in output

    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = AutoModelForCausalLM.from_pretrained(data / "student", dtype="float32")
    before = AutoModelForCausalLM.from_pretrained(MODELS / "student", dtype="float32").state_dict()
    assert any((value != before[name]).any() for name, value in student.state_dict().items())
    assert AutoTokenizer.from_pretrained(data / "student").get_vocab()
    card = (data / "student" / "README.md").read_text()
    assert "\n# student\n" in card and "FiRe-OPD" in card and "2606.02684" in card and "None" not in card
    assert str(data) not in card


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([*TEACHER, "--dataset_name", "x"], "There is no student. Set --model_name_or_path"),
        ([*STUDENT, "--dataset_name", "x"], "There is no teacher. Set --teacher_model_name_or_path"),
        ([*STUDENT, *TEACHER], "There is no dataset. Set --dataset_name"),
        (
            [*STUDENT, *TEACHER, "--dataset_name", "addition.jsonl", "--eval_strategy", "steps", "--eval_steps", "1"],
            "dataset_test_split='test' is no split of the dataset. It has: train.",
        ),
        (
            [*STUDENT, *TEACHER, "--dataset_name", "splits", "--dataset_train_split", "training"],
            "dataset_train_split='training' is no split of the dataset. It has: train, test.",
        ),
        (
            [*STUDENT, *TEACHER, "--dataset_name", "addition.jsonl", "--reward_funcs", "accuracy_reward"],
            "reward_funcs: 'accuracy_reward' does not import (No module named 'accuracy_reward'). Give module",
        ),
        (
            [*STUDENT, *TEACHER, "--dataset_name", "addition.jsonl", "--reward_funcs", "trl.rewards.accurate"],
            "reward_funcs: 'trl.rewards.accurate' does not import",
        ),
        (
            [*STUDENT, *TEACHER, "--dataset_name", "addition.jsonl", "--reward_funcs", "fire_opd_trl.demo.task"],
            "reward_funcs: 'fire_opd_trl.demo.task' is a module. Name a function inside it.",
        ),
        (
            [*STUDENT, *TEACHER, "--dataset_name", "addition.jsonl", "--reward_coef", "0.5", "--num_generations", "4"],
            "reward_coef=0.5 has no reward to read. Pass reward_funcs, or set it to 0.",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_a_sentence(data, argv, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(*argv)


def test_two_datasets_are_refused(data):
    (data / "recipe.yaml").write_text(yaml.safe_dump({"datasets": [{"path": "splits"}]}))
    with pytest.raises(ValueError, match="Two datasets: dataset_name='addition.jsonl' and the list `datasets`"):
        run("--config", "recipe.yaml", *STUDENT, *TEACHER, "--dataset_name", "addition.jsonl")


@pytest.fixture
def as_a_script(monkeypatch, capsys):
    """`train_fire.py *argv` in this process: what it says when it ends early with an exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*argv: str, code: int = 2) -> str:
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *ON_CPU, *argv])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert exit.value.code == code
        return " ".join(capsys.readouterr().err.splitlines())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["--drop_fraction", "1.5"],
            "drop_fraction=1.5 is refused. Give a share in [0, 1), for example 0.2; 0 keeps every row.",
        ),
        (["--config", "typo.yaml"], "typo.yaml: there is no argument drop_fractoin. Did you mean 'drop_fraction'?"),
        (["--config", "absent.yaml"], "--config absent.yaml: there is no such file."),
        (["--num_processes", "2"], "There is no argument --num_processes. "),
    ],
)
def test_a_wrong_command_line_ends_without_a_traceback(tmp_path, monkeypatch, as_a_script, argv, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("drop_fractoin: 0.3\n")
    said = as_a_script(*argv)
    assert said.startswith("usage: train_fire.py") and sentence in said


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([*TEACHER], "train_fire.py: error: There is no student. Set --model_name_or_path"),
        ([*TEACHER, "--model_name_or_path", "nobody/nothing"], "nobody/nothing"),
        ([*STUDENT, *TEACHER, "--resume_from_checkpoint", "true"], "='true': there is no checkpoint in"),
    ],
)
def test_what_is_wrong_before_training_ends_without_a_traceback(data, as_a_script, argv, sentence):
    said = as_a_script("--dataset_name", "addition.jsonl", *argv)
    assert sentence in said and said.count("error:") == 1


def test_a_bug_keeps_its_traceback(data, monkeypatch, as_a_script):
    def trainer(**kwargs):
        int("a bug")

    monkeypatch.setattr(fire_opd_trl, "FiReOPDTrainer", trainer, raising=False)
    with pytest.raises(ValueError, match="a bug"):
        as_a_script(*STUDENT, *TEACHER, "--dataset_name", "addition.jsonl")


def test_true_resumes_from_the_last_checkpoint(data, capsys):
    run_of = ["--config", "smoke", *STUDENT, *TEACHER, "--dataset_name", "addition.jsonl", "--output_dir", "out"]
    steps = ["--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    run(*run_of, *steps)
    assert (data / "out" / "checkpoint-1").is_dir()
    capsys.readouterr()
    run(*run_of, *steps[2:], "--max_steps", "2", "--resume_from_checkpoint", "true")
    assert re.findall(r"^step (\S+)  loss", capsys.readouterr().out, re.MULTILINE) == ["2/2"]  # one step was left
    assert (data / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("name", "rows"), [("addition.jsonl", 32), ("addition.parquet", 16), ("splits", 8), ("splits/train.jsonl", 8)]
)
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_local_files_and_folders_are_datasets(built, name, rows, streaming):
    dataset = built("--dataset_name", name, "--dataset_streaming", streaming)["train_dataset"]
    assert len(list(dataset)) == rows and next(iter(dataset)).keys() == {"prompt", "answer"}


def test_a_mixture_in_the_yaml_file_is_a_dataset(built, data):
    mixture = [{"path": "json", "data_files": "addition.jsonl"}, {"path": "splits", "split": "train"}]
    (data / "recipe.yaml").write_text(yaml.safe_dump({"datasets": mixture}))
    assert len(built("--config", "recipe.yaml")["train_dataset"]) == 32 + 8


def test_the_evaluation_split_is_read_only_for_evaluation(built):
    assert built("--dataset_name", "splits")["eval_dataset"] is None
    evaluated = built("--dataset_name", "splits", "--eval_strategy", "steps", "--eval_steps", "1")
    assert len(evaluated["eval_dataset"]) == 4


def test_the_model_arguments_reach_the_models(built):
    kwargs = built(
        *("--dataset_name", "splits", "--dtype", "bfloat16", "--attn_implementation", "eager"),
        *("--model_revision", "v2", "--trust_remote_code", "true"),
        *("--model_init_kwargs", '{"dtype": "float16"}', "--teacher_model_init_kwargs", '{"device_map": "cpu"}'),
    )
    assert kwargs["model"] == str(MODELS / "student")
    assert kwargs["args"].teacher_model_name_or_path == str(MODELS / "teacher")
    assert kwargs["args"].model_init_kwargs == {
        "revision": "v2",
        "trust_remote_code": True,
        "attn_implementation": "eager",
        "dtype": "float16",  # the more particular setting wins
    }
    assert kwargs["args"].teacher_model_init_kwargs == {"attn_implementation": "eager", "device_map": "cpu"}
    assert kwargs["peft_config"] is None and kwargs["quantization_config"] is None


def test_lora_is_an_argument_away(built):
    kwargs = built("--dataset_name", "splits", "--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear")
    assert (kwargs["peft_config"].r, kwargs["peft_config"].target_modules) == (4, "all-linear")


def test_a_reward_may_lie_in_the_working_directory(built, data):
    (data / "rewards_of_this_test.py").write_text("def half(completions, **kwargs): return [0.5] * len(completions)\n")
    rewards = built(
        "--dataset_name", "splits", "--reward_funcs", "rewards_of_this_test.half", "trl.rewards.accuracy_reward"
    )
    assert [reward.__name__ for reward in rewards["reward_funcs"]] == ["half", "accuracy_reward"]


def test_a_function_may_be_named_by_its_file(built, data):
    (data / "mine.py").write_text(
        "def half(completions, **kwargs): return [0.5] * len(completions)\n"
        'def double(number: int) -> int:\n    """\n    Doubles.\n\n    Args:\n        number: What.\n    """\n'
        "    return 2 * number\n"
    )
    given = built(
        "--dataset_name", "splits", "--reward_funcs", "mine.py:half", "--tools", "mine.double", "mine.py:double"
    )
    assert [reward.__name__ for reward in given["reward_funcs"]] == ["half"]
    assert [tool(4) for tool in given["tools"]] == [8, 8]
    assert built("--dataset_name", "splits")["tools"] is None


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("gone.py:half", "tools: 'gone.py:half' does not import ([Errno 2] No such file or directory: "),
        ("mine.py:gone", "tools: 'mine.py:gone' does not import (module 'mine' has no attribute 'gone'). Give module"),
        (
            "mine.py:silent",
            "tools: 'mine.py:silent': Cannot generate JSON schema for silent because it has no docstring.",
        ),
        ("mine.py:untyped", "tools: 'mine.py:untyped': Argument x is missing a type hint in function untyped."),
        ("mine.py:NUMBER", "tools: 'mine.py:NUMBER' is a int. Name a function inside it."),
        ("broken.py:half", "tools: 'broken.py:half' does not import ("),
    ],
)
def test_a_tool_that_is_no_function_is_refused(data, path, sentence):
    (data / "mine.py").write_text(
        "NUMBER = 1\ndef silent(x: int): pass\n"
        'def untyped(x):\n    """\n    Does.\n\n    Args:\n        x: What.\n    """\n'
    )
    (data / "broken.py").write_text("def half(:\n")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(*STUDENT, *TEACHER, "--dataset_name", "splits", "--tools", path)


def test_the_launch_lines_of_the_docstring_exist():
    module = packaged.load_module(SCRIPT)
    lines = re.findall(r"^    (accelerate launch (?:.*\\\n)*.*)", module.__doc__, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        launch, arguments = shlex.split(line.replace("\\\n", " "))[2:4], shlex.split(line.replace("\\\n", " "))[5:]
        assert launch[0] == "--config_file" and (CONFIGS / launch[1].removeprefix("configs/")).is_file()
        if "--config" in arguments:
            at = arguments.index("--config")
            assert arguments[at + 1] in packaged.recipes()
            del arguments[at : at + 2]
        assert module.make_parser().parse_known_args(arguments)[1] == []


def printed(notebook, cell: str) -> str:
    (outputs,) = (one.outputs for one in notebook.cells if one.id == cell)
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def assert_learned(notebook) -> None:
    """What a reader is told of the run."""
    assert printed(notebook, "window").count("True") == 8  # of ten, floor(0.2 * 10) are dropped
    table = printed(notebook, "history")
    assert "fire/reverse_kl" in table and "fire/keep_ratio" in table and "NaN" not in table
    before, after = map(float, re.findall(r"\d\.\d+", printed(notebook, "accuracy")))
    assert after > before + 0.03
    for cell in ("picture", "history"):
        (picture,) = pictures(notebook, cell)
        assert picture.startswith(b"\x89PNG") and len(picture) > 5_000


def test_the_notebook_runs_and_the_student_learns():
    assert_learned(executed())


def test_the_notebook_is_kept_with_its_outputs_and_nothing_of_the_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    assert NOTEBOOK.stat().st_size < 300_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # once, from top to bottom
    assert all(cell.id and not cell.metadata for cell in notebook.cells)
    assert_learned(notebook)
    text = json.dumps(
        [{**output, "data": {**output.get("data", {}), "image/png": ""}} for cell in cells for output in cell.outputs]
    )
    for garbage in ("Warning", "WARNING", "Traceback", "\\r", "it/s", "\\u001b"):
        assert garbage not in text
    assert len(text) < 12_000 and re.findall(r"/(?:home|root|tmp|usr|Users)/[^\s\"]*", text) == []
    install = re.search(r"^pip install -e \.", (EXAMPLES.parent / "README.md").read_text(), re.MULTILINE)[0]
    assert f"    {install}\n" in notebook.cells[0].source  # a line of its own


def test_the_readme_has_every_file_in_its_table():
    table = (EXAMPLES / "README.md").read_text()
    files = {file.name for file in EXAMPLES.iterdir() if file.is_file()} - {"README.md", "__init__.py"}
    assert set(re.findall(r"\]\((\w+\.\w+)\)", table)) == files


def test_nothing_beside_the_script_hides_a_package_that_it_imports():
    """Python looks beside a script first: a package `datasets` in examples/ would be taken for Hugging Face's."""
    folder = SCRIPT.parent
    beside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert "train_fire" in beside
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    hidden = [name for name in beside - {"__init__"} if PathFinder.find_spec(name, installed)]
    assert hidden == []
