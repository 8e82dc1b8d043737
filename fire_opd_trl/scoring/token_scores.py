"""From a model and rollouts to the log-probability and the entropy of every sampled token, in many short forwards."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from transformers import PreTrainedModel

from ..rollouts.layout import Batch, lengths, take
from ..rollouts.packing import cut_at_least_cost, cut_to_count, of_like_length, shortest_row
from ..stages import World
from .clock import clock
from .forward import ForwardOutput, length_bounds
from .forward_cost import LAUNCH, forward_cost
from .heads import Observer


Observe = Callable[[Batch], Observer | None]  # from the rows of a forward to what looks at it


class TokenScores(NamedTuple):
    """
    What one model says of the completion tokens of this rank's rows. Values are 0 where nothing was computed.

    Args:
        logp_BT (`torch.Tensor`): Log-probabilities of the sampled tokens, in float32.
        entropy_BT (`torch.Tensor`): Entropies of the next-token distributions, in float32; 0 if none were asked for.
        observed (`dict`): What else was observed, by name: for each row a tensor of the row's own length.
    """

    logp_BT: torch.Tensor
    entropy_BT: torch.Tensor
    observed: dict[str, list[torch.Tensor]]


class Scorer(Protocol):
    """Whatever can score rows: the student, a teacher or a reference in this process, or a teacher on a server."""

    def token_scores(
        self, batch: Batch, rows: list[int] | None = None, observe: Observe | None = None
    ) -> TokenScores: ...


class Forward(Protocol):
    """The trainer's forward: the seam with TRL, which knows how each model wants its images."""

    def __call__(
        self, model: torch.nn.Module, part: Batch, observer: Observer | None, *, compute_entropy: bool
    ) -> ForwardOutput: ...


@dataclass
class ModelScorer:
    """
    A model of this process as a [`Scorer`]. Every rank calls `token_scores` equally often, also without a row.

    Args:
        active (`Callable`): A context manager that gives the wrapped module, its adapters switched to this model.
        base (`Callable`): Gives the model itself, inside all wrappers.
        forward ([`Forward`]): One forward of a part of the rows.
        world ([`World`]): All ranks.
        token_budget (`int`): See [`score_rows`].
        multiple (`int`): See [`~fire_opd_trl.rollouts.layout.take`].
        entropies (`bool`): Whether entropies are wanted.
        unknown (`frozenset[int]`): Ids that mean nothing to the model.
        keep (`Callable`): Makes the copy of what was observed of a row, which lives until the loss has read it.
        on_time (`Callable`): Is told the seconds that each call took.
    """

    active: Callable[[], AbstractContextManager[torch.nn.Module]]
    base: Callable[[], PreTrainedModel]
    forward: Forward
    world: World
    token_budget: int
    multiple: int
    entropies: bool
    unknown: frozenset[int]
    on_time: Callable[[float], None]
    keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone

    @property
    def bounds(self) -> tuple[int, ...]:
        """Between which lengths this model has no forward in common: the update keeps to the student's too."""
        return length_bounds(self.base().config.get_text_config(), self.multiple)

    def token_scores(self, batch: Batch, rows: list[int] | None = None, observe: Observe | None = None) -> TokenScores:
        """
        Score rows of this rank; the model is in evaluation mode meanwhile, since dropout would be noise in the
        advantage.

        Args:
            batch (`dict`): The window of this rank.
            rows (`list[int]`, *optional*): Rows to score, by default all.
            observe (`Callable`, *optional*): What looks at each forward.
        """
        config, device = self.base().config.get_text_config(), batch["completion_ids"].device
        with self.active() as model:

            def forward(part: Batch) -> ForwardOutput:
                return self.forward(model, part, observe(part) if observe else None, compute_entropy=self.entropies)

            started, training = clock(device), model.training
            model.eval()  # no chaining: DeepSpeed's eval() returns None
            scores = score_rows(
                forward,
                batch,
                self.token_budget,
                self.world,
                config.vocab_size,
                rows,
                self.multiple,
                self.unknown,
                cost=forward_cost(model, config, device.type),
                keep=self.keep,
                bounds=self.bounds,
            )
            model.train(training)
            self.on_time(clock(device) - started)
        return scores


@torch.no_grad()
def score_rows(
    forward: Callable[[Batch], ForwardOutput],
    batch: Batch,
    token_budget: int,
    world: World,
    vocabulary: int,
    rows: list[int] | None = None,
    multiple: int = 1,
    unknown: frozenset[int] = frozenset(),
    cost: int = LAUNCH["cpu"],
    keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    bounds: Sequence[int] = (),
) -> TokenScores:
    """
    Score rows of a batch under one model. They are sorted by length and cut where it costs least, at most
    `token_budget` padded tokens at a time, into equally many forwards on every rank, since sharded models communicate
    in each.

    Args:
        forward (`Callable`): One forward of a part of the rows.
        batch (`dict`): The batch.
        token_budget (`int`): Padded tokens in one forward; a longer row goes alone.
        world ([`World`]): All ranks.
        vocabulary (`int`): Token rows of the model. An id beyond them, which a student padded to more rows can sample,
            has no log-probability: it is scored NaN, and its trajectory is dropped and counted like any broken one.
        rows (`list[int]`, *optional*): Rows to score, by default all.
        multiple (`int`): See [`~fire_opd_trl.rollouts.layout.take`].
        unknown (`frozenset[int]`): Further ids that mean nothing to the model, and are treated alike.
        cost (`int`): What a forward costs beside its tokens, in tokens.
        keep (`Callable`): Makes the copy of what was observed of a row.
        bounds (`Sequence[int]`): See [`~fire_opd_trl.rollouts.packing.of_like_length`].
    """
    length_B, completion_B = lengths(batch), batch["completion_mask"].sum(dim=1).tolist()
    rows = list(range(len(length_B))) if rows is None else rows
    device = batch["completion_ids"].device
    classes = of_like_length(rows, length_B, bounds)
    cuts = [cut for alike in classes for cut in cut_at_least_cost(alike, length_B, token_budget, cost)]
    count = int(world.max(torch.tensor(len(cuts), device=device)))
    strange = torch.tensor(sorted(unknown), dtype=torch.long, device=device)
    logp_BT = torch.zeros(batch["completion_ids"].shape, dtype=torch.float32, device=device)
    entropy_BT = torch.zeros_like(logp_BT)
    observed: dict[str, list[torch.Tensor]] = {}
    for cut in cut_to_count(cuts, length_B, count):
        part = take(batch, cut or [shortest_row(length_B)], multiple)
        known = (part["completion_ids"] < vocabulary) & ~torch.isin(part["completion_ids"], strange)
        known &= (part["prompt_ids"] < vocabulary).all(dim=1, keepdim=True)
        for name in ("prompt_ids", "completion_ids"):
            part[name] = part[name].clamp(max=vocabulary - 1)
        output = forward(part)
        logp = torch.where(known, output.logp_BC, torch.nan)
        if cut:  # else this rank had no row left, and the forward was for the others
            index, width = torch.tensor(cut, device=device), logp.shape[1]
            logp_BT[index, :width] = logp.float()
            if output.entropy_BC is not None:
                entropy_BT[index, :width] = output.entropy_BC.float()
            for name, values in output.observed.items():
                ragged = observed.setdefault(name, [values.new_zeros((0, *values.shape[2:]))] * len(length_B))
                for row, value in zip(cut, values, strict=True):
                    ragged[row] = keep(value[: completion_B[row]])
    return TokenScores(logp_BT, entropy_BT, observed)
