"""FiReOPDTrainer: GRPO's rollouts, this library's signal and loss. The only file that knows GRPOTrainer's insides."""

import textwrap
import time
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .batches import Batch, StandStill, filled_holes, micro_batches, model_kwargs, rollout_of, without_holes
from .config import FiReOPDConfig
from .logs import fill_completions_table, forget_rewards, no_reward
from .pipeline import Context, Method, Scores, distil, usable_B
from .preflight import checked_inputs
from .ranks import Ranks
from .scoring import token_scores
from .stages import aggregate, clipped_surrogate, masked_mean_B, mixed, reference_kl
from .teachers import Teacher, broken_teacher, named_teachers, placed_teachers, route_B


class FiReOPDTrainer(GRPOTrainer):
    """
    On-policy distillation with trajectory filtering and token reweighting (FiRe-OPD, arXiv 2606.02684), on TRL's GRPO
    trainer, whose generation, vLLM, tools, PEFT, logging and checkpoints it inherits.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`): The student.
        teacher_model (`str`, `PreTrainedModel` or `dict` of them, *optional*):
            The teacher, or teachers by name; by default `args.teacher_model_name_or_path`. A module that is passed
            in is frozen, given a fused head, and cut to the student's token rows, in place.
        args ([`FiReOPDConfig`], *optional*): The configuration.
        train_dataset (`Dataset` or `IterableDataset`): Rows with a `prompt`; with several teachers also
            `args.teacher_column`.
        reward_funcs (*optional*): Rewards as in GRPO. Logged; mixed in with `args.reward_coef`.
        kwargs: Everything else that [`~trl.GRPOTrainer`] takes: `peft_config`, `callbacks`, `rollout_func`, ...

    Example:

    ```python
    >>> from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
    >>> args = FiReOPDConfig("output", gradient_accumulation_steps=64)
    >>> FiReOPDTrainer("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", args, train_dataset=dataset).train()
    ```
    """

    _patience = 5  # windows in a row with nothing to train on
    _tag_names = ["trl", "fire-opd"]
    _name = "FiRe-OPD"
    _paper = {
        "title": "Filter, Then Reweight: Rethinking Optimization Granularity in On-Policy Distillation",
        "id": "2606.02684",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{li2026filter,
                title  = {{Filter, Then Reweight: Rethinking Optimization Granularity in On-Policy Distillation}},
                author = {Yuying Li and Leqi Zheng and Yongzi Yu and Wenrui Zhou and Xuchang Zhong and Xing Hu and Jing Jin and Huangjie Yuan and Tao Feng},
                year   = 2026,
                eprint = {arXiv:2606.02684},
            }"""),  # noqa: E501
    }

    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher_model: Teacher | dict[str, Teacher] | None = None,
        args: FiReOPDConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        reward_funcs=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ):
        args = args if args is not None else FiReOPDConfig("fire-opd-output")
        if not isinstance(args, FiReOPDConfig):
            raise TypeError(f"args is a {type(args).__name__}. Pass a FiReOPDConfig; it takes every GRPOConfig field.")
        if args.reward_coef and not (reward_funcs or kwargs.get("environment_factory")):
            raise ValueError(
                f"reward_coef={args.reward_coef} has no reward to weigh. Pass reward_funcs, or set it to 0."
            )
        teachers = named_teachers(teacher_model, model, args)
        self.method: Method = args.build_method()
        self._teachers_score_entropy = "teacher_entropy_BT" in self.method.signals

        processing_class, train_dataset, eval_dataset, student_rows = checked_inputs(
            model,
            teachers,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            prompts_are_text=kwargs.get("rollout_func") is None,
            prompts_exist=kwargs.get("environment_factory") is None,
        )
        super().__init__(
            model=model,
            reward_funcs=reward_funcs or (None if kwargs.get("environment_factory") else [no_reward]),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.rollout_func is not None:
            self.rollout_func = without_holes(self.rollout_func, self._tokenizer.pad_token_id)
        self.world = Ranks(self.accelerator)
        self._scored: list[tuple[torch.Tensor, torch.Tensor]] = []  # what GRPO asked for during this window
        self._empty_windows = 0
        self._stand_still = StandStill()
        self.add_callback(self._stand_still)
        self._step_sums: torch.Tensor | float = 0.0
        self.teachers = placed_teachers(teachers, student_rows, self, entropy=self._teachers_score_entropy)

    def train(self, *args, **kwargs):
        self._buffered_inputs, self._step_sums = None, 0.0  # nothing is left over from an earlier call
        return super().train(*args, **kwargs)

    def _send_telemetry(self):
        """TRL reports each trainer's start to its makers; this library sends nothing anywhere."""

    # Rollout and signal: once for each window

    def _generate_single_turn(self, *args, **kwargs):
        output = dict(zip(("completion_ids", "logprobs"), super()._generate_single_turn(*args, **kwargs), strict=True))
        return tuple(filled_holes(output, self._tokenizer.pad_token_id).values())

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        self._mode = mode = "train" if self.model.training else "eval"
        self._scored = []
        batch = super()._generate_and_score_completions(inputs)
        self.model.train(mode == "train")  # continuous batching leaves it in training mode
        reward_advantage_B = batch.pop("advantages")
        teacher_B = route_B(inputs, list(self.teachers), self.args.teacher_column)
        group = self.num_generations if mode == "train" else self.num_generations_eval
        stop_ids = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        rollout = rollout_of(batch, stop_ids, teacher_B, group, self.world)
        scores = self._scores(batch, teacher_B)
        context = Context(self.world, self.state.global_step / max(1, self.state.max_steps), self._window_seed)
        method = self.method if mode == "train" else self.method.unfiltered()
        try:
            signal = distil(rollout, scores, method, context)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {self.state.global_step}: {error}") from error
        share = signal.metrics["nonfinite_teacher"] / signal.metrics["rows"]
        if share > self.args.teacher_nonfinite_limit:
            broken_B = rollout.alive_B & ~usable_B(rollout, scores, self.method)
            prompts = gather_object([inputs[row]["prompt"] for row in broken_B.nonzero().flatten().tolist()])
            raise broken_teacher(self.state.global_step, share, self.args.teacher_nonfinite_limit, prompts)

        ratio_BT = batch.get("importance_sampling_ratio") if self.method.rollout_correction else None
        kept_BT = rollout.only(signal.keep_B).mask_BT
        advantage_BT = mixed(signal.advantage_BT, kept_BT, reward_advantage_B, self.args.reward_coef, ratio_BT)
        for name, value in signal.metrics.items():
            self._metrics[mode][f"fire/{name}"].append(value)
        if no_reward in self.reward_funcs:
            forget_rewards(self._metrics[mode], self._logs)
        fill_completions_table(self._logs, self.world, rollout, scores, signal, advantage_BT)

        batch["train_mask"], batch["keep"], batch["advantages"] = rollout.mask_BT, signal.keep_B, advantage_BT
        batch["old_per_token_logps"] = scores.student_logp_BT
        minus_advantage_BT = scores.student_logp_BT - scores.teacher_logp_BT
        batch["reverse_kl"] = masked_mean_B(minus_advantage_BT, kept_BT).mean()
        self._scored.clear()
        return batch

    def _scores(self, batch: Batch, teacher_B: list[int]) -> Scores:
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            asked = [pair for pair in self._scored if pair[0] is batch.get("old_per_token_logps")]
            student = asked[0] if asked else self._token_scores("student", self.model, batch)
            teacher = [
                self._token_scores(name, module, batch, [row for row, t in enumerate(teacher_B) if t == number])
                for number, (name, module) in enumerate(self.teachers.items())
            ]
        scores = Scores(
            teacher_logp_BT=sum(logp for logp, _ in teacher),
            teacher_entropy_BT=sum(entropy for _, entropy in teacher),
            student_logp_BT=student[0],
            student_entropy_BT=student[1],
        )
        return scores.only(self.method.signals)  # OPD needs no entropy

    def _token_scores(self, name: str, model: torch.nn.Module, batch: Batch, rows: list[int] | None = None):
        started = time.perf_counter()
        entropies = self._teachers_score_entropy if name in self.teachers else model is self.model
        vocabulary = self.accelerator.unwrap_model(model).config.get_text_config().vocab_size
        budget, multiple, training = self.args.scoring_token_budget, self.pad_to_multiple_of or 1, model.training
        forward = partial(self._forward, model, compute_entropy=entropies)
        model.eval()  # dropout would be noise in the advantage (no chaining: DeepSpeed's eval() returns None)
        scores = token_scores(forward, batch, budget, self.world, vocabulary, rows, multiple)
        model.train(training)
        self._metrics[self._mode][f"time/score_{name}"].append(time.perf_counter() - started)
        return scores

    def _forward(self, model: torch.nn.Module, part: Batch, **kwargs):
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
        mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
        width = part["completion_ids"].shape[1]
        return super()._get_per_token_logps_and_entropies(model, ids, mask, width, **model_kwargs(part), **kwargs)

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
        self._scored.append(self._token_scores("student" if model is self.model else "reference", model, batch))
        return *self._scored[-1], None

    # Slices and loss: once for each micro-batch

    def _prepare_inputs(self, generation_batch):
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        if self._buffered_inputs is None:  # first call, or resumed: take up the place inside the window
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._slices(self._generate_and_score_completions(generation_batch))
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
        self._empty_windows = 0 if self.world.gather(batch["keep"]).any() else self._empty_windows + 1
        if self._empty_windows == self._patience:
            raise RuntimeError(
                f"step {self.state.global_step}: nothing was left to train on in {self._patience} windows in a row: "
                "see fire/empty, fire/nonfinite_teacher. Look at the completions with log_completions=True."
            )
        return micro_batches(
            batch,
            steps=steps,
            per_step=args.gradient_accumulation_steps,
            loss_type=args.loss_type,
            processes=self.accelerator.num_processes,
            world=self.world,
            seed=self._window_seed,
            multiple=self.pad_to_multiple_of or 1,
        )

    @property
    def _window_seed(self) -> int:
        return self.args.seed * 1_000_003 + self.state.global_step  # equal on all ranks, and again after a resume

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("FiReOPDTrainer does not return outputs with the loss; call compute_loss without them.")
        if "scale" not in inputs:  # evaluation; known from scoring: the mean over rows of KL(student || teacher)
            return inputs["reverse_kl"]
        logp_BT, entropy_BT, router_loss = self._forward(
            model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        mask_BT, scale_B = inputs["train_mask"], inputs["scale"]
        old_logp_BT = inputs.get("old_per_token_logps", logp_BT.detach())
        loss_BT, clipped_BT = clipped_surrogate(
            logp_BT, old_logp_BT, inputs["advantages"], mask_BT, self.epsilon_low, self.epsilon_high
        )
        if self.beta:
            kl_BT = reference_kl(logp_BT, inputs["ref_per_token_logps"], mask_BT)
            loss_BT = loss_BT + self.beta * kl_BT
        loss = aggregate(loss_BT, mask_BT, scale_B)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * router_loss / self.current_gradient_accumulation_steps

        trained_BT = mask_BT & (scale_B > 0).unsqueeze(1)
        sums = {"entropy": entropy_BT, "fire/clip_ratio": clipped_BT, **({"kl": kl_BT} if self.beta else {})}
        sums = {name: torch.where(trained_BT, value_BT, 0.0).detach().sum() for name, value_BT in sums.items()}
        self._account({"broken": ~torch.isfinite(loss.detach()), "tokens": trained_BT.sum(), **sums})
        return loss

    def _account(self, sums: dict[str, torch.Tensor]):
        """Add up a micro-batch; at the last one, before the step is taken, look at the sums of all ranks."""
        self._step_sums = self._step_sums + torch.stack([value.float() for value in sums.values()])
        if not self.accelerator.sync_gradients:
            return
        total = dict(zip(sums, self.world.sum(self._step_sums).tolist(), strict=True))
        self._step_sums = 0.0
        if total.pop("broken"):
            raise FloatingPointError(
                f"step {self.state.global_step}: the loss is NaN or infinite; no weight was changed in this step. "
                "Resume from the last checkpoint with a lower learning_rate, or check the precision."
            )
        if tokens := total.pop("tokens"):
            for name, value in total.items():
                self._metrics["train"][name].append(value / tokens)
