"""
Samples answers between the steps of a run, for callbacks that want to know how good the student is by now: by the very
engine that samples for training, and without a trace in the training. Beside trainer.py, the only file that knows
GRPOTrainer's insides.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import GenerationConfig, TrainerCallback

from ..refusals import HARMLESS_SAMPLING
from ..stages import failing_alike


if TYPE_CHECKING:
    from .trainer import FiReOPDTrainer

# What an evaluation takes over from the `generation_kwargs` of the run: when to stop, and what changes no token.
KEPT_SETTINGS = (HARMLESS_SAMPLING | {"suppress_tokens"}) - {"seed", "max_tokens", "max_new_tokens", "max_length"}


@dataclass(frozen=True)
class Completion:
    """
    What was sampled for one prompt.

    Args:
        text (`str`): Without special tokens.
        tokens (`int`): Those that were sampled; an end token is one of them.
        finished (`bool`): Whether it ended by itself, and was not cut.
    """

    text: str
    tokens: int
    finished: bool


class SamplingCallback(TrainerCallback):
    """
    A callback that samples. Before training starts, the trainer gives it a `sampler`, and puts it behind all other
    callbacks, so that its time is not counted as that of a step. All ranks must call the sampler alike.
    """

    sampler: "Sampler | None" = None
    keeps_best = False  # whether it writes the folder `best` of output_dir, which only one callback may


def hand_out_samplers(trainer: "FiReOPDTrainer") -> None:
    """The trainer calls this before training: callbacks that sample get what they sample with."""
    callbacks = trainer.callback_handler.callbacks
    sampling = [callback for callback in callbacks if isinstance(callback, SamplingCallback)]
    if trainer.args.accuracy_task and not sampling:
        raise ValueError(
            f"accuracy_task={trainer.args.accuracy_task!r} is read by `fire-opd train`. In Python, pass "
            "callbacks=[AccuracyCallback.of(args)], from fire_opd_trl.evaluation.evaluate.accuracy."
        )
    if sum(callback.keeps_best for callback in sampling) > 1:
        raise ValueError(
            "Several callbacks keep the best model, all in the folder best of output_dir. Set keep_best=False in all "
            "but one of them."
        )
    for callback in sampling:
        callback.sampler = Sampler(trainer)
        callbacks.remove(callback)
        callbacks.append(callback)


class Sampler:
    """
    What a callback may ask of the trainer: to sample, to log, to save the model, and to tell all ranks something.
    """

    def __init__(self, trainer: "FiReOPDTrainer"):
        self._trainer = trainer
        self.main = trainer.accelerator.is_main_process

    def sample(
        self, prompts: Sequence[str], seed: int, temperature: float = 1.0, max_new_tokens: int | None = None
    ) -> list[Completion]:
        """
        Returns a completion of each prompt, on all ranks the same list. Where the tokenizer has a chat template, a
        prompt is the message of a user. No tool is offered. Whatever the training does, the whole distribution is
        sampled at this temperature (0 takes the likeliest token), without penalties.

        The rows are dealt out to the ranks like cards, and all ranks make the same number of calls, the last of them
        with a row more if need be. The random numbers are those of `seed`, the rank and the call, so that the same
        run gives the same answers again, and another number of ranks other answers of the same distribution. vLLM
        draws from the generator of its process: in this one the same holds, and a server has its own.
        """
        trainer, world = self._trainer, self._trainer.world
        longest = self.longest(max_new_tokens)
        dealt = range(world.rank, -(-len(prompts) // world.ranks) * world.ranks, world.ranks)
        at_once = self._rows_at_once(len(dealt), longest)
        mine: list[tuple[int, Completion]] = []
        with self._undisturbed(), self._settings(temperature, longest):
            for start in range(0, len(dealt), at_once):
                rows = [min(row, len(prompts) - 1) for row in dealt[start : start + at_once]]
                torch.manual_seed(int(np.random.SeedSequence((seed, world.rank, start)).generate_state(1)[0]))
                with self.alike():
                    prompt_ids, images, fields = self._tokens([prompts[row] for row in rows])
                    completion_ids, _ = trainer._generate_single_turn(prompt_ids, images, fields, 1)
                    completions = [self._completion(ids) for ids in completion_ids]
                mine += zip(dealt[start : start + at_once], completions, strict=True)
        found = dict(gather_object(mine))
        return [found[row] for row in range(len(prompts))]

    def longest(self, max_new_tokens: int | None) -> int:
        """Returns how many tokens an answer may have, where the callback gives this number or none."""
        return self._trainer.max_completion_length if max_new_tokens is None else max_new_tokens

    def _rows_at_once(self, rows: int, longest: int) -> int:
        """As many as training samples at once, or fewer if they are longer; an engine of its own takes all of them."""
        trainer, args = self._trainer, self._trainer.args
        if trainer.use_vllm or trainer.use_transformers_continuous_batching:
            return max(1, rows)
        of_training = args.per_device_train_batch_size * args.steps_per_generation
        return max(1, of_training * trainer.max_completion_length // max(longest, trainer.max_completion_length))

    def _tokens(self, prompts: Sequence[str]) -> tuple:
        """What TRL makes of prompts: ids, images and other fields."""
        trainer, asked = self._trainer, list[Any](prompts)
        if trainer.processing_class.chat_template is not None or trainer.chat_template is not None:
            asked = [[{"role": "user", "content": text}] for text in prompts]
        with replaced(trainer, tools=[], environment_factories=None):
            return trainer._tokenize_prompts(asked)

    def refuse_overlong(self, prompts: Sequence[str], max_new_tokens: int | None) -> None:
        """A callback calls this before training: each prompt must leave room for the longest answer."""
        trainer, args = self._trainer, self._trainer.args
        longest = self.longest(max_new_tokens)
        config = trainer.accelerator.unwrap_model(trainer.model).config.get_text_config()
        contexts = [getattr(config, "max_position_embeddings", None)]
        contexts += [args.vllm_max_model_length] if trainer.use_vllm else []
        context = min((known for known in contexts if known), default=None)
        tokens = max(map(len, self._tokens(prompts)[0]))
        if context is not None and tokens + longest > context:
            raise ValueError(
                f"A problem of {tokens} tokens and an answer of up to {longest} do not fit into a context of "
                f"{context}. Lower max_new_tokens (accuracy_max_new_tokens)."
            )

    def _completion(self, ids: list[int]) -> Completion:
        tokenizer, ends = self._trainer._tokenizer, self._trainer.eos_token_ids
        nothing = ids == [tokenizer.pad_token_id] and tokenizer.pad_token_id not in ends  # see fill_empty_completions
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(text, 0 if nothing else len(ids), finished=nothing or ids[-1] in ends)

    @contextmanager
    def _settings(self, temperature: float, longest: int) -> Iterator[None]:
        """Inside this, TRL samples with these settings."""
        trainer, args = self._trainer, self._trainer.args
        ours: dict[str, Any] = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": None}
        ours["repetition_penalty"] = 1.0
        if trainer.use_vllm:
            kept = {name: value for name, value in (args.generation_kwargs or {}).items() if name in KEPT_SETTINGS}
            ours |= {"max_completion_length": longest, "structured_outputs_regex": None, "generation_kwargs": kept}
            with replaced(trainer.vllm_generation, **ours):
                yield
            return
        kept = {name: value for name, value in trainer.generation_kwargs.items() if name in KEPT_SETTINGS}
        kept |= {"max_new_tokens": longest, **({"do_sample": True, **ours} if temperature else {"do_sample": False})}
        config = GenerationConfig(**kept, disable_compile=True)
        with replaced(trainer, generation_kwargs=kept, generation_config=config):
            yield

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Inside this, the model answers as it is used, without dropout; random numbers go on as if nothing was."""
        model, device = self._trainer.model, self._trainer.accelerator.device
        in_training = [module for module in model.modules() if module.training]
        of_python, of_numpy = random.getstate(), np.random.get_state()
        kind, devices = (device.type, [device]) if device.type in ("cuda", "xpu", "npu") else ("cuda", [])
        try:
            with torch.random.fork_rng(devices=devices, device_type=kind):
                model.eval()
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
            model.eval()  # continuous batching leaves all of it in training mode
            for module in in_training:
                module.training = True

    def log(self, values: dict[str, Any]) -> None:
        """Log values of their own: what the trainer has gathered for its next log stays where it is."""
        trainer = self._trainer
        empty: dict[str, dict] = {"train": defaultdict(list), "eval": defaultdict(list)}
        with (
            replaced(trainer, _metrics=empty, log_completions=False),
            replaced(trainer.control, should_log=trainer.control.should_log),  # a log would take it as done
        ):
            trainer.log(values)

    def save(self, folder: str) -> None:
        """Save the model and its tokenizer as the end of a run does: whole, or the adapter. All ranks call this."""
        self._trainer.save_model(folder, _internal_call=True)  # which is not pushed to the Hub

    def alike(self) -> AbstractContextManager[None]:
        """Inside this, what fails on one rank stops all of them."""
        return failing_alike(self._trainer.world, self._trainer.accelerator.device)

    def from_main(self, value: Any) -> Any:
        """Returns the value of the main process, on all ranks. They wait here for each other."""
        return broadcast_object_list([value])[0]

    def any_failed(self, failed: bool) -> bool:
        """Returns whether anything failed on any rank. They wait here for each other."""
        flag = torch.tensor(int(failed), device=self._trainer.accelerator.device)
        return bool(self._trainer.world.max(flag))


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Inside this, attributes of an object have other values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
