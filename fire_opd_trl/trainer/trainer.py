"""
FiReOPDTrainer: GRPO's rollouts, this library's signal and loss. Only this file and sampling.py know GRPOTrainer's
insides.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from ..config import FiReOPDConfig
from ..pipeline import Context, Method, Rollout, Scores, Signal, distil
from ..preflight.inspection import check_inputs
from ..preflight.precision import refuse_loaded_weights
from ..preflight.streams import WholeStream, refuse_short_stream
from ..refusals import chosen_method, refuse_missing_rewards, refuse_unread_weights
from ..rollouts.drawn_rows import bring_rows, weighted_reward_B
from ..rollouts.engine_gap import EngineMonitor
from ..rollouts.from_trl import fill_empty_completions, rollout_from_trl, wrap_rollout_func
from ..rollouts.images import images_of, lists_of_images, with_companion, without_lost_images
from ..rollouts.layout import COMPANION, Batch, model_kwargs
from ..rollouts.micro_batches import layout_metrics, micro_batches
from ..rollouts.ranks import AcceleratorWorld
from ..scoring.clock import clock
from ..scoring.divergences import on_host
from ..scoring.forward import ForwardOutput, score_lines, trl_rectangle
from ..scoring.heads import Observer, base_of, make_observable, observing
from ..scoring.token_scores import ModelScorer
from ..scoring.window import Mode, WindowScorer
from ..stages import aggregate, clipped_surrogate, combined, failing_alike, masked_mean_B, reference_kl
from ..teachers.health import refuse_broken_teacher, refuse_guessing_teacher
from ..teachers.placement import keep_outputs_exact, load_reference, load_teachers
from ..teachers.prompts import teacher_prompts
from ..teachers.routing import route_to_teachers
from ..teachers.setup import RunSetup
from ..teachers.sources import reference_source, teacher_sources
from ..teachers.vocabulary import Teacher
from .callbacks import EmptyStepGuard, StepTimer
from .card import write_model_card
from .logs import (
    StepSums,
    errors_name_step,
    fill_completions_table,
    forget_rewards,
    named_metrics,
    no_reward,
)
from .progress import leave_out_noise, show_progress
from .record import RunRecord, facts_of
from .recorder import RolloutRecorder
from .sampling import hand_out_samplers
from .watchdogs import WatchdogCallback


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
        method ([`Method`] or `str`, *optional*): A recipe of your own, in place of `args.method`, or a name of
            `METHODS`, whose arguments are then those of `args`.
        kwargs: Everything else that [`~trl.GRPOTrainer`] takes: `peft_config`, `callbacks`, `rollout_func`, ...

    Example:

    ```python
    >>> from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
    >>> args = FiReOPDConfig("output", gradient_accumulation_steps=64)
    >>> FiReOPDTrainer("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", args, train_dataset=dataset).train()
    ```

    What it overrides of GRPOTrainer, in the order of a step:

    - `__init__`: checks everything before a model is loaded; then loads the teachers beside the student.
    - `create_accelerator_and_postprocess`: under FSDP 2 no model rounds its outputs.
    - `train`: starts without anything that an earlier run has left over, gives callbacks that sample what they sample
      with, and records how it ended.
    - `create_model_card`: says what was distilled into what, from which data, how, and with which result.
    - `_send_telemetry`: sends nothing.
    - `_get_dataloader`: lets every rank read the whole of a stream.
    - `_prepare_inputs`: cuts a window's survivors into micro-batches, where GRPO splits all rows evenly.
    - `_generate_and_score_completions`: routes rows to teachers, lets GRPO sample, then scores and distils.
    - `_generate`: takes the time of a rollout, and gives rows without images an empty list of them, where GRPO's
      `None` breaks the processor.
    - `_generate_single_turn`: fills empty completions, which GRPO cannot measure.
    - `_calculate_rewards`: keeps the rewards of each function, which some methods read, and stops all ranks alike.
    - `_get_per_token_logps_and_entropies`: scores in short forwards, and remembers what GRPO asked for.
    - `compute_loss`: the objective, on one micro-batch.
    """

    _tag_names = ["trl", "fire-opd"]
    _name = "FiRe-OPD"

    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher_model: Teacher | dict[str, Teacher] | None = None,
        args: FiReOPDConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        reward_funcs=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        method: Method | str | None = None,
        **kwargs,
    ):
        args = args if args is not None else FiReOPDConfig("fire-opd-output")
        if not isinstance(args, FiReOPDConfig):
            raise TypeError(f"args is a {type(args).__name__}. Pass a FiReOPDConfig; it takes every GRPOConfig field.")
        leave_out_noise(args)
        if not reward_funcs:
            refuse_unread_weights(args)
        self.method = chosen_method(method, args, rewarded=bool(reward_funcs or kwargs.get("environment_factory")))
        adapted = kwargs.get("peft_config") is not None or hasattr(model, "peft_config")
        sources = teacher_sources(teacher_model, model, args, adapted)
        reference = reference_source(model, self.method, args)
        others = {**kwargs, "reward_funcs": reward_funcs}
        self.checked = check_inputs(
            model, sources, args, self.method, train_dataset, eval_dataset, processing_class, others
        )
        if args.ddp_find_unused_parameters is None and isinstance(self.checked.processing_class, ProcessorMixin):
            args.ddp_find_unused_parameters = True  # a window without any image leaves the vision tower unused
        super().__init__(
            model=model,
            reward_funcs=reward_funcs or [no_reward],
            args=args,
            train_dataset=self.checked.train_dataset,
            eval_dataset=self.checked.eval_dataset,
            processing_class=self.checked.processing_class,
            **kwargs,
        )
        refuse_loaded_weights(self.model, args, kwargs)
        self._settle_rewards()
        self.log_multimodal = False  # TRL gathers images on those ranks that have some; see _report
        self.world = AcceleratorWorld(self.accelerator)
        if self.rollout_func is not None:
            alike = self.world, self.accelerator.device
            self.rollout_func = wrap_rollout_func(self.rollout_func, self._tokenizer.pad_token_id, *alike)
        self.engine_monitor = EngineMonitor(args)
        self._empty_steps = EmptyStepGuard()
        self.add_callback(self._empty_steps)
        steps = args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps
        self._step_timer = StepTimer(self.accelerator.device, self._metrics["train"], steps)
        self.add_callback(self._step_timer)
        show_progress(self, args)
        self._record = RunRecord(facts_of(self.model, sources, self.checked, self.method))
        self.add_callback(self._record)
        self._watchdogs = WatchdogCallback(args, self._record, self._log_window)
        self.add_callback(self._watchdogs)
        self._step_sums = StepSums(self.world)
        setup = RunSetup(self.accelerator, args, self.method, self.temperature, self.checked.student_rows)
        for model in [model for model in (self.model, self.ref_model) if model is not None]:
            make_observable(setup.base_of(model), args.cast_lm_head_to_fp32)
        self.teachers = load_teachers(sources, self.checked.unknown, setup, lambda: self.model)
        self.reference = load_reference(reference, setup)
        self.window_scorer = self._window_scorer(setup)
        about = {"method": self.method.name, "temperature": self.temperature, "reads": list(self.method.signals)}
        self._recorder = RolloutRecorder(args, self.checked.tokenizer, list(self.teachers), about)
        self.add_callback(self._recorder)

    def _settle_rewards(self) -> None:
        """TRL has made the environments, and has added the rewards of those that give any."""
        if self.reward_funcs == [no_reward]:
            refuse_missing_rewards(self.method, self.args)
        elif no_reward in self.reward_funcs:
            for functions in (self.reward_funcs, self.reward_func_names, self.reward_processing_classes):
                del functions[0]
            self.reward_weights = self.reward_weights[1:]

    def _window_scorer(self, setup: RunSetup) -> WindowScorer:
        """The student, the teachers and the reference as what scores windows."""

        def scorer(
            name: str, active, base, entropies: bool, unknown: frozenset[int] = frozenset(), keep=torch.clone
        ) -> ModelScorer:
            return ModelScorer(
                active=active,
                base=base,
                forward=self._forward,
                world=self.world,
                token_budget=self.args.scoring_token_budget,
                multiple=self.pad_to_multiple_of or 1,
                entropies=entropies,
                unknown=unknown,
                on_time=lambda seconds: self._took("score", f"_{name}", seconds),
                keep=keep,
            )

        def of_module(name: str, module, entropies: bool = False) -> ModelScorer:
            return scorer(name, lambda: nullcontext(module()), lambda: setup.base_of(module()), entropies)

        keep = on_host if self.args.offload_teacher_states else torch.clone
        self._trl_reference = of_module("reference", lambda: self.ref_model)
        return WindowScorer(
            student=of_module("student", lambda: self.model, entropies=True),
            teachers={
                name: scorer(name, placed.active, placed.base, setup.teacher_entropies, placed.unknown, keep)
                for name, placed in self.teachers.items()
            },
            reference=of_module("reference", lambda: self.reference) if self.reference is not None else None,
            temperature=self.temperature,
            pad_token_id=self.checked.tokenizer.pad_token_id,
        )

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        keep_outputs_exact(self.accelerator)

    def train(self, *args, **kwargs):
        self._buffered_inputs, self._step_sums = None, StepSums(self.world)  # nothing is left over from before
        self._last_loaded_step = -1  # nor in vLLM: a second run's steps are counted from 0 again, its weights are not
        hand_out_samplers(self)
        with self._record.of_failure(self.args):
            output = super().train(*args, **kwargs)
            if isinstance(self.train_dataset, IterableDataset) and self.state.global_step == 0:
                refuse_short_stream(self.checked.left_out["train_dataset"], self.args)
        self._last_loaded_step = -1  # the best model may have been loaded
        return output

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        super().create_model_card(model_name or Path(self.args.output_dir).name, dataset_name, tags)
        if self.is_world_process_zero():
            write_model_card(self.args, self.state, self._record.facts, is_peft_model(self.model))

    def _send_telemetry(self):
        """TRL reports each trainer's start to its makers; this library sends nothing anywhere."""

    def scored_answers(self, rows: list[dict[str, Any]]) -> Batch:
        """
        Sample an answer to each row and score it as an evaluation does: nothing is filtered, no weight moves.
        `fire-opd preflight --with-models` calls this on a few rows.
        """
        self.model.eval()
        with torch.no_grad():
            return self._prepare_inputs([row for row in rows for _ in range(self.num_generations_eval)])

    def _get_dataloader(self, dataset, *args, **kwargs):
        whole = WholeStream(dataset) if isinstance(dataset, IterableDataset) else dataset
        return super()._get_dataloader(whole, *args, **kwargs)

    # Rollout and signal: once for each window

    def _generate(self, *args, **kwargs):
        started = clock(self.accelerator.device)
        *sampled, images, tool_images = super()._generate(*args, **kwargs)
        self._took("rollout", "", clock(self.accelerator.device) - started)
        if images is not None:  # no processor takes None for the images of a row
            images = self._images = [of_row or [] for of_row in images]
        return *sampled, images, tool_images

    def _generate_single_turn(self, *args, **kwargs):
        output = dict(zip(("completion_ids", "logprobs"), super()._generate_single_turn(*args, **kwargs), strict=True))
        return tuple(fill_empty_completions(output, self._tokenizer.pad_token_id).values())

    def _calculate_rewards(self, inputs, *args, **kwargs):
        with failing_alike(self.world, self.accelerator.device):
            try:
                self._reward_NF = super()._calculate_rewards(inputs, *args, **kwargs)
            except Exception:
                # GRPO gathers the rewards at the end, where the other ranks now wait for this one.
                none_BF = torch.zeros(len(inputs), len(self.reward_funcs), device=self.accelerator.device)
                self.accelerator.gather(none_BF)
                raise
        return self._reward_NF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        mode: Mode = "train" if self.model.training else "eval"
        self._window_mode = mode
        world, step = self.world, self.state.global_step
        method = self.method if mode == "train" else self.method.unfiltered()
        columns = self.args.teacher_column, self.args.teacher_prompt_column
        with failing_alike(world, self.accelerator.device):
            teacher_B = route_to_teachers(inputs, list(self.teachers), columns, self.accelerator.device)
            prompts = teacher_prompts(list(self.checked.renderers.values()), inputs, teacher_B.tolist(), self.tools)
            if any(images_of(inputs)) and any(own is not None for own in prompts):
                raise ValueError(
                    "A window has images, and prompts for the teacher alone: a prompt with images cannot be rendered "
                    "anew for the teacher. Remove teacher_chat_template or the column of teacher_prompt_column."
                )

        self.window_scorer.begin(mode, method, teacher_B, prompts)
        inputs = lists_of_images(inputs)
        self._images = images_of(inputs)
        batch = self._readable(super()._generate_and_score_completions(inputs))
        self.model.train(mode == "train")  # continuous batching leaves it in training mode
        reward_advantage_B, batch["teacher_number"] = batch.pop("advantages"), teacher_B

        rollout = self._rollout(batch, mode)
        context = Context(world, step / max(1, self.state.max_steps), self._window_seed)
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            known = self.window_scorer.scored(batch)
        scores = known.only(method.signals)  # what a method does not read can break nothing
        with errors_name_step(step):
            signal = distil(rollout, scores, method, context)
        for_loss = self.window_scorer.end(signal.keep_B)
        ratio_BT = batch.get("importance_sampling_ratio") if self.method.rollout_correction else None
        kept_BT = rollout.only(signal.keep_B).mask_BT
        advantage_BT = combined(signal.advantage_BT, kept_BT, reward_advantage_B, self.args.reward_coef, ratio_BT)
        if mode == "train":
            self._record_rows(batch, rollout, known, signal, advantage_BT)
        self._refuse_what_cannot_train(inputs, rollout, scores, signal)
        sampled_BT = batch.get("sampling_per_token_logps")
        signal.metrics.update(self.engine_monitor.observe(sampled_BT, rollout, scores, world, step))
        self._report(rollout, scores, signal, advantage_BT)

        batch["train_mask"], batch["keep"], batch["advantages"] = rollout.mask_BT, signal.keep_B, advantage_BT
        batch["old_per_token_logps"], batch["teacher_logps"] = scores.student_logp_BT, scores.teacher_logp_BT
        batch["finished"] = rollout.finished_B
        minus_advantage_BT = scores.student_logp_BT - scores.teacher_logp_BT
        batch["reverse_kl"] = masked_mean_B(minus_advantage_BT, kept_BT).mean()
        if mode == "train" and signal.divergence_BT is not None:
            batch.update(for_loss, divergence=signal.divergence_BT)
        return batch

    def _readable(self, batch: Batch) -> Batch:
        """A window's batch as models can read it, whatever images its rows have or lack."""
        if not self._is_vlm:
            return batch
        batch = without_lost_images(batch, self._image_pad_token_id, self._tokenizer.pad_token_id)
        return with_companion(batch, self.world)

    def _rollout(self, batch: Batch, mode: str) -> Rollout:
        """The window as the pipeline sees it."""
        rows, group = len(batch["prompt_ids"]), self.num_generations if mode == "train" else self.num_generations_eval
        reward_BF = self._reward_NF[self.world.local_slice(rows)] if "reward_B" in self.method.needs else None
        stop_ids = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        return rollout_from_trl(batch, stop_ids, group, reward_BF, self.reward_weights, self.world)

    def _record_rows(
        self, batch: Batch, rollout: Rollout, scores: Scores, signal: Signal, advantage_BT: torch.Tensor
    ) -> None:
        """Trajectories of this window, if one of its steps will be logged; before anything can stop the step."""
        step, reward_B = self._recorder.step_of_window(self.state), None
        if step is None:
            return
        if no_reward not in self.reward_funcs:
            reward_BF = self._reward_NF[self.world.local_slice(len(rollout.mask_BT))]
            reward_B = weighted_reward_B(reward_BF, self.reward_weights)
        rows = bring_rows(
            batch,
            rollout,
            scores,
            signal,
            self.method,
            advantage_BT=advantage_BT if self.method.advantage or self.args.reward_coef else None,
            reward_B=reward_B,
            count=self.args.log_rollouts,
            seed=self._window_seed,
            world=self.world,
        )
        self._recorder.write(step, rows, signal.metrics.get("threshold"))

    def _refuse_what_cannot_train(self, inputs, rollout: Rollout, scores: Scores, signal: Signal) -> None:
        """Stop all ranks where a teacher is broken or guesses."""
        args, step = self.args, self.state.global_step
        limit, signals = args.teacher_nonfinite_limit, self.method.signals
        refuse_broken_teacher(inputs, rollout, scores, signal, signals=signals, limit=limit, step=step)
        if not args.allow_guessing_teacher:
            refuse_guessing_teacher(
                list(self.teachers),
                rollout,
                scores,
                token_rows=self.checked.student_rows,
                temperature=self.temperature,
                world=self.world,
                step=step,
            )

    def _report(self, rollout: Rollout, scores: Scores, signal: Signal, advantage_BT: torch.Tensor) -> None:
        """The window's metrics, and its completions in TRL's table."""
        named = named_metrics(self.teachers, self.method.signals, rollout, scores, signal, self.world)
        window = {f"fire/{name}": value for name, value in named}
        for name, value in window.items():
            self._log_window(name, value)
        if self._window_mode == "train":
            of_trl = {name: of[-1] for name, of in self._metrics["train"].items() if name.startswith("completions/")}
            self._watchdogs.see({**of_trl, **window})
        left_out = self.checked.left_out.get("train_dataset")  # of a stream, so far; rows are read before their window
        if left_out is not None and self._window_mode == "train":
            self._log_window("fire/left_out", float(left_out))
        if no_reward in self.reward_funcs:
            forget_rewards(self._metrics[self._window_mode], self._logs)
        if self._is_vlm and self.args.log_multimodal:
            self._logs["images"].extend(gather_object(self._images))
        fill_completions_table(self._logs, self.world, rollout, scores, signal, advantage_BT)

    def _log_window(self, name: str, value: float) -> None:
        """A metric of the window under way; TRL logs the mean over the windows between two logs."""
        self._metrics[self._window_mode][name].append(value)

    def _took(self, phase: str, of: str, seconds: float) -> None:
        """The time of a phase of the window under way, `of` a model; those of a training are added up for its step."""
        self._log_window(f"time/{phase}{of}", seconds)
        if self._window_mode == "train":
            self._step_timer.took(phase, seconds)

    # One forward: the seam with TRL

    def _forward(
        self,
        model: torch.nn.Module,
        part: Batch,
        observer: Observer | None = None,
        *,
        compute_entropy: bool = True,
        router: bool = False,
    ) -> ForwardOutput:
        base = base_of(self.accelerator.unwrap_model(model))
        if model_kwargs(part) or COMPANION in part:  # TRL knows how each model wants its images
            *rectangle, images, column_BC = trl_rectangle(part)
            flags = {"compute_entropy": compute_entropy, "compute_aux_loss": router}
            with observing(base, observer, column_BC) as observation:
                scored = super()._get_per_token_logps_and_entropies(model, *rectangle, **images, **flags)
            rows = len(column_BC)  # without a companion
            entropy_BC = None if scored[1] is None else scored[1][:rows]
            return ForwardOutput(scored[0][:rows], entropy_BC, observation.observed, scored[2])
        with self.accelerator.autocast():
            return score_lines(model, base, part, observer, router, self.pad_to_multiple_of or 1)

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
        assert model is self.model or model is self.ref_model, "GRPO scores its student and its reference alone"
        scorer = None if model is self.model else self._trl_reference
        scores = self.window_scorer.asked_by_trl(self._readable(batch), scorer)
        return scores.logp_BT, scores.entropy_BT, None

    # Micro-batches and loss: once for each micro-batch

    def _prepare_inputs(self, generation_batch):
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        if self._buffered_inputs is None:  # first call, or resumed: take up the place inside the window
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if self._step % self.args.gradient_accumulation_steps == 0:
            self._step_timer.begin()
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            self._buffered_inputs = []  # the last window goes before the next one comes
            self._buffered_inputs = self._micro_batches(self._generate_and_score_completions(generation_batch))
            for name, value in layout_metrics(self._buffered_inputs, self.world).items():
                self._log_window(f"fire/{name}", value)
        part = self._buffered_inputs[self._step % self.args.steps_per_generation]
        if self._step % self.args.gradient_accumulation_steps == 0:
            self._step_timer.start()
        if part["rows_in_step"] == 0:
            self._empty_steps.hold(self.optimizer.param_groups)
            self._metrics["train"]["fire/empty_steps"].append(1.0)
        return part

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        args = self.args
        steps = args.steps_per_generation // args.gradient_accumulation_steps
        if steps * self.num_iterations == 1:  # on policy: the ratio is 1, exactly, against the forward of the loss
            del batch["old_per_token_logps"]
        self._empty_steps.count(bool(self.world.gather(batch["keep"]).any()), self.state.global_step)
        return micro_batches(
            batch,
            steps=steps,
            per_step=args.gradient_accumulation_steps,
            loss_type=args.loss_type,
            world=self.world,
            seed=self._window_seed,
            multiple=self.pad_to_multiple_of or 1,
            balance=args.balance,
            bounds=self.window_scorer.student.bounds,
        )

    @property
    def _window_seed(self) -> int:
        return self.args.seed * 1_000_003 + self.state.global_step  # equal on all ranks, and again after a resume

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("FiReOPDTrainer does not return outputs with the loss; call compute_loss without them.")
        if "scale" not in inputs:  # evaluation; known from scoring: the mean over rows of KL(student || teacher)
            return inputs["reverse_kl"]
        method, mask_BT, scale_B = self.method, inputs["train_mask"], inputs["scale"]
        observer = self.window_scorer.loss_observer(inputs, method.divergence)
        logp_BT, entropy_BT, observed, router_loss = self._forward(
            model, inputs, observer, router=self.aux_loss_enabled
        )
        old_logp_BT, clips = inputs.get("old_per_token_logps", logp_BT.detach()), (self.epsilon_low, self.epsilon_high)
        assert entropy_BT is not None
        sums = {"entropy": entropy_BT}
        follows = method.advantage or self.args.reward_coef  # else there is no backward through log_probs
        now_BT = logp_BT if follows else old_logp_BT
        surrogate = clipped_surrogate(now_BT, old_logp_BT, inputs["advantages"], mask_BT, *clips)
        loss_BT, sums["fire/clip_ratio"] = surrogate
        if method.divergence:
            sums["fire/divergence"] = torch.where(mask_BT, inputs["divergence"] * observed["divergence"], 0.0)
            loss_BT = loss_BT + sums["fire/divergence"]
        if self.beta:
            sums["kl"] = reference_kl(logp_BT, inputs["ref_per_token_logps"], mask_BT)
            loss_BT = loss_BT + self.beta * sums["kl"]
        loss = aggregate(loss_BT, mask_BT, scale_B)
        shares = {}
        if self.aux_loss_enabled:
            assert router_loss is not None
            router_loss = router_loss * inputs["share_in_step"]
            loss = loss + self.router_aux_loss_coef * router_loss
            shares["aux_loss"] = router_loss / self.world.ranks
        self._step_sums.add(loss, mask_BT & (scale_B > 0).unsqueeze(1), sums, shares)
        if self.accelerator.sync_gradients:
            of_step = self._step_sums.total(self.state.global_step)
            self._watchdogs.see(of_step)
            for name, value in of_step.items():
                self._metrics["train"][name].append(value)
        return loss
