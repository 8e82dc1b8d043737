"""
The backend `transformers`: it samples in this process.

inspect-ai's own `hf/` does not know why a completion ended, counts padding as tokens, and has one seed for a batch.
This one has a stream of random numbers a sample ([`decoding`]), ends where the model's end tokens are, and takes
nothing else of the model's generation config: no top_k, top_p or repetition_penalty gets in unasked.
"""

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...trainer.ending import Refusal
from ..inspect.visible import shortened
from .backend import Backend, Completed, Reader, Rows, device_of, room_for
from .decoding import Decoder, Row
from .model_facts import reading


GATHER_SECONDS = 0.05  # before the first batch: those that start together have asked by then


class Sampler:
    """
    A thread that samples for whoever asks, many at a time.

    Args:
        model (`Any`): A causal language model of transformers.
        reader ([`Reader`]): Knows its context and its end tokens.
        batch_size (`int`): How many completions are sampled at once.
    """

    def __init__(self, model: Any, reader: Reader, batch_size: int):
        self.context, self.ends = reader.context, reader.ends
        pad = reader.tokenizer.pad_token_id
        pad = pad if pad is not None else min(self.ends, default=0)
        self.decoder = Decoder(model, self.ends, pad, batch_size, self._ended, lambda row: row.key.cancelled())
        self.arrived: list[Row] = []
        self.expected: dict[tuple[tuple[int, ...], int], Future[Row]] = {}
        self.wake = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="fire-opd sampler", daemon=True)
        self.thread.start()

    def expect(self, rows: Iterable[tuple[list[int], int]], **settings: Any) -> None:
        """
        Begins with rows (prompt and seed) before they are asked for, in this order.

        inspect-ai asks as it finds the time. If that decided which rows share a batch, two equal evaluations would
        have batches of other shapes, and with them other rounding. So the order of the rows alone decides.
        """
        begun = [self._row(prompt, seed, **settings) for prompt, seed in rows]
        self.expected |= {(tuple(row.prompt), row.seed): row.key for row in begun}
        self._add(begun)  # all at once, or the first batch would be of those that came in time

    def ask(self, prompt: list[int], seed: int, **settings: Any) -> "Future[Row]":
        """Returns the future row of a prompt. A prompt that leaves no room in the context is refused at once."""
        known = self.expected.pop((tuple(prompt), seed), None)
        if known is not None:
            return known
        row = self._row(prompt, seed, **settings)
        self._add([row])
        return row.key

    def _row(self, prompt: list[int], seed: int, max_new_tokens: int, temperature: float, top_p: float) -> Row:
        return Row(prompt, seed, room_for(prompt, max_new_tokens, self.context), temperature, top_p, key=Future())

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
        with suppress(InvalidStateError):  # cancelled meanwhile: nobody waits for it
            row.key.set_exception(error) if error is not None else row.key.set_result(row)

    def _work(self) -> None:
        while True:
            with self.wake:
                while not (self.arrived or self.decoder.busy or self.closed):
                    self.wake.wait()
                if self.closed:
                    return
            if not self.decoder.busy:
                time.sleep(GATHER_SECONDS)
            with self.wake:
                self.decoder.waiting.extend(self.arrived)
                self.arrived.clear()
            self.decoder.step()

    async def sample(self, prompt: list[int], config: Any) -> Completed:
        """Returns the completion of a prompt when it has ended. If the caller is cancelled, it leaves the batch."""
        settings = {"temperature": config.temperature, "top_p": config.top_p, "max_new_tokens": config.max_tokens}
        row = await asyncio.wrap_future(self.ask(prompt, config.seed, **settings))
        return Completed(row.tokens, row.tokens[-1] in self.ends)


class Transformers(Backend):
    """Samples in this process."""

    name = "transformers"
    packages = ("torch", "transformers", "tokenizers")

    def check(self) -> None:
        import torch

        device = device_of(self.settings)
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError) as error:
            why = shortened(str(error).splitlines()[0], 300)
            raise ValueError(f"--device {device}: it cannot be used here: {why}. Give another one, or cpu.") from error

    def dtype(self, reader: Reader) -> str:
        """
        Returns the dtype that the weights get. On a CPU `"auto"` is float32: half precision rounds so coarsely that
        the neighbours in a batch decide tokens (of 400 samples of the embedded student 6 changed).
        """
        on_cpu = device_of(self.settings).startswith("cpu")
        return "float32" if self.settings.dtype == "auto" and on_cpu else super().dtype(reader)

    @property
    def connections(self) -> int:
        """As one is written down, the next one is sampled already."""
        return 2 * self.settings.batch_size

    @contextmanager
    def served(self, folder: Path, label: str, reader: Reader, problems: Sequence[str], log: Path) -> Iterator[Any]:
        settings = self.settings
        model = load(folder, self.dtype(reader), device_of(settings), settings.trust_remote_code)
        sampler = Sampler(model, reader, settings.batch_size)
        try:
            yield self.as_inspect_model(sampler, reader, label)
        finally:
            sampler.close()

    def expect(self, model: Any, reader: Reader, rows: Rows) -> None:
        names = ("max_new_tokens", "temperature", "top_p")
        settings = {name: getattr(self.settings, name) for name in names}
        model.api.sampler.expect(((reader.ids(problem), seed) for problem, seed in rows), **settings)


def load(folder: str | Path, dtype: str, device: str, trust_remote_code: bool = False) -> Any:
    """Returns the model of a folder, on a device. `served` calls this once for each model."""
    from transformers import AutoModelForCausalLM

    with reading(folder, "its weights"):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):  # transformers puts random numbers there
        raise Refusal(
            f"--model {folder}: its files lack {len(missing)} of its weights, first {missing[0]}. "
            "Fetch it or save it again."
        )
    return model.to(device).eval()
