"""The command lines of `vllm serve` in the job files, read by vLLM's own parser: `make test-vllm`."""

import pytest


pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import yaml  # noqa: E402
from support.cluster import run_job  # noqa: E402
from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402

from fire_opd_trl.preflight.packaged import packaged_folder


CONFIGS = packaged_folder("configs")


@pytest.fixture(scope="module")
def read():
    """What vLLM reads in the words of a command line."""
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    return parser.parse_args


def test_vllm_takes_the_options_of_the_slurm_job(read, tmp_path):
    job = run_job(CONFIGS / "slurm" / "two_nodes_vllm_server.sbatch", tmp_path)
    check(read, job.calls("vllm"), "10.0.0.1")


def test_vllm_takes_the_options_of_the_skypilot_task(read, tmp_path):
    task = yaml.safe_load((CONFIGS / "skypilot" / "two_nodes_vllm_server.yaml").read_text())
    (tmp_path / "run.sh").write_text(task["run"])
    native = {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3", "SKYPILOT_TASK_ID": "1"}
    output = {"OUTPUT_DIR": str(tmp_path), "FINISH": str(tmp_path / "finished-1")}
    check(
        read, run_job(tmp_path / "run.sh", tmp_path, **{**task["envs"], **native, **output}).calls("vllm"), "10.0.0.3"
    )


def check(read, calls, host):
    ((_, _, *words),) = calls
    options = read(words)
    assert (options.model_tag, options.host, options.port) == ("Qwen/Qwen3-4B", host, 8000)
    assert (options.tensor_parallel_size, options.max_model_len) == (8, 18432)
    assert (options.logprobs_mode, options.max_logprobs) == ("processed_logprobs", -1)
    assert options.weight_transfer_config.backend == "nccl"
