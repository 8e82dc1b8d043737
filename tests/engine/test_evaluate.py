"""
`fire-opd evaluate --backend vllm` on a real server of vLLM, on the CPU: `make test-vllm`.

One server serves all tests. Its model is the embedded student, with a generation config that would spoil every sample
if anything of it got in.
"""

import asyncio
import contextlib
import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest


pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytest.importorskip("inspect_ai", reason="inspect-ai needs Python 3.11")

import psutil  # noqa: E402
import torch  # noqa: E402
from inspect_ai.model import GenerateConfig  # noqa: E402
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList  # noqa: E402

from fire_opd_trl.demo import task as addition
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.evaluate import engine, evaluate, grading, provider, vllm
from fire_opd_trl.evaluation.evaluate.answers import found_answer
from fire_opd_trl.evaluation.evaluate.backend import Reader
from fire_opd_trl.evaluation.evaluate.samples import seed_of
from fire_opd_trl.evaluation.evaluate.settings import Settings
from fire_opd_trl.evaluation.evaluate.tasks import load_task


PROBLEMS, N, SEED = 16, 8, 42
SPOILT = {"top_k": 1, "temperature": 0.1, "repetition_penalty": 5.0, "max_new_tokens": 3}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 32}
SETTINGS = Settings(dtype="float32", max_new_tokens=32, batch_size=64, n=N, seed=SEED)
EAGER = "--enforce-eager --max-num-seqs 64"  # without compiling, which takes longer than all tests


@pytest.fixture(scope="module")
def task():
    return load_task("embedded", limit=PROBLEMS)


def served(backend, folder, task, log=None):
    problems = [problem.text for problem in task.problems]
    return backend.served(folder, "student", Reader(folder, backend.settings), problems, log)


@contextlib.contextmanager
def by_transformers(task):
    with served(provider.Transformers(replace(SETTINGS, device="cpu")), Path(model_path("student")), task) as model:
        yield model


@pytest.fixture(scope="module")
def model(task, tmp_path_factory):
    """The student on vLLM, as a model of inspect-ai. Nothing of the server is left afterwards."""
    folder = tmp_path_factory.mktemp("vllm")
    student = shutil.copytree(model_path("student"), folder / "student")
    config = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps({**config, **SPOILT}))
    with served(
        vllm.VLLM(replace(SETTINGS, backend="vllm", vllm_args=EAGER)), student, task, folder / "vllm.log"
    ) as model:
        started = psutil.Process().children(recursive=True)
        yield model
    assert len(started) > 2, "vLLM has processes of its own"
    assert not psutil.wait_procs(started, timeout=5)[1]


def asked(model, prompts, n=N, seed=SEED, connections=64, **settings):
    """The outputs for n samples of each prompt, so many at a time."""

    async def all_of_them():
        free = asyncio.Semaphore(connections)

        async def one(prompt, sample):
            config = GenerateConfig(**{**SAMPLING, "seed": seed_of(seed, prompt, sample), **settings})
            async with free:
                return await model.generate(prompt, config=config)

        return await asyncio.gather(*(one(prompt, k) for prompt in prompts for k in range(1, n + 1)))

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def both(task, model, tmp_path_factory):
    """All samples of the task by vLLM, and by transformers, through the whole engine."""

    async def grade(problem, text):
        answer = found_answer(text, task)
        return engine.Graded(answer, "no answer" if answer is None else grading.exact(problem.gold, answer))

    def samples(model, folder):
        prompts = tuple(problem.text for problem in task.problems)
        job = engine.Job(task, folder, {}, prompts, SETTINGS, connections=64)
        engine.run(job, model, grade, lambda: None, None)
        return engine.samples(job, engine.find(job))

    folder = tmp_path_factory.mktemp("logs")
    by_vllm = samples(model, folder / "vllm")
    with by_transformers(task) as other:
        return by_vllm, samples(other, folder / "transformers")


def paired(first, second):
    """The mean difference over problems, and its standard error."""
    means = [{}, {}]
    for mean, values in zip(means, (first, second), strict=True):
        for problem, value in values:
            mean.setdefault(problem, []).append(value)
    differences = [statistics.fmean(means[0][one]) - statistics.fmean(means[1][one]) for one in means[1]]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def test_the_server_listens_on_the_loopback_interface_alone(model):
    started = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        one.laddr.ip
        for process in started
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_samples_of_a_problem_are_distinct_and_whole(both):
    by_vllm, _ = both
    assert len(by_vllm) == PROBLEMS * N and not any(sample.failed for sample in by_vllm)
    texts = {}
    for sample in by_vllm:
        texts.setdefault(sample.problem, set()).add(sample.text)
    # The same seed for each, or top_k 1, would make one text of a problem.
    assert statistics.fmean(map(len, texts.values())) > N / 4
    for sample in by_vllm:
        # Each character is a token, and the end token is one.
        assert 0 <= sample.tokens - len(sample.text) - (sample.stop == "stop") <= 1  # a padding token may be drawn
        assert sample.tokens == 32 if sample.stop == "length" else sample.tokens <= 32
    assert statistics.fmean(sample.stop == "stop" for sample in by_vllm) > 0.9


def test_a_sample_depends_on_its_seed_and_not_on_the_connections(task, model, both):
    prompts = [problem.text for problem in task.problems[:6]]
    few = [output.completion for output in asked(model, prompts, connections=3)]
    many = [output.completion for output in asked(model, prompts, connections=64)]
    assert few == many
    other = [output.completion for output in asked(model, prompts, seed=SEED + 1)]
    assert sum(one == another for one, another in zip(few, other, strict=True)) < len(few) / 2


def test_vllm_reads_the_same_prompt_and_finds_the_same_likeliest_tokens(task, model):
    prompts = [problem.text for problem in task.problems]
    outputs = asked(model, prompts, n=1, temperature=0.0)
    with by_transformers(task) as other:
        expected = asked(other, prompts, n=1, temperature=0.0)
    same = [
        (one.completion, one.usage, one.stop_reason) == (another.completion, another.usage, another.stop_reason)
        for one, another in zip(outputs, expected, strict=True)
    ]
    assert sum(same) >= PROBLEMS - 1  # two tokens as likely as each other may change places


def test_vllm_and_transformers_agree_within_the_interval(both):
    of_vllm, of_transformers = both
    rights = [[(one.problem, float(one.right)) for one in samples] for samples in both]
    mean, error = paired(*rights)
    print(f"Avg@{N}: vLLM minus transformers {mean:+.3f}, standard error {error:.3f}")
    assert abs(mean) < 1.96 * error

    assert [one.seed for one in of_vllm] == [one.seed for one in of_transformers]


class Noise(LogitsProcessor):
    """What vLLM's sampler does with a seed on a CPU: each token's probability over a random number of its own."""

    def __init__(self, seeds):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids, scores):
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=one) for one in self.generators])
        likeliest = (scores.softmax(-1) / noise).argmax(-1, keepdim=True)
        return torch.zeros_like(scores).scatter(-1, likeliest, 1.0)


@torch.no_grad()
def test_each_sample_is_what_the_logits_of_transformers_and_its_seed_make(task, both):
    """The whole chain, token by token: prompt, weights, temperature, uncut distribution, seed, end and text."""
    by_vllm, _ = both
    tokenizer, prompts = addition.build_tokenizer(), {problem.id: problem.text for problem in task.problems}
    student = AutoModelForCausalLM.from_pretrained(model_path("student"), dtype=torch.float32)
    batch = tokenizer([prompts[one.problem] for one in by_vllm], return_tensors="pt", padding=True)
    noise = LogitsProcessorList([Noise([one.seed for one in by_vllm])])
    output = student.generate(**batch, max_new_tokens=32, do_sample=False, logits_processor=noise)
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    same = [one.text == text for one, text in zip(by_vllm, texts, strict=True)]
    assert statistics.fmean(same) > 0.98, "rounding decides few tokens"


def test_the_whole_trip_through_a_server_that_runs_elsewhere(model, both, tmp_path, monkeypatch):
    server = model.api.sampler.server
    monkeypatch.setenv("VLLM_API_KEY", server.key)
    found = evaluate(
        model_path("student"), "embedded", backend="vllm", vllm_url=server.url, limit=2, n=N, max_new_tokens=32,
        dtype="float32", output_dir=tmp_path,
    )  # fmt: skip
    assert found["status"] == "complete"
    lines = (tmp_path / "samples" / "student.embedded.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [one.text for one in both[0][: 2 * N]]
    assert server.process.poll() is None and server.key not in (tmp_path / "results.json").read_text()
