"""A trainer that looks at one window, and changes nothing: for `fire-opd inspect --student --teacher --prompts`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import set_seed

from ..rollouts.layout import Batch
from ..scoring.heads import base_of
from .record import INSPECTED, INSPECTING
from .trainer import FiReOPDTrainer


class OneWindowTrainer(FiReOPDTrainer):
    """
    Samples, scores and distils one window as a training does, without an update: there is no optimizer, no gradient
    and no checkpoint. What a training writes at a log is written: run.json, a line of metrics.jsonl, trajectories.

    The window is sampled in parts, since a cache of keys and values of all rows may not fit. Scoring takes parts by
    itself (`scoring_token_budget`). Statistics are over all rows, as always.

    Args:
        tokens_at_once (`int`): Padded tokens, prompts and answers, that are sampled at a time.
        asked (`dict`): What was asked for, for run.json.
        args, kwargs: Those of [`FiReOPDTrainer`]; the student is a module whose weights are frozen.

    What it overrides: `_generate_single_turn`, to sample in parts, and `_log_window`, to say how long what took.
    """

    def __init__(self, *args, tokens_at_once: int, asked: dict[str, Any], **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens_at_once = tokens_at_once
        self._record.facts["asked"] = asked

    def look(self, rows: list[dict[str, Any]]) -> Batch:
        """Returns the window: an answer to each row, or several (`num_generations`), scored and distilled."""
        with self._record.of_failure(self.args):
            self._record.begin(self.args, self.state, INSPECTING)
            set_seed(self.args.seed)  # the same answers whatever was loaded before: teachers are compared on them
            self.model.train()  # as a training distils: with the filter; `disable_dropout` switches the noise off
            with torch.no_grad():
                window = self._generate_and_score_completions([r for r in rows for _ in range(self.num_generations)])
            self.log({})
        return window

    def conclude(self, found: dict[str, Any]) -> None:
        """Records what was found in the window."""
        self._record.end(self.args, INSPECTED, metrics={"last": self.state.log_history[-1]}, **found)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if self.use_vllm or self.use_transformers_continuous_batching or multimodal_fields:
            print(f"sampling {len(prompt_ids)} answers", flush=True)
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        longest = self.max_completion_length
        at_once = max(1, self.tokens_at_once // (max(map(len, prompt_ids)) + longest))
        parts = [prompt_ids[start : start + at_once] for start in range(0, len(prompt_ids), at_once)]
        print(f"sampling {len(prompt_ids)} answers of at most {longest} tokens, {len(parts[0])} at a time", flush=True)
        completion_ids: list[list[int]] = []
        with tqdm(total=len(parts) * longest, disable=None, desc="sampling", unit="token", leave=False) as bar:
            for number, part in enumerate(parts, 1):
                with counting_forwards(base_of(self.accelerator.unwrap_model(self.model)), bar):
                    completion_ids += super()._generate_single_turn(part, None, {}, num_generations, **kwargs)[0]
                bar.update(number * longest - bar.n)
                if len(parts) > 1 and bar.disable:
                    print(f"  {len(completion_ids)} of {len(prompt_ids)}", flush=True)
        return completion_ids, None

    def _log_window(self, name: str, value: float) -> None:
        super()._log_window(name, value)
        if name == "time/rollout":
            print(f"sampled in {value:.1f} s; scoring under {', '.join([*self.teachers, 'student'])}", flush=True)
        elif name.startswith("time/score_"):
            print(f"  {name.removeprefix('time/score_')}: {value:.1f} s", flush=True)


@contextmanager
def counting_forwards(model: torch.nn.Module, bar: tqdm) -> Iterator[None]:
    """Each forward of the model, one for each token that all rows of a part get, moves the bar."""
    handle = model.register_forward_hook(lambda *_: bar.update() and None)
    try:
        yield
    finally:
        handle.remove()
