"""What all tests share: offline, quiet, one thread; launches of several ranks that cannot hang."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    TOKENIZERS_PARALLELISM="false",
    PYTHONWARNINGS="ignore::FutureWarning",
)

import pytest  # noqa: E402
import torch  # noqa: E402


LAUNCH = Path(__file__).parent / "support"
HARD_KILL_SECONDS = 240

torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_killably(command: list[str], timeout: float = HARD_KILL_SECONDS, **environment: str):
    """Run a command in a process group of its own; at the timeout the whole group is killed and the test fails."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"killed after {timeout} s: {' '.join(command)}\n{output[-4000:]}")
    return process.returncode, output


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
LAUNCHERS = {
    "ddp": TORCHRUN,
    "fsdp2": TORCHRUN,
    "zero2": [*ACCELERATE, str(LAUNCH / "zero2_cpu.yaml"), "--main_process_port"],
    "zero3": [*ACCELERATE, str(LAUNCH / "zero3_cpu.yaml"), "--main_process_port"],
}
FSDP2_ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.fixture
def on_two_ranks(tmp_path):
    """`on_two_ranks("zero3", case)`: train a case of `support/worker.py` on two real ranks; its result."""

    def launch(launcher: str, case: dict) -> dict:
        output = tmp_path / f"{launcher}-{len(list(tmp_path.iterdir()))}.pt"
        command = [*LAUNCHERS[launcher], str(free_port()), str(LAUNCH / "worker.py")]
        case = {**case, "fsdp2": launcher == "fsdp2"}
        environment = FSDP2_ENVIRONMENT if launcher == "fsdp2" else {}
        code, log = run_killably([*command, json.dumps(case), str(output)], **environment)
        assert code == 0, log[-6000:]
        result = torch.load(output, weights_only=False)
        expected = {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}.get(launcher, "DEEPSPEED")
        assert (result["world_size"], result["distributed_type"]) == (2, expected)
        assert result["zero_stage"] == {"zero2": 2, "zero3": 3}.get(launcher, 0)
        return result

    return launch
