"""
The backend `vllm` without vLLM: the command line, the end of the server in all circumstances, what requests say, and
what a user reads when it fails. A script stands for the server; the real one is tested in `engine/test_evaluate.py`.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import evaluate, vllm
from fire_opd_trl.evaluation.evaluate.backend import Reader
from fire_opd_trl.evaluation.evaluate.settings import Settings
from fire_opd_trl.trainer.ending import Refusal


SERVER = """
    import json, os, sys, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    if os.environ.get("FAKE") == "dies":
        print("INFO 11-28 01:04:07 [core.py:10] loading")
        print("(EngineCore pid=7) ERROR 11-28 01:04:08 [core.py:99] torch.OutOfMemoryError: CUDA out of memory.")
        print("(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    if os.environ.get("FAKE") == "knows less":
        print("usage: vllm serve [model_tag] [options]")
        print("vllm: error: unrecognized arguments: --no-such-thing 1")
        sys.exit(2)
    if os.environ.get("FAKE") == "hangs":
        print("INFO loading weights", flush=True)
        time.sleep(60)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code, body):
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            if self.path == "/v1/models":
                if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
                    return self.answer(401, {})
                return self.answer(200, {"data": [{"id": "model", "max_model_len": 40}]})
            self.answer(200, {"version": "0.0", "environment": dict(os.environ), "arguments": sys.argv[1:]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked["seed"] == 1:
                os._exit(137)
            if asked["seed"] == 2:
                time.sleep(3)
            if asked["seed"] == 3:
                return self.answer(400, {"error": "no"})
            choice = {"token_ids": [7, 8, 1], "finish_reason": "stop", "asked": asked}
            self.answer(200, {"choices": [choice]})

        def log_message(self, *args):
            pass

    port = int(sys.argv[sys.argv.index("--port") + 1])
    host = sys.argv[sys.argv.index("--host") + 1]
    ThreadingHTTPServer((host, port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("fake") / "vllm"
    path.write_text(f"#!{sys.executable} -S\n{textwrap.dedent(SERVER)}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def fake(script, monkeypatch):
    """Lets the script stand for `vllm`; the environment's variable FAKE says how it behaves."""
    monkeypatch.setattr(vllm, "executable", lambda: script)
    return lambda how: monkeypatch.setenv("FAKE", how)


def serving(folder, further=""):
    return vllm.serving(folder / "new" / "vllm.log", str(folder), 40, "auto", False, further)


def alive(pids) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def with_children(process) -> list[int]:
    return [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]


def wait_until(condition, seconds=10.0) -> bool:
    began = time.monotonic()
    while not condition() and time.monotonic() - began < seconds:
        time.sleep(0.05)
    return condition()


# The command


def test_the_command_takes_nothing_of_the_generation_config_and_ends_with_the_users_arguments(fake):
    command = vllm.command_line("models/one", 4711, 20480, "bfloat16", False, "--tensor-parallel-size 2")
    asked = dict(zip(command[3::2], command[4::2], strict=False))
    assert command[1:3] == ["serve", "models/one"] and asked["--host"] == "127.0.0.1" and asked["--port"] == "4711"
    assert (asked["--generation-config"], asked["--max-model-len"], asked["--dtype"]) == ("vllm", "20480", "bfloat16")
    assert command[-2:] == ["--tensor-parallel-size", "2"] and "--trust-remote-code" not in command
    assert vllm.command_line("one", 1, 2, "auto", True, "")[-1] == "--trust-remote-code"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("--host 0.0.0.0", "--host cannot be given"),
        ("--enforce-eager --api_key=x", "--api-key cannot be given"),
        ("--no-trust-remote-code", "--no-trust-remote-code cannot be given"),
        ("tensor-parallel-size 2", "'tensor-parallel-size': these are arguments of `vllm serve`"),
        ("--quantization 'fp8", "No closing quotation"),
    ],
)
def test_arguments_that_are_not_the_users_to_give(given, why):
    with pytest.raises(Refusal, match=why):
        vllm.arguments_of(given)


def test_other_arguments_pass_through_and_are_known_by_name():
    given = vllm.arguments_of("--tensor-parallel-size 2 -dp=4 --enforce_eager --a -0.5 --hf-overrides '{\"a\": 1}'")
    assert given[:3] == ["--tensor-parallel-size", "2", "-dp=4"] and given[-1] == '{"a": 1}'
    assert vllm.by_name(given) == {
        "tensor-parallel-size": "2", "dp": "4", "enforce-eager": "", "a": "-0.5", "hf-overrides": '{"a": 1}',
    }  # fmt: skip
    assert vllm.arguments_of("") == []


def test_without_vllm_the_refusal_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal, match=r"pip install fire-opd-trl\[vllm\].*--vllm_url"):
        vllm.executable()
    (tmp_path / "vllm").touch(0o755)
    assert vllm.executable() == str(tmp_path / "vllm")


# Start and end


def test_a_server_is_ready_is_asked_with_its_key_and_ends_with_the_block(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy stands before the own server
    with serving(tmp_path) as server:
        assert (server.model, server.max_model_len, server.version) == ("model", 40, "0.0")
        started = with_children(server.process)
        listening = [one.laddr for pid in started for one in psutil.Process(pid).net_connections("tcp")]
        assert {address.ip for address in listening if f":{address.port}" in server.url} == {"127.0.0.1"}
        seen = server.client.get("/seen").json()
        assert not any(server.key in argument for argument in seen["arguments"]) and len(server.key) > 40
        expected = {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
        assert expected.items() <= seen["environment"].items() and "VLLM_SERVER_DEV_MODE" not in seen["environment"]
        assert os.getpgid(server.process.pid) == server.process.pid != os.getpgid(0)
    assert len(started) == 2 and not alive(started)
    assert str(server.log) in capsys.readouterr().out
    assert "serve" in server.log.read_text() and server.key not in server.log.read_text()


def test_a_server_ends_when_the_block_raises(fake, tmp_path):
    with pytest.raises(KeyboardInterrupt), serving(tmp_path) as server:
        started = with_children(server.process)
        raise KeyboardInterrupt
    assert len(started) == 2 and not alive(started)


def test_a_server_ends_when_its_owner_is_killed(fake, tmp_path):
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        with serving(tmp_path) as server:
            os.write(writer, json.dumps(with_children(server.process)).encode())
            time.sleep(60)
        os._exit(0)
    try:
        started = json.loads(os.read(reader, 1000))
        assert len(alive(started)) == 2
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        os.close(reader), os.close(writer)
    assert wait_until(lambda: not alive(started))


def test_a_server_that_dies_says_the_first_cause_what_helps_and_its_last_lines(fake, tmp_path):
    fake("dies")
    with pytest.raises(RuntimeError) as error, serving(tmp_path):
        pass
    sentence, *last = str(error.value).splitlines()
    assert sentence.startswith("vLLM's server has ended with exit code 1. torch.OutOfMemoryError: CUDA out of memory.")
    assert "--gpu-memory-utilization" in sentence and str(tmp_path / "new/vllm.log") in last[0]
    assert last[-1].endswith("See root cause above.") and len(last) <= 16


def test_an_argument_that_vllm_does_not_know_is_named(fake, tmp_path):
    fake("knows less")
    with (
        pytest.raises(
            RuntimeError, match=r"exit code 2\. vllm: error: .* --no-such-thing 1 .*`vllm serve --help=all`"
        ),
        serving(tmp_path, "--no-such-thing 1"),
    ):
        pass


def test_a_server_that_is_not_ready_in_time_is_ended_and_says_meanwhile_what_it_does(
    fake, tmp_path, monkeypatch, capsys
):
    fake("hangs")
    pids, end = [], vllm.end
    monkeypatch.setattr(vllm, "end", lambda process: (pids.extend(with_children(process)), end(process)))
    monkeypatch.setattr(vllm, "START_WITHIN", 0.8)
    monkeypatch.setattr(vllm, "SAY_EVERY", 0.1)
    with (
        pytest.raises(RuntimeError, match=r"not become ready within 1 s(.|\n)*INFO loading weights"),
        serving(tmp_path),
    ):
        pass
    assert len(pids) == 2 and not alive(pids)
    assert any(line.endswith("INFO loading weights") for line in capsys.readouterr().out.splitlines())


# Requests


PROMPT = [5, 6, 7]


def asking(server, seed):
    sampler = vllm.Sampler(server, {1, 9})
    config = SimpleNamespace(seed=seed, max_tokens=100, temperature=0.7, top_p=1.0)
    return lambda: asyncio.run(sampler.answer(sampler.request(PROMPT, config)))


@pytest.fixture
def server(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "PAUSE", 0.1)
    with serving(tmp_path) as server:
        yield server


def test_a_request_names_every_setting_and_another_loop_may_ask(server):
    ask = asking(server, seed=12)
    asked = ask()["asked"]
    assert ask()["asked"] == asked  # a second event loop
    assert (asked["seed"], asked["temperature"], asked["top_p"]) == (12, 0.7, 1.0)
    assert (asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (-1, 0.0, 1.0)
    assert asked["max_tokens"] == 37, "as many as there is room for"
    assert asked["prompt"] == PROMPT and asked["stop_token_ids"] == [1, 9]


def test_a_slow_answer_has_two_hours_or_what_is_said(server, monkeypatch):
    async def timeouts():
        return vllm.Sampler(server, {1}).connected().timeout

    assert set(asyncio.run(timeouts()).as_dict().values()) == {7200.0}
    monkeypatch.setattr(vllm, "CLIENT_TIMEOUT", 0.1)
    with pytest.raises(RuntimeError, match="did not answer, 3 times: ReadTimeout"):
        asking(server, seed=2)()


def test_a_refused_request_is_not_repeated_and_a_dead_server_is_named(server):
    with pytest.raises(RuntimeError, match="refuses a request, 400: .*no"):
        asking(server, seed=3)()
    with pytest.raises(RuntimeError, match="ended with exit code 137. There is not enough memory"):
        asking(server, seed=1)()


# A server that runs elsewhere


def test_the_address_of_another_server(server, monkeypatch):
    def backend(**settings):
        return vllm.VLLM(Settings(backend="vllm", **{"vllm_url": server.url + "/v1/", **settings}))

    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    with pytest.raises(Refusal, match="wants a key: set VLLM_API_KEY"):
        backend().check()
    monkeypatch.setenv("VLLM_API_KEY", server.key)
    backend().check()
    assert backend().versions() == {"vllm": "0.0"}
    for url in ("http://127.0.0.1:9", "127.0.0.1:9"):
        with pytest.raises(Refusal, match=f"--vllm_url {url}: no vLLM server answers there"):
            backend(vllm_url=url).check()
    with pytest.raises(Refusal, match="--vllm_args are for a server that the command starts"):
        backend(vllm_args="--enforce-eager").check()
    with pytest.raises(Refusal, match="--host cannot be given"):
        backend(vllm_url=None, vllm_args="--host 0.0.0.0").check()
    with pytest.raises(Refusal, match="--device cuda:1: .*CUDA_VISIBLE_DEVICES"):
        backend(device="cuda:1").check()
    assert backend().connections == 256 and backend(batch_size=1000).connections == 1000
    facts = backend(vllm_url=None, vllm_args="--quantization fp8").facts(SimpleNamespace(dtype="float32"))
    assert (facts["dtype"], facts["arguments"]) == ("float32", {"quantization": "fp8"})


# The whole backend


def sampled(model, prompt="1+2=", **settings):
    from inspect_ai.model import GenerateConfig

    config = GenerateConfig(**{"seed": 5, "temperature": 1.0, "top_p": 0.9, "max_tokens": 32, **settings})
    return asyncio.run(model.generate(prompt, config=config))


def served(folder, problems, **settings):
    backend = vllm.VLLM(Settings(backend="vllm", max_new_tokens=32, **settings))
    reader = Reader(Path(model_path("student")), backend.settings)
    return backend.served(folder, "small", reader, problems, folder / "log")


def test_a_model_is_served_with_as_much_context_as_its_prompts_need(fake, tmp_path):
    folder = shutil.copytree(model_path("student"), tmp_path / "student")
    with served(folder, ["1+2=", "123+45="]) as model:
        output = sampled(model)
    assert output.completion == "56" and output.stop_reason == "stop"  # tokens 7 and 8, and the end token
    assert (output.usage.input_tokens, output.usage.output_tokens) == (4, 3)
    command = (folder / "log").read_text().splitlines()[0]
    assert "--max-model-len 39 " in command and "--dtype bfloat16" in command
    with served(folder, ["1" * 120], dtype="float32"):
        pass
    command = (folder / "log").read_text().splitlines()[0]
    assert "--max-model-len 128 " in command and "--dtype float32" in command, "no more than the model has"
    (folder / "config.json").unlink()
    with pytest.raises(Refusal, match="is an adapter. Merge it"), served(folder, ["1"]):
        pass


def test_an_evaluation_goes_all_the_way_through_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", server.key)
    found = evaluate(
        model_path("student"), "embedded", backend="vllm", vllm_url=server.url, limit=2, n=2, max_new_tokens=16,
        output_dir=tmp_path / "out",
    )  # fmt: skip
    assert found["status"] == "complete" and found["entries"][0]["backend"]["versions"] == {"vllm": "0.0"}
    rows = [json.loads(line) for line in (tmp_path / "out/samples/student.embedded.jsonl").read_text().splitlines()]
    assert [(row["text"], row["verdict"], row["tokens"]) for row in rows] == [("56", "no answer", 3)] * 4
    assert len({row["seed"] for row in rows}) == 4
    assert not any(server.key.encode() in file.read_bytes() for file in (tmp_path / "out").rglob("*.*"))
