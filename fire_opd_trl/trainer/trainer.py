"""FiReOPDTrainer: GRPO's rollouts, this library's signal and loss. The only file that knows GRPOTrainer's insides."""

from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from ..config import FiReOPDConfig
from ..pipeline import Context, Method, Rollout, Scores, distil
from ..preflight.inspection import check_inputs
from ..refusals import chosen_method
from ..rollouts.engine_gap import EngineMonitor
from ..rollouts.from_trl import fill_empty_completions, rollout_from_trl, wrap_rollout_func
from ..rollouts.layout import Batch, model_kwargs
from ..rollouts.micro_batches import layout_metrics, micro_batches
from ..rollouts.ranks import AcceleratorWorld
from ..scoring.divergences import compared, look_while_scoring, padded
from ..scoring.forward import score_lines, trl_rectangle
from ..scoring.heads import base_of, make_observable, observed
from ..scoring.token_scores import score_rows
from ..scoring.window import Window, refuse_unscored, rows_to_score, taught
from ..stages import aggregate, clipped_surrogate, combined, masked_mean_B, reference_kl
from ..teachers.health import refuse_broken_teacher, refuse_guessing_teacher
from ..teachers.placement import load_reference, load_teachers
from ..teachers.prompts import teacher_prompts
from ..teachers.routing import route_to_teachers
from ..teachers.sources import reference_source, teacher_sources
from ..teachers.vocabulary import Teacher
from .callbacks import EmptyStepGuard
from .logs import (
    CITATION,
    StepSums,
    errors_name_step,
    fill_completions_table,
    forget_rewards,
    named_metrics,
    no_reward,
)


class FiReOPDTrainer(GRPOTrainer):
    """
    On-policy distillation with trajectory filtering and token reweighting (FiRe-OPD, arXiv 2606.02684), on TRL's GRPO
    trainer, whose generation, vLLM, tools, PEFT, logging and checkpoints it inherits.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`): The student.
        teacher_model (`str`, `PreTrainedModel`, `PeftModel` or `dict` of them, *optional*):
            The teacher, or teachers by name; by default `args.teacher_model_name_or_path`. A string names a model, an
            adapter, or is `"self"`: the student without its adapter. A module that is passed in is frozen, given a
            fused head, and cut to the student's token rows, in place.
        args ([`FiReOPDConfig`], *optional*): The configuration.
        train_dataset (`Dataset` or `IterableDataset`): Rows with a `prompt`; with several teachers also
            `args.teacher_column`.
        reward_funcs (*optional*): Rewards as in GRPO. Logged; mixed in with `args.reward_coef`; read by some methods.
        method ([`Method`], *optional*): A recipe of your own, in place of `args.method`.
        kwargs: Everything else that [`~trl.GRPOTrainer`] takes: `peft_config`, `callbacks`, `rollout_func`, ...

    Example:

    ```python
    >>> from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
    >>> args = FiReOPDConfig("output", gradient_accumulation_steps=64)
    >>> FiReOPDTrainer("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", args, train_dataset=dataset).train()
    ```
    """

    _tag_names = ["trl", "fire-opd"]
    _name = "FiRe-OPD"
    _paper = CITATION

    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher_model: Teacher | dict[str, Teacher] | None = None,
        args: FiReOPDConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        reward_funcs=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        method: Method | None = None,
        **kwargs,
    ):
        args = args if args is not None else FiReOPDConfig("fire-opd-output")
        if not isinstance(args, FiReOPDConfig):
            raise TypeError(f"args is a {type(args).__name__}. Pass a FiReOPDConfig; it takes every GRPOConfig field.")
        self.method = chosen_method(method, args, rewarded=bool(reward_funcs or kwargs.get("environment_factory")))
        self._compares = "reverse_kl_BT" in self.method.signals
        adapted = kwargs.get("peft_config") is not None or hasattr(model, "peft_config")
        sources = teacher_sources(teacher_model, model, args, adapted)
        reference = reference_source(model, self.method, args)
        self.checked = check_inputs(
            model, sources, args, self.method, train_dataset, eval_dataset, processing_class, kwargs
        )
        super().__init__(
            model=model,
            reward_funcs=reward_funcs or (None if kwargs.get("environment_factory") else [no_reward]),
            args=args,
            train_dataset=self.checked.train_dataset,
            eval_dataset=self.checked.eval_dataset,
            processing_class=self.checked.processing_class,
            **kwargs,
        )
        if self.rollout_func is not None:
            self.rollout_func = wrap_rollout_func(self.rollout_func, self._tokenizer.pad_token_id)
        self.world = AcceleratorWorld(self.accelerator)
        self.canary = EngineMonitor()
        self._stand_still = EmptyStepGuard()
        self.add_callback(self._stand_still)
        self._step_sums = StepSums(self.world)
        for model in [model for model in (self.model, self.ref_model) if model is not None]:
            make_observable(base_of(self.accelerator.unwrap_model(model)), args.cast_lm_head_to_fp32)
        self.teachers = load_teachers(sources, self.checked.unknown, self.checked.student_rows, self)
        self.reference = load_reference(reference, self.checked.student_rows, self)

    def train(self, *args, **kwargs):
        self._buffered_inputs, self._step_sums = None, StepSums(self.world)  # nothing is left over from before
        self._last_loaded_step = -1  # nor in vLLM: a second run's steps are counted from 0 again, its weights are not
        output = super().train(*args, **kwargs)
        self._last_loaded_step = -1  # the best model may have been loaded
        return output

    def _send_telemetry(self):
        """TRL reports each trainer's start to its makers; this library sends nothing anywhere."""

    # Rollout and signal: once for each window

    def _generate_single_turn(self, *args, **kwargs):
        output = dict(zip(("completion_ids", "logprobs"), super()._generate_single_turn(*args, **kwargs), strict=True))
        return tuple(fill_empty_completions(output, self._tokenizer.pad_token_id).values())

    def _calculate_rewards(self, *args, **kwargs):
        self._reward_NF = super()._calculate_rewards(*args, **kwargs)
        return self._reward_NF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        mode = "train" if self.model.training else "eval"
        columns = self.args.teacher_column, self.args.teacher_prompt_column
        teacher_B = route_to_teachers(inputs, list(self.teachers), columns, self.world, self.accelerator.device)
        prompts = teacher_prompts(list(self.checked.renderers.values()), inputs, teacher_B.tolist(), self.tools)
        self.window = Window(mode, teacher_B, prompts)
        batch = super()._generate_and_score_completions(inputs)
        self.model.train(mode == "train")  # continuous batching leaves it in training mode
        reward_advantage_B, batch["teacher_number"] = batch.pop("advantages"), self.window.teacher_B
        group = self.num_generations if mode == "train" else self.num_generations_eval
        stop_ids = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        reward_BF = self._reward_NF[self.world.local_slice(len(inputs))] if "reward_B" in self.method.needs else None
        rollout = rollout_from_trl(batch, stop_ids, group, reward_BF, self.reward_weights, self.world)
        context = Context(self.world, self.state.global_step / max(1, self.state.max_steps), self._window_seed)
        method = self.method if mode == "train" else self.method.unfiltered()
        scores = self._scores(batch, rollout, method, context)
        with errors_name_step(self.state.global_step):
            signal = distil(rollout, scores, method, context)
        refuse_unscored(signal.keep_B, self.window.scored_rows, self.world)
        refuse_broken_teacher(self, inputs, rollout, scores, signal)
        refuse_guessing_teacher(self, rollout, scores)
        signal.metrics.update(self.canary.look(self, batch, rollout, scores))
        ratio_BT = batch.get("importance_sampling_ratio") if self.method.rollout_correction else None
        kept_BT = rollout.only(signal.keep_B).mask_BT
        advantage_BT = combined(signal.advantage_BT, kept_BT, reward_advantage_B, self.args.reward_coef, ratio_BT)
        for name, value in named_metrics(self.teachers, self.method.signals, rollout, scores, signal, self.world):
            self._metrics[mode][f"fire/{name}"].append(value)
        if no_reward in self.reward_funcs:
            forget_rewards(self._metrics[mode], self._logs)
        fill_completions_table(self._logs, self.world, rollout, scores, signal, advantage_BT)

        batch["train_mask"], batch["keep"], batch["advantages"] = rollout.mask_BT, signal.keep_B, advantage_BT
        batch["old_per_token_logps"], batch["teacher_logps"] = scores.student_logp_BT, scores.teacher_logp_BT
        minus_advantage_BT = scores.student_logp_BT - scores.teacher_logp_BT
        batch["reverse_kl"] = masked_mean_B(minus_advantage_BT, kept_BT).mean()
        if mode == "train" and signal.divergence_BT is not None:
            batch.update(self.window.taught[2], divergence=signal.divergence_BT)
        self.window = Window(mode, teacher_B, prompts)  # its hidden states are large
        return batch

    def _scores(self, batch: Batch, rollout: Rollout, method: Method, context: Context) -> Scores:
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            teacher = taught(self, batch)
            asked = [scored for scored in self.window.scored if scored[0] is batch.get("old_per_token_logps")]
            self.window.scored_rows = rows = None if asked else rows_to_score(rollout, teacher, method, context)
            student = asked[0] if asked else self._token_scores("student", self.model, batch, rows)
            reference = self._token_scores("reference", self.reference, batch, rows)[0] if self.reference else None
        scores = Scores(
            teacher_logp_BT=teacher[0],
            student_logp_BT=student[0],
            teacher_entropy_BT=teacher[1],
            student_entropy_BT=student[1],
            reference_logp_BT=reference,
            reverse_kl_BT=padded(student[2]["divergence"], teacher[0]) if self._compares else None,
        )
        return scores.only(self.method.signals)  # OPD needs no entropy

    def _token_scores(self, name: str, model: torch.nn.Module, batch: Batch, rows=None, unknown=frozenset()):
        entropies = "teacher_entropy_BT" in self.method.signals if name in self.teachers else name == "student"
        if name == "student" and self._compares:
            batch = {**batch, **taught(self, batch)[2], "teacher_number": self.window.teacher_B}
        vocabulary, started = self.accelerator.unwrap_model(model).config.get_text_config().vocab_size, perf_counter()
        budget, multiple, training = self.args.scoring_token_budget, self.pad_to_multiple_of or 1, model.training
        forward = partial(self._forward, model, look=look_while_scoring(self, name), compute_entropy=entropies)
        model.eval()  # dropout would be noise in the advantage (no chaining: DeepSpeed's eval() returns None)
        scores = score_rows(forward, batch, budget, self.world, vocabulary, rows, multiple, unknown)
        model.train(training)
        self._metrics[self.window.mode][f"time/score_{name}"].append(perf_counter() - started)
        return scores

    def _forward(self, model: torch.nn.Module, part: Batch, look=None, compute_aux_loss=False, **flags):
        base, observer = base_of(self.accelerator.unwrap_model(model)), look(part) if look else None
        if pictures := model_kwargs(part):  # TRL knows how each model wants them
            *rectangle, columns = trl_rectangle(part)
            flags.update(pictures, compute_aux_loss=compute_aux_loss)
            with observed(base, observer, columns):
                scored = super()._get_per_token_logps_and_entropies(model, *rectangle, **flags)
                return *scored[:2], base.seen, scored[2]
        with self.accelerator.autocast():
            return score_lines(model, base, part, observer, compute_aux_loss, self.pad_to_multiple_of or 1)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        # GRPO calls this with a `batch_size` when it scores a whole window (old and reference log-probabilities).
        batch = {
            "prompt_ids": input_ids[:, :-logits_to_keep],
            "prompt_mask": attention_mask[:, :-logits_to_keep],
            "completion_ids": input_ids[:, -logits_to_keep:],
            "completion_mask": attention_mask[:, -logits_to_keep:],
            **{key: value for key, value in kwargs.items() if value is not None},
        }
        self.window.scored.append(self._token_scores("student" if model is self.model else "reference", model, batch))
        return *self.window.scored[-1][:2], None

    # Slices and loss: once for each micro-batch

    def _prepare_inputs(self, generation_batch):
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        if self._buffered_inputs is None:  # first call, or resumed: take up the place inside the window
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            self._buffered_inputs = []  # the last window goes before the next one comes
            self._buffered_inputs = self._slices(self._generate_and_score_completions(generation_batch))
            for name, value in layout_metrics(self._buffered_inputs, self.world).items():
                self._metrics["train"][f"fire/{name}"].append(value)
        part = self._buffered_inputs[self._step % self.args.steps_per_generation]
        if part["rows_in_step"] == 0:
            self._stand_still.hold(self.optimizer.param_groups)
            self._metrics["train"]["fire/empty_steps"].append(1.0)
        return part

    def _slices(self, batch: Batch) -> list[Batch]:
        args = self.args
        steps = args.steps_per_generation // args.gradient_accumulation_steps
        if steps * self.num_iterations == 1:  # on policy: the ratio is 1, exactly, against the forward of the loss
            del batch["old_per_token_logps"]
        self._stand_still.count(bool(self.world.gather(batch["keep"]).any()), self.state.global_step)
        return micro_batches(
            batch,
            steps=steps,
            per_step=args.gradient_accumulation_steps,
            loss_type=args.loss_type,
            world=self.world,
            seed=self._window_seed,
            multiple=self.pad_to_multiple_of or 1,
            balance=args.balance,
        )

    @property
    def _window_seed(self) -> int:
        return self.args.seed * 1_000_003 + self.state.global_step  # equal on all ranks, and again after a resume

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("FiReOPDTrainer does not return outputs with the loss; call compute_loss without them.")
        if "scale" not in inputs:  # evaluation; known from scoring: the mean over rows of KL(student || teacher)
            return inputs["reverse_kl"]
        divergence = self.method.divergence
        look = partial(compared, self, "divergence", divergence) if divergence else None
        logp_BT, entropy_BT, seen, router_loss = self._forward(
            model, inputs, look, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        mask_BT, scale_B, sums = inputs["train_mask"], inputs["scale"], {"entropy": entropy_BT}
        old_logp_BT, clips = inputs.get("old_per_token_logps", logp_BT.detach()), (self.epsilon_low, self.epsilon_high)
        follows = self.method.advantage or self.args.reward_coef  # else no backward through log_probs
        now_BT = logp_BT if follows else old_logp_BT
        surrogate = clipped_surrogate(now_BT, old_logp_BT, inputs["advantages"], mask_BT, *clips)
        loss_BT, sums["fire/clip_ratio"] = surrogate
        if divergence:
            sums["fire/divergence"] = torch.where(mask_BT, inputs["divergence"] * seen["divergence"], 0.0)
            loss_BT = loss_BT + sums["fire/divergence"]
        if self.beta:
            sums["kl"] = reference_kl(logp_BT, inputs["ref_per_token_logps"], mask_BT)
            loss_BT = loss_BT + self.beta * sums["kl"]
        loss = aggregate(loss_BT, mask_BT, scale_B)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * router_loss / self.current_gradient_accumulation_steps
        self._step_sums.add(loss, mask_BT & (scale_B > 0).unsqueeze(1), sums)
        if self.accelerator.sync_gradients:
            for name, value in self._step_sums.total(self.state.global_step).items():
                self._metrics["train"][name].append(value)
        return loss
