"""What the backends share: how a model reads and writes text, what `run` asks of them, and what inspect-ai gets."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from .model_facts import reading, versions
from .settings import Settings


Rows = Iterable[tuple[str, int]]  # the problem as it is asked, and the seed, of each sample


class Completed(NamedTuple):
    """A completion: its tokens, and whether it ended by itself (or was cut)."""

    tokens: list[int]
    stopped: bool


class Reader:
    """
    How a model reads prompts and how its completions are read: its tokenizer and configs, without the weights.

    Args:
        folder (`Path`): The model.
        settings ([`Settings`]): Those of the evaluation.

    Attributes:
        context (`int`, *optional*): Tokens that the model may see, prompt and completion, if its config says so.
        dtype (`str`): What its config names.
        ends (`set[int]`): The tokens that end a completion: those of the generation config (chat models have several
            there), and the tokenizer's.
    """

    def __init__(self, folder: Path, settings: Settings):
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        self.folder, self.settings, trusted = folder, settings, {"trust_remote_code": settings.trust_remote_code}
        base = base_of(folder)
        with reading(folder, "its config"):
            config = AutoConfig.from_pretrained(base, **trusted)
            self.context = getattr(config.get_text_config(), "max_position_embeddings", None)
            self.dtype = str(config.dtype or "float32").removeprefix("torch.")
        with reading(folder, "its tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
        with reading(folder, "its generation config"):
            try:
                generation = GenerationConfig.from_pretrained(base)
            except OSError:
                if (base / "generation_config.json").is_file():
                    raise
                generation = GenerationConfig.from_model_config(config)
        ends = generation.eos_token_id
        found = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        self.ends = {one for one in found if one is not None}

    def render(self, problem: str) -> str:
        """Returns the prompt as the model reads it: through the chat template, if there is one, else the text."""
        if self.tokenizer.chat_template is None:
            return problem
        with reading(self.folder, "its chat template"):
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": problem}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self.settings.thinking,
            )

    def ids(self, problem: str) -> list[int]:
        """Returns the tokens of the prompt. A chat template writes the beginning token itself."""
        templated = self.tokenizer.chat_template is not None
        return self.tokenizer(self.render(problem), add_special_tokens=not templated)["input_ids"]

    def text(self, tokens: list[int]) -> str:
        """Returns a completion as text."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def cuts(self, problems: Iterable[str]) -> bool:
        """Returns whether the context ends before `max_new_tokens` do. Refuses problems that leave no room at all."""
        cut, most = False, self.settings.max_new_tokens
        for problem in problems:
            prompt = self.ids(problem)
            try:
                cut |= room_for(prompt, most, self.context) < most
            except ValueError as error:
                raise ValueError(f"{problem[:60]!r}: {error} Take the problem out.") from error
        return cut


def room_for(prompt: list[int], most: int, context: int | None) -> int:
    """Returns how many tokens a completion may have. Refuses a prompt that leaves no room for any."""
    if not prompt:
        raise ValueError("the prompt has no token that the model knows: nothing can be sampled.")
    room = most if context is None else min(most, context - len(prompt))
    if room < 1:
        raise ValueError(f"the prompt has {len(prompt)} tokens of {context}: nothing can be sampled.")
    return room


def base_of(folder: Path) -> Path:
    """Returns the folder with the config, or its name on the Hub: of an adapter it is that of its base model."""
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not adapter.is_file():
        return folder
    with reading(folder, "the name of its base model in adapter_config.json"):
        base = Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    if not base.is_dir() and len(base.parts) != 2:
        raise ValueError(
            f"--model {folder}: it is an adapter of {base}, and there is no such folder. Put the right one into its "
            "adapter_config.json (base_model_name_or_path)."
        )
    return base


class Backend(ABC):
    """
    What samples. `run` makes it, asks for `check` and `facts` before a model is loaded, and then serves each model.

    Args:
        settings ([`Settings`]): Those of the evaluation.
    """

    name: str
    packages: tuple[str, ...]

    def __init__(self, settings: Settings):
        self.settings = settings

    @abstractmethod
    def check(self) -> None:
        """Refuses what cannot work."""

    def versions(self) -> dict[str, str]:
        """Returns the versions of what samples."""
        return versions(self.packages)

    def dtype(self, reader: Reader) -> str:
        """Returns the dtype that the weights get: `"auto"` is what the model's config names."""
        return reader.dtype if self.settings.dtype == "auto" else self.settings.dtype

    def facts(self, reader: Reader) -> dict[str, Any]:
        """Returns what results.json says of the backend."""
        device = device_of(self.settings).split(":")[0]  # its kind, not its number
        return {"name": self.name, "versions": self.versions(), "dtype": self.dtype(reader), "device": device}

    @property
    @abstractmethod
    def connections(self) -> int:
        """How many samples are under way at once."""

    @abstractmethod
    def served(
        self, folder: Path, label: str, reader: Reader, problems: Sequence[str], log: Path
    ) -> AbstractContextManager[Any]:
        """
        Gives a model of inspect-ai, which lives as long as the context.

        Args:
            folder (`Path`): The model.
            label (`str`): What logs call it.
            reader ([`Reader`]): Reads it.
            problems (`Sequence[str]`): All that will be asked.
            log (`Path`): Where a server writes.
        """

    def expect(self, model: Any, reader: Reader, rows: Rows) -> None:  # noqa: B027
        """Is told which samples come, in order, before a task runs."""

    def as_inspect_model(self, sampler: Any, reader: Reader, label: str) -> Any:
        """Returns as a model of inspect-ai what has `async sample(prompt_ids, config) -> Completed`."""
        from inspect_ai import model as inspect_model

        connections = self.connections

        class Sampled(inspect_model.ModelAPI):
            def __init__(self, name: str):
                super().__init__(name)
                self.sampler = sampler

            def max_connections(self) -> int:
                return connections

            async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
                (message,) = input
                prompt = reader.ids(message.text)
                done = await sampler.sample(prompt, config)
                made = inspect_model.ChatMessageAssistant(
                    content=reader.text(done.tokens), model=label, source="generate"
                )
                choice = inspect_model.ChatCompletionChoice(
                    message=made, stop_reason="stop" if done.stopped else "max_tokens"
                )
                read, written = len(prompt), len(done.tokens)
                used = inspect_model.ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
                return inspect_model.ModelOutput(model=label, choices=[choice], usage=used)

        # inspect-ai names a provider in its logs by how it is registered.
        return inspect_model.Model(
            inspect_model.modelapi(name=f"fire_opd_{self.name}")(lambda: Sampled)(label),
            inspect_model.GenerateConfig(),
        )


def device_of(settings: Settings) -> str:
    """Returns the device that is asked for, or else the GPU, if there is one."""
    import torch

    return settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
