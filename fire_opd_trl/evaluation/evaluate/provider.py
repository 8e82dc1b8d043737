"""
The provider of inspect-ai that samples with transformers in this process.

inspect-ai's own `hf/` does not know why a completion ended, counts padding as tokens, and has one seed for a batch.
This one has a stream of random numbers a sample ([`decoding`]), ends where the model's end tokens are, and takes
nothing else of the model's generation config: no top_k, top_p or repetition_penalty gets in unasked.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from .decoding import Decoder, Row
from .model_facts import versions as versions_of


BATCH_SIZE = 32
GATHER_SECONDS = 0.05  # before the first batch: those that start together have asked by then


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Returns the ids that end a completion: those of the generation config (chat models have several there), and the
    tokenizer's."""
    config = getattr(model, "generation_config", None)
    ends = config.eos_token_id if config is not None else None
    found = set(ends if isinstance(ends, list | tuple) else [ends]) | {tokenizer.eos_token_id}
    return {int(one) for one in found if one is not None}


def context_length(model: Any) -> int | None:
    """Returns how many tokens the model may see, prompt and completion; `None` if its config does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


def render(tokenizer: Any, messages: list[dict[str, str]], thinking: bool) -> str:
    """Returns the prompt as the model reads it: through the chat template, if there is one, else the plain text."""
    if tokenizer.chat_template is None:
        return "".join(message["content"] for message in messages)
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the tokens of a rendered prompt. A chat template writes the beginning token itself."""
    return tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]


class Completed(NamedTuple):
    """A completion: its text, the tokens that were read and written, whether it ended by itself, and its time."""

    text: str
    read: int
    written: int
    finished: bool
    seconds: float


class Sampler:
    """
    A thread that samples for whoever asks, many at a time. The provider makes it, with a model that is loaded.

    Args:
        model (`Any`): A causal language model of transformers.
        tokenizer (`Any`): Its tokenizer.
        batch_size (`int`): How many completions are sampled at once.
        thinking (`bool`): What the chat template is told as `enable_thinking`.
    """

    registered = "fire_opd"

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = BATCH_SIZE, thinking: bool = False):
        self.model, self.tokenizer, self.thinking = model.eval(), tokenizer, thinking
        self.context = context_length(model)
        ends = end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        self.decoder = Decoder(model, ends, pad, batch_size, self._ended, lambda row: row.key.cancelled())
        self.arrived: list[Row] = []
        self.expected: dict[tuple[Any, ...], Future[Row]] = {}
        self.wake = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="fire-opd sampler", daemon=True)
        self.thread.start()

    def expect(self, rows: Iterable[tuple[str, int]], **settings: Any) -> None:
        """
        Begins with rows (prompt and seed) before they are asked for, in this order.

        inspect-ai asks as it finds the time. If that decided which rows share a batch, two equal evaluations would
        have batches of other shapes, and with them other rounding. So the order of the rows alone decides.
        """
        begun = []
        for prompt, seed in rows:
            with suppress(ValueError):  # a prompt that cannot be sampled says so when it is asked for
                begun.append(self._row(prompt, seed, **settings))
                self.expected[(prompt, seed, *sorted(settings.items()))] = begun[-1].key
        self._add(begun)  # all at once, or the first batch would be of those that came in time

    def ask(self, prompt: str, seed: int, **settings: Any) -> "Future[Row]":
        """Returns the future row of a prompt. A prompt that leaves no room in the context is refused at once."""
        known = self.expected.pop((prompt, seed, *sorted(settings.items())), None)
        if known is not None:
            return known
        row = self._row(prompt, seed, **settings)
        self._add([row])
        return row.key

    def _row(self, prompt: str, seed: int, max_new_tokens: int, temperature: float, top_p: float) -> Row:
        ids = prompt_ids(self.tokenizer, prompt)
        room = self.context - len(ids) if self.context else max_new_tokens
        if not ids or room < 1:
            what = f"{len(ids)} tokens, and the model's context has {self.context}" if ids else "empty"
            raise ValueError(f"the prompt is {what}: nothing can be sampled.")
        return Row(ids, seed, min(max_new_tokens, room), temperature, top_p, key=Future())

    def _add(self, rows: list[Row]) -> None:
        with self.wake:
            if not self.thread.is_alive():
                raise RuntimeError("the sampling thread has ended.")
            self.arrived += rows
            self.wake.notify()

    def close(self) -> None:
        """The owner of the model calls this when nothing more will be asked."""
        with self.wake:
            self.closed = True
            self.wake.notify()
        self.thread.join()

    def _ended(self, row: Row, error: Exception | None) -> None:
        row.ended = time.monotonic()
        with suppress(InvalidStateError):  # cancelled meanwhile: nobody waits for it
            row.key.set_exception(error) if error is not None else row.key.set_result(row)

    def _work(self) -> None:
        while True:
            with self.wake:
                while not (self.arrived or self.decoder.busy or self.closed):
                    self.wake.wait()
                if self.closed:
                    return
                idle = not self.decoder.busy
            if idle:
                time.sleep(GATHER_SECONDS)
            with self.wake:
                self.decoder.waiting.extend(self.arrived)
                self.arrived.clear()
            self.decoder.step()

    async def sample(self, prompt: str, **settings: Any) -> Row:
        """Returns the row of a prompt when it has ended. If the caller is cancelled, it leaves the batch."""
        return await asyncio.wrap_future(self.ask(prompt, **settings))

    @property
    def connections(self) -> int:
        """How many samples are asked for at once: so that a row that ends finds one that waits."""
        return connections(self.decoder.batch_size)

    async def complete(self, messages: list[dict[str, str]], config: Any) -> Completed:
        """Returns a completion as inspect-ai's `config` asks for it."""
        row = await self.sample(
            render(self.tokenizer, messages, self.thinking),
            seed=config.seed,
            max_new_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
        )
        seconds = row.ended - row.started
        return Completed(self.text(row), len(row.prompt), len(row.tokens), self.stopped(row), seconds)

    def text(self, row: Row) -> str:
        """Returns a completion as text."""
        return self.tokenizer.decode(row.tokens, skip_special_tokens=True)

    def stopped(self, row: Row) -> bool:
        """Returns whether a completion ended by itself, and was not cut."""
        return bool(row.tokens) and row.tokens[-1] in self.decoder.end_tokens


# What run.py asks of a backend; vllm.py has the same names.


def check() -> None:
    """Refuses what cannot work, before a model is loaded: transformers is always there."""


def versions() -> dict[str, str]:
    """Returns the versions of what samples."""
    return versions_of(("torch", "transformers", "tokenizers"))


def connections(batch_size: int) -> int:
    """Returns how many samples are under way at once: as one is written down, the next one is sampled already."""
    return 2 * batch_size


def expect(model: Any, rows: Iterable[tuple[str, int]], sampling: dict[str, Any]) -> None:
    """Tells a served model which samples come, before a task runs: prompts and seeds, in order."""
    sampler = model.api.sampler
    prompts = (
        (render(sampler.tokenizer, [{"role": "user", "content": text}], sampler.thinking), seed) for text, seed in rows
    )
    sampler.expect(
        prompts,
        max_new_tokens=sampling["max_tokens"],
        temperature=sampling["temperature"],
        top_p=sampling["top_p"],
    )


def extra(thinking: bool) -> dict[str, Any]:
    """Returns what inspect-ai's `GenerateConfig` gets beside the settings of all backends."""
    return {}


@contextmanager
def served(
    folder: Path,
    label: str,
    *,
    dtype: str,
    batch_size: int,
    thinking: bool,
    max_new_tokens: int,
    trust_remote_code: bool,
    device: str | None,
    **others: Any,
) -> Iterator[Any]:
    """Yields a model of inspect-ai, which lives as long as the context. What only other backends need is ignored."""
    dtype = dtype_used(folder, dtype, device, trust_remote_code)
    model, tokenizer = load(str(folder), dtype, device, trust_remote_code)
    sampler = Sampler(model, tokenizer, batch_size, thinking)
    try:
        yield as_inspect_model(sampler, label)
    finally:
        sampler.close()


# What is known of a model before its weights are loaded


def device_kind(device: str | None) -> str:
    """Returns the kind of device that a model would be loaded on, without its number."""
    import torch

    return torch.device(default_device(device)).type


def default_device(device: str | None) -> str:
    """Returns the device that is asked for, or else the GPU, if there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def dtype_used(folder: Path, dtype: str, device: str | None, trust_remote_code: bool) -> str:
    """
    Returns the dtype that the weights get. On a CPU `"auto"` is float32: half precision rounds so coarsely that the
    neighbours in a batch decide tokens (of 400 samples of the embedded student 6 changed).
    """
    if dtype == "auto" and device_kind(device) == "cpu":
        return "float32"
    return dtype_of(folder, dtype, trust_remote_code)


def dtype_of(folder: Path, dtype: str, trust_remote_code: bool) -> str:
    """Returns the name of the dtype that `dtype` stands for; `"auto"` is what the model's config names."""
    if dtype != "auto":
        return dtype
    base = base_of(folder)
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) if base.is_dir() else {}
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def base_of(folder: Path) -> Path:
    """Returns the folder with the config: of an adapter it is that of its base model."""
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not adapter.is_file():
        return folder
    return Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])


def read_prompts(
    folder: Path, prompts: list[str], max_new_tokens: int, thinking: bool, trust_remote_code: bool
) -> tuple[str, int | None]:
    """
    Returns the first prompt as the model reads it, and the model's context if that ends before `max_new_tokens` do.
    Refuses prompts that leave no room for an answer: the weights are not loaded yet.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    texts = [render(tokenizer, [{"role": "user", "content": prompt}], thinking) for prompt in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=tokenizer.chat_template is None)["input_ids"]]
    config = AutoConfig.from_pretrained(base_of(folder), trust_remote_code=trust_remote_code)
    context = context_length(SimpleNamespace(config=config))
    for text, length in zip(texts, lengths, strict=True):
        if not length or context is not None and length >= context:
            what = "has no token that the model knows" if not length else f"has {length} tokens of {context}"
            raise ValueError(f"the prompt {text[:60]!r} {what}: no answer can be sampled. Take the problem out.")
    return texts[0], context if context is not None and max(lengths) + max_new_tokens > context else None


def load(
    path: str, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Returns the model and the tokenizer of a folder, on a device. `served` calls this once for each model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = default_device(device)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.to(where).eval(), tokenizer


def as_inspect_model(sampler: Any, name: str) -> Any:
    """
    Returns a sampler as a model of inspect-ai, which `run` hands to the engine.

    Args:
        sampler (`Any`): Of this module or of vllm.py: `complete`, `connections`, and `registered`, its name in logs.
        name (`str`): What logs call the model.
    """
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        GenerateConfig,
        Model,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        modelapi,
    )

    class Sampled(ModelAPI):
        def __init__(self, model_name: str):
            super().__init__(model_name)
            self.sampler = sampler

        def max_connections(self) -> int:
            return sampler.connections

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            made = await sampler.complete([{"role": one.role, "content": one.text} for one in input], config)
            choice = ChatCompletionChoice(
                message=ChatMessageAssistant(content=made.text, model=self.model_name, source="generate"),
                stop_reason="stop" if made.finished else "max_tokens",
            )
            used = ModelUsage(
                input_tokens=made.read, output_tokens=made.written, total_tokens=made.read + made.written
            )
            return ModelOutput(model=self.model_name, choices=[choice], usage=used, time=made.seconds)

    provider = modelapi(name=sampler.registered)(lambda: Sampled)
    return Model(provider(name), GenerateConfig())
