"""
Rollouts by a real vLLM server in a process of its own, on the CPU and the loopback interface: `make test-vllm`.

Everything but the last hop of the weights is what runs on GPUs: `trl vllm-serve`, vLLM's routes, TRL's client, vLLM's
reload. The tensors themselves travel through a TCPStore in place of NCCL (see `plugin/vllm_on_cpu.py`).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytest.importorskip("vllm_on_cpu", reason="tests/engine/plugin is not on PYTHONPATH: make test-vllm")

import psutil  # noqa: E402
import requests  # noqa: E402
import vllm_on_cpu  # noqa: E402
from support.folders import loaded  # noqa: E402
from support.launches import free_port  # noqa: E402

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path


STARTS_WITHIN = 180  # seconds
SMALL = 0.01  # nats: what bfloat16 differs from float32, in which the student trains


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a `trl vllm-serve` that is ready; its whole process group is killed afterwards."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    trl = str(Path(sys.executable).with_name("trl"))
    command = [trl, "vllm-serve", "--model", model_path("student"), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--max_model_len", "64", "--enforce_eager", "true"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        began = time.monotonic()
        while not answers(port):
            if process.poll() is not None or time.monotonic() - began > STARTS_WITHIN:
                pytest.fail(f"the server did not start:\n{log.read_text()[-6000:]}")
            time.sleep(0.5)
        yield port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except requests.exceptions.RequestException:
        return False


def trainer_on(port: int, folder, **config) -> FiReOPDTrainer:
    args = FiReOPDConfig(
        str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=256, max_steps=2, learning_rate=1e-3,
        max_completion_length=33, logging_steps=1, save_strategy="no", disable_tqdm=True, preflight=False,
        use_vllm=True, vllm_mode="server", vllm_server_host="127.0.0.1", vllm_server_port=port,
        vllm_group_port=free_port(), **config,
    )  # fmt: skip
    return FiReOPDTrainer(loaded("student"), loaded("teacher"), args, task.dataset("train", 1024, seed=0))


def test_the_server_listens_on_the_loopback_interface_alone(server):
    listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == server] == ["127.0.0.1"]


def test_without_a_gpu_the_client_says_that_weights_cannot_be_sent(server, tmp_path):
    """What is real on a CPU ends here: the next test replaces the transport, and nothing else."""
    with pytest.raises(NotImplementedError, match="needs a CUDA device"):
        trainer_on(server, tmp_path)


def test_it_trains_on_a_server_whose_weights_follow(server, tmp_path, monkeypatch):
    vllm_on_cpu.trainer_side(monkeypatch)
    trainer = trainer_on(server, tmp_path)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    # In the second window too, whose weights are those after the first step: stale ones differ by far more.
    assert [log["fire/sampling_gap"] < SMALL for log in logs] == [True, True], logs
    assert all(log["fire/sampling_unknown"] == 0 and log["fire/kept_rows"] > 0 for log in logs)
    # The same server, not told of the last step's weights.
    sync = trainer.vllm_generation.sync_weights
    monkeypatch.setattr(trainer.vllm_generation, "sync_weights", lambda: trainer.state.global_step or sync())
    with pytest.warns(UserWarning, match="step 1: .*its weights are stale.*--logprobs-mode processed_logprobs"):
        trainer.train()


def test_a_temperature_of_both_sides_is_no_mismatch_and_one_of_a_side_alone_is(server, tmp_path, monkeypatch):
    """`--logprobs-mode processed_logprobs`: the server's log-probabilities are of what it samples from."""
    vllm_on_cpu.trainer_side(monkeypatch)
    trainer = trainer_on(server, tmp_path, temperature=0.7)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert [log["fire/sampling_gap"] < SMALL for log in logs] == [True, True], logs
    monkeypatch.setattr(trainer.vllm_generation, "temperature", 1.0)
    with pytest.warns(UserWarning, match="temperature"):
        trainer.train()
