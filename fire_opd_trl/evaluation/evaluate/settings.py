"""What an evaluation is asked: one record, from which options of the command, checks and `help(evaluate)` follow."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from ...spelling import did_you_mean
from .prompts import STYLES


BACKENDS = ("transformers", "vllm")
SANDBOXES = ("bubblewrap", "docker")
DTYPES = ("auto", "bfloat16", "float16", "float32")
COLDEST = 0.01  # a division by less overflows: vLLM would take 0.01 in its place
INFINITY = float("inf")
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
Function = TypeVar("Function", bound=Callable)


def setting(default: Any, said: str, least: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """Returns a field of [`Settings`]: its default, its help, and what it may be."""
    return field(default=default, metadata={"help": said, "least": least, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What holds for all models and tasks of an evaluation. Refuses with `ValueError` what makes none."""

    data_dir: str | Path | None = setting(
        None, "where the files of the benchmarks lie (docs/benchmarks.md says how to get them)"
    )
    n: int = setting(8, "samples of each problem", least=1)
    temperature: float = setting(1.0, "0 takes the likeliest token", least=0)
    top_p: float = setting(1.0, "1 samples from the whole distribution")
    max_new_tokens: int = setting(16384, "where a completion is cut, and counted as truncated", least=1)
    seed: int = setting(42, "each sample of each problem has a seed made of this one")
    prompt_style: str | None = setting(None, "boxed, authors or none (default: the task's own)", choices=STYLES)
    thinking: bool = setting(False, "what a chat template that knows enable_thinking is told")
    backend: str = setting("transformers", "transformers or vllm", choices=BACKENDS)
    limit: int | None = setting(None, "the first so many problems of each task (default: all)", least=1)
    output_dir: str | Path = setting("outputs/evaluate", "the folder of the results")
    batch_size: int = setting(32, "completions sampled at once; it changes no sample", least=1)
    dtype: str = setting(
        "auto", "of the weights; auto is what the model's config names, on a CPU float32", choices=DTYPES
    )
    device: str | None = setting(None, "for example cuda:1 (default: the GPU, if there is one)")
    graders: int = setting(2, "processes that grade", least=1)
    sandbox: str | None = setting(
        None,
        "bubblewrap or docker: where code that the model wrote runs; without it code tasks are refused",
        choices=SANDBOXES,
    )
    evalplus_python: str | None = setting(None, "the Python of an environment with evalplus, for tasks of code")
    vllm_args: str = setting("", "further arguments of `vllm serve`, for example '--tensor-parallel-size 2'")
    vllm_url: str | None = setting(None, "the address of a vLLM server that runs already, in place of one of its own")
    trust_remote_code: bool = setting(False, "whether Python files in the model's folder may run")
    overwrite: bool = setting(False, "throw away what is there of these models and tasks, and run it again")

    def __post_init__(self):
        for one in fields(self):
            value, least, choices = getattr(self, one.name), one.metadata["least"], one.metadata["choices"]
            if value is None and type(None) in get_args(one.type):
                continue
            kind = kind_of(one.name)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, one.name, float(value))  # 1 and 1.0 are one temperature
            elif not isinstance(value, (str, Path) if kind is str else kind) or (kind, type(value)) == (int, bool):
                raise ValueError(f"--{one.name} {value!r}: give {KINDS[kind]}.")
            if value == "" and one.default != "":
                raise ValueError(f"--{one.name} {value!r}: it is empty. Give a value, or leave the option out.")
            if least is not None and not least <= value < INFINITY:
                raise ValueError(f"--{one.name} {value}: give at least {least}, and no infinity.")
            if choices and value not in choices:
                hint = did_you_mean(str(value), choices)
                raise ValueError(f"--{one.name} {value}: there are {', '.join(choices)}.{hint}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p {self.top_p}: give more than 0, and at most 1 (the whole distribution).")
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"--temperature {self.temperature}: give at least {COLDEST}, or 0 for the likeliest token, with --n 1."
            )
        for name in ("vllm_args", "vllm_url"):
            if getattr(self, name) and self.backend != "vllm":
                raise ValueError(f"--{name} is for --backend vllm, and the backend is {self.backend}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                f"--temperature 0 gives the same answer each time: --n {self.n} would count it {self.n} times. "
                "Give --n 1."
            )

    @property
    def sampling(self) -> dict[str, Any]:
        """Returns what results.json says of how samples are drawn."""
        names = ("n", "temperature", "top_p", "max_new_tokens", "seed")
        return {"top_k": None, **{name: getattr(self, name) for name in names}}


def settings_of(given: dict[str, Any]) -> Settings:
    """Returns the settings that a caller of `evaluate` has named. Refuses a name that is none."""
    known = [one.name for one in fields(Settings)]
    if wrong := [name for name in given if name not in known]:
        raise TypeError(f"evaluate() has no argument {wrong[0]!r}.{did_you_mean(wrong[0], known)}")
    return Settings(**given)


def kind_of(name: str) -> type:
    """Returns what a setting is, if it is given: `bool`, `int`, `float` or `str`."""
    kind = Settings.__dataclass_fields__[name].type
    return next(one for one in (kind, *get_args(kind)) if one in (bool, int, float, str))


def takes_settings(function: Function) -> Function:
    """Lets `help` and editors name all settings of a function that takes them as `**settings`."""
    signature, rows, named = inspect.signature(function), [], []
    for one in fields(Settings):
        named.append(inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default))
        optional = ", *optional*" if one.default is None else f", defaults to `{one.default!r}`"
        rows.append(f"{one.name} (`{kind_of(one.name).__name__}`{optional}): {one.metadata['help']}")
    *first, command, _ = signature.parameters.values()
    function.__signature__ = signature.replace(parameters=[*first, *named, command])  # type: ignore[attr-defined]
    function.__doc__ = (function.__doc__ or "").replace("SETTINGS", "\n        ".join(rows))
    return function
