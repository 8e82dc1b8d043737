"""What a card can do, and which share of it a training reaches: every number with its source."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...spelling import did_you_mean


GIB = 2**30
# What PyTorch says of a card in its out-of-memory messages, for example "has a total capacity of 79.15 GiB". The name
# of a card counts otherwise: the 80 GB of an H100 are 85.0e9 bytes.
CAPACITY = "memory: the total capacity in PyTorch's out-of-memory messages"
NETWORK = "network: one 400 Gb/s adapter a card, as in https://github.com/NVIDIA/nccl-tests/issues/290"


@dataclass(frozen=True)
class Hardware:
    """
    One card and its links. All rates are peaks, unless it was measured; then they are what was reached.

    Args:
        name (`str`): What it is called.
        memory (`int`): Bytes of the card that a process can have.
        operations (`float`): Dense operations a second in bfloat16, two for a multiplication and an addition.
        bandwidth (`float`): Bytes a second of its memory.
        link (`float`): Bytes a second to another card of its machine, in one direction.
        network (`float`): Bytes a second for each card to other machines, in one direction.
        host (`float`): Bytes a second to the memory of its host, in one direction.
        source (`str`): Where these numbers stand.
        measured (`bool`): Whether they were measured by `fire-opd plan --calibrate`.
    """

    name: str
    memory: int
    operations: float
    bandwidth: float
    link: float
    network: float
    host: float
    source: str
    measured: bool = False


HARDWARE = {
    card.name: card
    for card in (
        Hardware(
            name="h100",
            memory=round(79.1 * GIB),
            operations=989e12,
            bandwidth=3.35e12,
            link=450e9,
            network=50e9,
            host=64e9,
            source=f"H100 SXM, https://www.nvidia.com/en-us/data-center/h100/; {CAPACITY}; {NETWORK}",
        ),
        Hardware(
            name="h200",
            memory=round(139.8 * GIB),
            operations=989e12,
            bandwidth=4.8e12,
            link=450e9,
            network=50e9,
            host=64e9,
            source=f"H200 SXM, https://www.nvidia.com/en-us/data-center/h200/; {CAPACITY}; {NETWORK}",
        ),
        Hardware(
            name="a100",
            memory=round(79.1 * GIB),
            operations=312e12,
            bandwidth=2.039e12,
            link=300e9,
            network=25e9,
            host=32e9,
            source=f"A100 SXM 80GB, https://www.nvidia.com/en-us/data-center/a100/; {CAPACITY}; "
            "network: one 200 Gb/s adapter a card",
        ),
        Hardware(
            name="l40s",
            memory=round(44.4 * GIB),
            operations=362e12,
            bandwidth=864e9,
            link=32e9,
            network=12.5e9,
            host=32e9,
            source=f"L40S, https://www.nvidia.com/en-us/data-center/l40s/ (no NVLink: PCIe 4.0 x16); {CAPACITY}; "
            "network: 100 Gb/s a card",
        ),
        Hardware(
            name="rtx4090",
            memory=round(23.6 * GIB),
            operations=165e12,
            bandwidth=1.008e12,
            link=16e9,
            network=1.25e9,
            host=32e9,
            source="RTX 4090, https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf "
            f"(no NVLink, nor peer to peer: PCIe 4.0 through the host); {CAPACITY}; network: 10 Gb/s",
        ),
        Hardware(
            name="cpu",
            memory=16 * GIB,
            operations=1.0e11,
            bandwidth=1.0e10,
            link=2.0e9,
            network=1.25e9,
            host=1.0e10,
            source="two cores of a server in float32, rounded from what `fire-opd plan --calibrate` measured for "
            "docs/plan.md; measure your own",
            measured=True,
        ),
    )
}


def assumed(default: float, meaning: str, word: str, source: str) -> Any:
    """A field of [`Assumptions`], with what it means, and where its value comes from, in a word and in full."""
    return field(default=default, metadata={"help": meaning, "word": word, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """What no configuration says and no data sheet: shares of a peak, and times that do not shrink with a model."""

    compute_fraction: float = assumed(
        0.35,
        "share of the operations that a dense model reaches",
        "torchtitan",
        "eager FSDP, 8B on 8 H100: 0.33 without and 0.39 with torch.compile, https://github.com/pytorch/torchtitan "
        "(performance.md of its docs); operations of a recomputation counted, 0.35 to 0.59 from 1B to 70B, "
        "https://github.com/mosaicml/llm-foundry (scripts/train/benchmarking)",
    )
    experts_fraction: float = assumed(
        0.10,
        "the same of a mixture of experts",
        "estimate",
        "estimate between two reports: 0.33 with kernels made for it, "
        "https://docs.nvidia.com/nemo/automodel/performance/performance-summary.md, and 'quite slow' under ZeRO-3, "
        "https://github.com/modelscope/ms-swift/issues/9719",
    )
    decode_fraction: float = assumed(
        0.70,
        "share of the bandwidth that decoding reaches",
        "vLLM, A100",
        "0.77 by vLLM 0.23 for one request of Llama-3.1-8B on an A100, "
        "https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on; less in large batches. The next number counts "
        "part of it once more: both together are careful",
    )
    decode_overhead: float = assumed(
        0.003,
        "seconds of a decoding step beside its reading",
        "vLLM, A100",
        "the same measurement: 13.3 ms a token, of which 10.3 ms read the weights at the card's peak",
    )
    eager_layer: float = assumed(
        0.0008,
        "seconds of a layer in a decoding step without an engine",
        "Qwen's page",
        "Qwen2-0.5B with its 24 layers gives 49.9 tokens a second on an A100, "
        "https://qwen.readthedocs.io/en/v2.0/benchmark/speed_benchmark.html",
    )
    bandwidth_fraction: float = assumed(
        0.80,
        "share of the bandwidth that AdamW reaches",
        "Azure's guide",
        "copies: 0.79 on an A100, 0.87 on an H100, https://github.com/Azure/AI-benchmarking-guide (Azure_Results)",
    )
    link_fraction: float = assumed(
        0.77,
        "share of a link that a collective or a copy reaches",
        "Azure, NCCL",
        "NCCL: 232 of 300 GB/s between A100; from the host 51 of 64 GB/s, the same guide of Azure; 46 to 48 of "
        "50 GB/s a network adapter, https://github.com/NVIDIA/nccl-tests/issues/290",
    )
    overlap: float = assumed(
        0.50,
        "share of communication that hides behind computation",
        "estimate",
        "estimate: ZeRO-3 and FSDP fetch the next layer while one computes, and the first has nothing to hide behind",
    )
    forward_overhead: float = assumed(
        0.02,
        "seconds of one forward beside its arithmetic",
        "estimate",
        "estimate: launches of its kernels, packing, waiting for other ranks; a backward counts as another",
    )
    spread: float = assumed(
        0.60,
        "standard deviation of the logarithm of lengths",
        "`make bench`",
        "the longest of 128 completions is then 4 times the mean one, as in docs/throughput.md; simulated there",
    )
    reserve: float = assumed(
        4e9,
        "bytes for CUDA, NCCL and fragments",
        "estimate",
        "estimate: a context takes about 0.5e9, NCCL 1e9 to 2e9, fragments the rest; none on a CPU",
    )


def of_measured(assumptions: Assumptions, hardware: Hardware, given: set[str]) -> Assumptions:
    """
    Returns the assumptions for this hardware. Rates that were measured are reached as they are, so that their shares
    are 1; that a training reaches less than its products alone stays an assumption.

    Args:
        given (`set[str]`): Names of assumptions that a user has made, which stay.
    """
    if not hardware.measured:
        return assumptions
    reached = {
        **dict.fromkeys(("decode_fraction", "bandwidth_fraction", "link_fraction"), 1.0),
        "compute_fraction": 0.5,
        "experts_fraction": 0.3,
        "decode_overhead": 0.0,
    }
    if hardware.name.startswith("cpu"):
        reached["reserve"] = 0.0
    return replace(assumptions, **{name: value for name, value in reached.items() if name not in given})


def chosen_hardware(name: str) -> Hardware:
    """
    Returns the hardware of `--hardware`: a name of the table, or a file that `fire-opd plan --calibrate` has written.
    """
    if name.lower() in HARDWARE:
        return HARDWARE[name.lower()]
    file = Path(name)
    if not file.is_file():
        raise ValueError(
            f"--hardware {name} is neither a file nor one of: {', '.join(HARDWARE)}."
            f"{did_you_mean(name.lower(), HARDWARE)} `fire-opd plan --calibrate` writes such a file."
        )
    import yaml

    try:
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--hardware {name} is no YAML file: {' '.join(str(error).split())}") from error
    return hardware_of(facts, name)


def hardware_of(facts: Any, name: str) -> Hardware:
    """Returns the hardware that a file describes; `name` is the file's, for a refusal."""
    wanted = [f.name for f in fields(Hardware)]
    if not isinstance(facts, Mapping) or sorted(facts) != sorted(wanted):
        raise ValueError(f"--hardware {name} needs exactly these names: {', '.join(wanted)}.")
    numbers: dict[str, Any] = {}
    for rate in ("memory", "operations", "bandwidth", "link", "network", "host"):
        try:
            numbers[rate] = float(facts[rate])  # YAML reads 989e12, which has no dot, as a text
        except (TypeError, ValueError):
            numbers[rate] = math.nan
        if not 0 < numbers[rate] < math.inf:
            raise ValueError(f"--hardware {name}: {rate} is {facts[rate]!r}. Give a number above 0.")
    numbers["memory"] = round(numbers["memory"])
    texts: dict[str, Any] = {said: str(facts[said]) for said in ("name", "source")}
    return Hardware(**numbers, **texts, measured=bool(facts["measured"]))


def assumption_fields() -> list[tuple[str, float, str]]:
    """Returns the name, the value and the meaning of each assumption, for the command's options."""
    default = Assumptions()
    return [(f.name, getattr(default, f.name), f.metadata["help"]) for f in fields(Assumptions)]
