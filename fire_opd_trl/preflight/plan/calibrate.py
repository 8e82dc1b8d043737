"""`fire-opd plan --calibrate`: what this machine does, measured in a minute, as hardware that a plan can take."""

import os
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import yaml

from .cost import DenseShape, fastest, measure_rates, products, shape_key
from .hardware import HARDWARE, Hardware


# The products of a layer of Qwen3-0.6B, and its head: large enough to be what a training multiplies.
PRODUCTS = DenseShape(hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate=3072, vocabulary=151936)
TOKENS = 8192
GATHERED_BYTES = 2**26  # of each rank


def measured_hardware(device: torch.device) -> Hardware:
    """
    Returns what this machine reaches, on every rank. Called by the command; under `torchrun` with several ranks it
    also measures a gather between them, and all ranks must call it.

    Args:
        device (`torch.device`): The device of this rank.
    """
    rates = measure_rates(PRODUCTS, TOKENS, device)
    work = {name: inner * outer * (1 if name == "head" else 28) for name, (inner, outer) in products(PRODUCTS).items()}
    keys = {name: shape_key(*dimensions) for name, dimensions in products(PRODUCTS).items()}
    seconds = sum(work[name] / rates["products"][keys[name]] for name in work)
    cuda, ranks = device.type == "cuda", world_size()
    name = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else host_memory()
    gathered = gather_rate(device) if ranks > 1 else None
    default = HARDWARE["h100" if cuda else "cpu"]
    said = "float32" if not cuda else "bfloat16"
    link = f"a gather of {ranks} ranks" if gathered else "no gather (one rank): the link is a guess; use torchrun"
    return Hardware(
        name=name,
        memory=memory,
        operations=sum(work.values()) / seconds,
        bandwidth=rates["copy"],
        link=gathered or default.link,
        network=min(gathered or default.link, default.network),
        host=host_rate(device) if cuda else rates["copy"],
        source=f"measured by `fire-opd plan --calibrate` on {name if cuda else cpu_name()}: "
        f"products in {said}, copies, {link}",
        measured=True,
    )


def world_size() -> int:
    """Returns how many ranks `torchrun` has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather_rate(device: torch.device) -> float:
    """Returns the bytes a second that arrive at a rank in a gather, by NCCL or, without CUDA, by gloo."""
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        ranks = torch.distributed.get_world_size()
        part = torch.ones(GATHERED_BYTES, dtype=torch.uint8, device=device)
        whole = [torch.empty_like(part) for _ in range(ranks)]
        seconds = fastest(partial(torch.distributed.all_gather, whole, part), device)
    finally:
        torch.distributed.destroy_process_group()
    return (ranks - 1) * GATHERED_BYTES / seconds


def host_rate(device: torch.device) -> float:
    """Returns the bytes a second of a copy from pinned memory of the host to the device."""
    source = torch.ones(GATHERED_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)
    return GATHERED_BYTES / fastest(partial(target.copy_, source, non_blocking=True), device)


def cpu_name() -> str:
    """Returns what the kernel calls the CPU of this host."""
    facts = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", facts.read_text(), re.MULTILINE) if facts.is_file() else None
    return named[1] if named else "a CPU without a name"


def host_memory() -> int:
    """Returns the bytes of memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def calibrate(output: str | None) -> int:
    """
    Measure, print a line for each rate, and write the file that `--hardware` takes. The command calls it for
    `--calibrate`; of several ranks the first one prints and writes. Returns the exit code.
    """
    file, rank = Path(output or "hardware.yaml"), int(os.environ.get("LOCAL_RANK", "0"))
    if not int(os.environ.get("RANK", "0")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()  # what cannot be written is said before a minute is spent
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    hardware = measured_hardware(device)
    if int(os.environ.get("RANK", "0")):
        return 0
    print(f"{hardware.name}: {hardware.source}")
    for what, value, unit in (
        ("matrix products", hardware.operations / 1e12, "T operations/s"),
        ("copies in memory", hardware.bandwidth / 1e9, "GB/s, read and written"),
        ("link between ranks", hardware.link / 1e9, "GB/s"),
        ("link to the host", hardware.host / 1e9, "GB/s"),
        ("memory", hardware.memory / 1e9, "GB"),
    ):
        print(f"  {what:<19}{value:10.2f} {unit}")
    file.write_text(yaml.safe_dump(asdict(hardware), sort_keys=False), encoding="utf-8")
    print(f"Plan with it: fire-opd plan --hardware {file} ...")
    return 0
