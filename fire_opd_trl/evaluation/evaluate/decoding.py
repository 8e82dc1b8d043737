"""
Sampling with transformers, one random stream a row.

`model.generate` draws all rows of a batch from one generator, and holds every finished row until the longest one ends.
Here each row draws from a generator of its own, so that a sample depends on nothing but the model, its prompt, the
settings and its seed; a row that has ended leaves the batch, and one that waits takes its place.

What other rows still change is rounding: kernels add in another order for another shape of a batch, and a token whose
random number falls that close to the border between two tokens becomes the other one (docs/evaluate.md: how often).
"""

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Row:
    """
    A completion that is being sampled.

    Args:
        prompt (`list[int]`): Token ids of the prompt.
        seed (`int`): Seed of its random stream.
        max_new_tokens (`int`): Where it is cut.
        temperature (`float`): 0 takes the likeliest token.
        top_p (`float`): 1 for the whole distribution.
        key (`Any`): What the caller knows it by.
    """

    prompt: list[int]
    seed: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    key: Any = None
    tokens: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None

    def begin(self) -> None:
        """The decoder calls this when the row enters a batch, which may be again after a batch that failed."""
        self.tokens, self.generator = [], torch.Generator().manual_seed(self.seed)

    def uniform(self) -> float:
        """Returns the random number of the next token."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


def next_tokens(logits_BV: torch.Tensor, rows: Sequence[Row]) -> list[int | None]:
    """
    The decoder calls this at each step. Returns a token for each row: the one in whose share of the distribution the
    row's random number falls; `None` where the distribution is not finite.
    """
    logits_BV = logits_BV.float()
    # -inf forbids one token; NaN or inf anywhere shows in the maximum
    fine = torch.isfinite(logits_BV.amax(-1)).tolist()
    greedy = logits_BV.argmax(-1).tolist()
    tokens: list[int | None] = [token if ok else None for token, ok in zip(greedy, fine, strict=True)]
    drawn = [index for index, row in enumerate(rows) if row.temperature > 0 and fine[index]]
    if not drawn:
        return tokens
    device = logits_BV.device
    temperature_B1 = torch.tensor([[rows[index].temperature] for index in drawn], device=device)
    whole = len(drawn) == len(rows)
    probs_BV = torch.softmax((logits_BV if whole else logits_BV[drawn]) / temperature_B1, -1)
    if any(rows[index].top_p < 1 for index in drawn):
        top_p_B1 = torch.tensor([[rows[index].top_p] for index in drawn], device=device)
        sorted_BV, order_BV = torch.sort(probs_BV, dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV  # the fewest tokens that hold at least top_p
        sorted_BV = sorted_BV.masked_fill((before_BV >= top_p_B1) & (top_p_B1 < 1), 0.0)
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV)
    # In double precision: over 150,000 tokens a single-precision sum is off by more than many a token's probability.
    shares_BV = probs_BV.cumsum(-1, dtype=torch.float64 if device.type != "mps" else torch.float32)
    uniform_B1 = torch.tensor([[rows[index].uniform()] for index in drawn], dtype=shares_BV.dtype, device=device)
    found_B1 = torch.searchsorted(shares_BV, uniform_B1 * shares_BV[:, -1:], right=True)
    # A number that rounding has put at the very end would be a token of no probability.
    last_B = (probs_BV > 0).long().mul(torch.arange(1, probs_BV.shape[-1] + 1, device=device)).argmax(-1)
    for index, token, last in zip(drawn, found_B1[:, 0].tolist(), last_B.tolist(), strict=True):
        tokens[index] = min(token, last)
    return tokens


class Decoder:
    """
    Samples rows with a model, many at a time.

    Args:
        model (`Any`): A causal language model of transformers, in evaluation mode.
        end_tokens (`set[int]`): The tokens that end a completion.
        pad_token (`int`): What stands left of short prompts; it is masked.
        batch_size (`int`): How many rows are sampled at once.
        on_end (`Callable[[Row, Exception | None], None]`): Called for each row that has ended, or that cannot.
        dropped (`Callable[[Row], bool]`, *optional*): Whether a row is wanted no longer.
    """

    def __init__(
        self,
        model: Any,
        end_tokens: set[int],
        pad_token: int,
        batch_size: int,
        on_end: Callable[[Row, Exception | None], None],
        dropped: Callable[[Row], bool] = lambda row: False,
    ):
        self.model, self.end_tokens, self.pad_token, self.batch_size = model, end_tokens, pad_token, batch_size
        self.on_end, self.dropped = on_end, dropped
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []
        self.cache: Any = None
        self.mask_BT: Any = None
        self.accepted = inspect.signature(model.forward).parameters
        self.alone = 0  # rows that were in a batch that failed are sampled one by one, to find the one that fails

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.waiting)

    def step(self) -> None:
        """The owner calls this as long as `busy`: it samples one token for each row of the batch."""
        try:
            with torch.inference_mode():
                if self._room():
                    self._enter()
                elif self.rows:
                    self._forward()
        except Exception as error:  # whose row it is nobody knows, unless there is but one
            failed, self.rows, self.cache, self.mask_BT = self.rows, [], None, None
            if len(failed) == 1:
                self.alone = max(self.alone - 1, 0)
                self.on_end(failed[0], error)
                return
            if isinstance(error, torch.OutOfMemoryError):
                self.batch_size = len(failed) // 2
                torch.cuda.empty_cache()
            else:
                self.alone += len(failed)
            self.waiting.extendleft(reversed(failed))  # the same seeds give the same tokens again

    def _accepted(self, **arguments: Any) -> dict[str, Any]:
        """Returns those arguments that the model has: one without positions of its own has no `position_ids`."""
        takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in self.accepted.values())
        return arguments if takes_all else {name: arguments[name] for name in arguments if name in self.accepted}

    def _room(self) -> int:
        """How many rows may enter now. A batch is entered in groups: each entry costs a forward over prompts."""
        self.waiting = deque(row for row in self.waiting if not self.dropped(row))
        size = 1 if self.alone else self.batch_size
        room = min(len(self.waiting), size - len(self.rows))
        if not self.rows:
            return room
        if room <= 0 or not self._can_be_joined():
            return 0
        return room if room >= max(1, size // 8) or room == len(self.waiting) else 0

    def _can_be_joined(self) -> bool:
        """Whether the cache is one of plain layers: what sliding windows and states of recurrent layers hold is not
        [rows, heads, positions, width], and rows then enter when the batch is empty."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def _enter(self) -> None:
        """Rows enter the batch: their prompts are read, and their first tokens are sampled."""
        from transformers import DynamicCache

        old, new = self.rows, [self.waiting.popleft() for _ in range(self._room())]
        self.rows = old + new  # so that all of them are found again if this fails
        for row in new:
            row.begin()
        longest = max(len(row.prompt) for row in new)
        device = self.model.device
        ids_BT = torch.tensor([[self.pad_token] * (longest - len(row.prompt)) + row.prompt for row in new])
        mask_BT = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in new]).to(device)
        cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT,
            past_key_values=cache,
            use_cache=True,
            **self._accepted(position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0), logits_to_keep=1),
        )
        if old:
            self.mask_BT = _joined(self.mask_BT, mask_BT, -1)
            for ours, theirs in zip(self.cache.layers, cache.layers, strict=True):
                ours.keys, ours.values = _joined(ours.keys, theirs.keys, -2), _joined(ours.values, theirs.values, -2)
        else:
            self.cache, self.mask_BT = output.past_key_values, mask_BT
        self._take(output.logits[:, -1], first=len(old))

    def _forward(self) -> None:
        """One step: the last token of each row goes in, and its next one is sampled."""
        device = self.model.device
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(self.rows), 1)], -1)
        output = self.model(
            input_ids=torch.tensor([[row.tokens[-1]] for row in self.rows], device=device),
            attention_mask=self.mask_BT,
            past_key_values=self.cache,
            use_cache=True,
            **self._accepted(position_ids=self.mask_BT.sum(-1, keepdim=True) - 1),
        )
        self.cache = output.past_key_values
        self._take(output.logits[:, -1], first=0)

    def _take(self, logits_BV: torch.Tensor, first: int) -> None:
        """Samples a token for each row of the batch from the first one on; those that end leave."""
        leaving: list[tuple[Row, Exception | None]] = []
        kept = list(range(first))
        for index, token in enumerate(next_tokens(logits_BV, self.rows[first:]), first):
            row = self.rows[index]
            error: Exception | None = None
            if token is None:
                what = f"after {len(row.tokens)} tokens the model's logits are not finite: nothing can be sampled."
                error = ValueError(what)
            else:
                row.tokens.append(token)
            full = len(row.tokens) >= row.max_new_tokens
            if error is not None or full or token in self.end_tokens or self.dropped(row):
                leaving.append((row, error))
            else:
                kept.append(index)
        if not leaving:
            return
        self.rows = [self.rows[index] for index in kept]
        if kept:
            kept_B = torch.tensor(kept, device=self.mask_BT.device)
            self.cache.reorder_cache(kept_B)
            self.mask_BT = self.mask_BT[kept_B]
            spare = int(self.mask_BT.argmax(-1).min())  # columns that are now padding in all rows
            if spare and self._can_be_joined():
                self.mask_BT = self.mask_BT[:, spare:]
                for layer in self.cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
        else:
            self.cache = self.mask_BT = None
        self.alone = max(self.alone - len(leaving), 0)
        for row, error in leaving:
            self.on_end(row, error)


def _joined(ours: torch.Tensor, theirs: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns the rows of both, with zeros in front of those that are shorter on the axis."""
    width, behind = max(ours.shape[axis], theirs.shape[axis]), (0, 0) * (-1 - axis)
    return torch.cat([torch.nn.functional.pad(one, (*behind, width - one.shape[axis], 0)) for one in (ours, theirs)])
