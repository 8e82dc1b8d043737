"""What all tests share: offline, quiet, one thread; works on two real ranks."""

import os


os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    TOKENIZERS_PARALLELISM="false",
    PYTHONWARNINGS="ignore::FutureWarning",
)

import pytest  # noqa: E402
import torch  # noqa: E402


pytest.register_assert_rewrite("support")

from support.launches import Pair  # noqa: E402


torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs():
    """`pairs(launcher)`: the two ranks of a launcher, launched when the first work is asked of them."""
    launched: dict[str, Pair] = {}
    yield lambda launcher: launched.setdefault(launcher, Pair(launcher))
    for pair in launched.values():
        pair.no_more()
    for pair in launched.values():
        pair.close()


@pytest.fixture
def on_two_ranks(pairs, tmp_path, request):
    """`on_two_ranks("zero3", case)`: train a case of `support/worker.py` on two real ranks; its result."""
    assert request.node.get_closest_marker("launch"), "mark it with pytest.mark.launch: such tests share their ranks"

    def launch(launcher: str, case: dict, **environment: str) -> dict:
        output = tmp_path / f"{launcher}-{len(list(tmp_path.iterdir()))}.pt"
        case = {**case, "fsdp2": launcher == "fsdp2"}
        pairs(launcher).run("support.worker:write_result", case, str(output), environment=environment)
        result = torch.load(output, weights_only=False)
        expected = {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}.get(launcher, "DEEPSPEED")
        assert (result["world_size"], result["distributed_type"]) == (2, expected)
        assert result["zero_stage"] == {"zero2": 2, "zero3": 3}.get(launcher, 0)
        return result

    return launch
