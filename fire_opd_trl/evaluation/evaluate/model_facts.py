"""What a model is, as hashes of its files: two numbers are of one model if these are equal."""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ...trainer.ending import Refusal
from ..inspect.visible import shortened


WEIGHTS = ("*.safetensors", "*model*.bin")  # not training_args.bin, nor an optimizer's
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
)  # fmt: skip
PACKAGES = "fire-opd-trl torch transformers tokenizers inspect-ai math-verify latex2sympy2_extended".split()
CONFIG = ("config.json", "adapter_config.json")
HASHED = {
    "weights": WEIGHTS,
    "config": CONFIG,
    "generation_config": ("generation_config.json",),
    "tokenizer": TOKENIZER,
}


@contextmanager
def reading(model: str | Path, what: str) -> Iterator[None]:
    """Whatever a library raises over a broken file becomes a sentence that names the model and the file."""
    try:
        yield
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if "trust_remote_code" in said:
            help = "It wants to run Python files of its folder: give --trust_remote_code on, if you trust them."
        else:
            help = "Mend it, or fetch or save the model again."
        raise Refusal(f"--model {model}: {what} cannot be read ({shortened(said, 300)}). {help}") from error


def model_folder(name: str) -> Path:
    """
    Returns the folder of a model. `run` calls this before it loads anything.

    Args:
        name (`str`): A folder, or the name of a model on the Hub, which is then fetched whole.
    """
    from safetensors import safe_open

    path = Path(name).expanduser()
    if name and path.is_dir():
        if not _files(path, CONFIG):
            raise ValueError(f"--model {name}: the folder has no config.json, so that it is no model. {_inside(path)}")
        if not _files(path, WEIGHTS):
            raise ValueError(f"--model {name}: the folder has no weights (*.safetensors or *.bin). {_inside(path)}")
        if not _files(path, TOKENIZER):
            raise ValueError(
                f"--model {name}: the folder has no tokenizer (tokenizer.json and its like). Put that of the model it "
                "came from there: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
            )
        for file in path.glob("*.safetensors"):
            with reading(name, f"its file {file.name}"), safe_open(file, framework="np"):
                pass  # which has read how long the file must be
        return path
    if path.is_file() or not name:
        raise ValueError(f"--model {name!r}: it is no folder. Give the folder that save_pretrained wrote.")
    if path.is_absolute() or name.count("/") != 1 or name.startswith((".", "~")):
        raise ValueError(f"--model {name}: there is no such folder.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--model {name}: there is no such folder, and the Hub does not give it: {why}") from error


def _inside(path: Path) -> str:
    """Returns a hint: training folders hold their models one level below."""
    inner = sorted(one.parent.name for one in path.glob("*/config.json"))
    return f"Below it are {', '.join(inner[:5])}." if inner else "Give the folder that save_pretrained wrote."


def model_facts(path: Path) -> dict[str, str | None]:
    """Returns the hashes of a model's files; `None` for what it does not have."""
    facts = {f"{name}_sha256": _hash(_files(path, patterns)) for name, patterns in HASHED.items()}
    facts["chat_template_sha256"] = _chat_template(path)
    adapter = path / "adapter_config.json"
    if adapter.is_file() and not (path / "config.json").is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        facts["base"] = base
        if Path(base).is_dir():
            facts["base_weights_sha256"] = _hash(_files(Path(base), WEIGHTS))
    return facts


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Returns the versions of Python and of the packages that are installed among those named."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _files(path: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})


def _hash(files: list[Path]) -> str | None:
    """Returns the sha256 over names and contents, in the order of the names."""
    if not files:
        return None
    whole = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                content.update(block)
        whole.update(f"{file.name}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()


def _chat_template(path: Path) -> str | None:
    """Returns the hash of the chat template, which is a file of its own or stands in the tokenizer's config."""
    own = path / "chat_template.jinja"
    if own.is_file():
        return hashlib.sha256(own.read_bytes()).hexdigest()
    config = path / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if template is None:
        return None
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
