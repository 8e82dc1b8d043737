"""bfloat16 and Triton beside float32: the head's kernels, whole models, and a whole window with its update."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import is_triton_available
from trl.kernels import chunked_divergence, chunked_logprob
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils as trainer_utils
from trl.trainer.utils import add_fused_lm_head

from benchmarks.throughput.arms import common_arguments
from benchmarks.throughput.replay import Replay, tokenizer_of
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.scoring.divergences import FullDivergence, TopK, TopKDivergence
from fire_opd_trl.scoring.heads import Head, make_observable, set_tiles
from fire_opd_trl.trainer import trainer as trainer_module

from .differences import difference, not_compared
from .models import Models


STD = 3.0  # of the kernels' logits: likeliest tokens of a large vocabulary then have most of the probability
K = 16
FLOAT32 = 1e-4
FLOAT32_WHY = "float32 sums of a vocabulary's terms"
# A product is rounded to bfloat16 once, by at most 2^-9 of itself. A log-probability has two of them, its own logit
# and the normaliser; an entropy or a divergence weighs its logits by up to about twice that.
BFLOAT16 = 2**-7
BFLOAT16_WHY = "2^-7 of the largest logit: products are rounded to bfloat16"
LAYERS, LAYERS_WHY = 0.05, "sampling_gap_limit, by which the trainer judges an engine"
WEIGHTS, WEIGHTS_WHY = 0.02, "2 % of a mean weight, which is 1"
GRADIENT, GRADIENT_WHY = 0.05, "5 % of the gradient's norm"


def compare(models: Models, rows: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each quantity and each way of computing it."""
    yield from compare_kernels(models, rows)
    yield from compare_models(models)
    yield from compare_windows(models)


# The head


@dataclass
class HeadInputs:
    """Random hidden states and heads of student and teacher, in numbers that bfloat16 has too."""

    student_NH: torch.Tensor
    teacher_NH: torch.Tensor
    student_VH: torch.Tensor
    teacher_VH: torch.Tensor
    ids_N: torch.Tensor

    @classmethod
    def of(cls, models: Models, rows: int) -> "HeadInputs":
        torch.manual_seed(0)
        size, device = models.size, models.device

        def drawn(count: int, std: float) -> torch.Tensor:
            return (std * torch.randn(count, size.hidden, device=device)).to(torch.bfloat16).float()

        column_std = STD / size.hidden**0.5
        heads = drawn(size.vocabulary, column_std), drawn(size.vocabulary, column_std)
        ids_N = torch.randint(size.vocabulary, (rows,), device=device)
        student_NH = drawn(rows, 1.0)
        return cls(student_NH, student_NH + drawn(rows, 0.25), *heads, ids_N).rounded()

    def rounded(self) -> "HeadInputs":
        """A teacher whose head is near the student's, again in numbers of bfloat16."""
        self.teacher_VH = (self.student_VH + 0.25 * self.teacher_VH).to(torch.bfloat16).float()
        self.teacher_NH = self.teacher_NH.to(torch.bfloat16).float()
        return self

    def to(self, dtype: torch.dtype) -> "HeadInputs":
        """The same numbers in another precision; the student's are leaves with gradients."""
        floats = [self.student_NH, self.teacher_NH, self.student_VH, self.teacher_VH]
        student_NH, teacher_NH, student_VH, teacher_VH = (value.detach().to(dtype) for value in floats)
        return HeadInputs(student_NH.requires_grad_(), teacher_NH, student_VH.requires_grad_(), teacher_VH, self.ids_N)


Quantities = dict[str, torch.Tensor]


def with_gradients(values: Quantities, inputs: HeadInputs) -> Quantities:
    """The values of each token, and the gradients of their sum in the student's hidden states and head."""
    found = dict(values)
    for name, value in values.items():
        gradients = torch.autograd.grad(value.sum(), [inputs.student_NH, inputs.student_VH], retain_graph=True)
        found |= {f"{name}: gradient in hidden states": gradients[0], f"{name}: gradient in the head": gradients[1]}
    return found


def exact(inputs: HeadInputs) -> Quantities:
    """All quantities from whole logits in float64."""
    inputs = inputs.to(torch.float64)
    student_NV = (inputs.student_NH @ inputs.student_VH.T).log_softmax(dim=1)
    teacher_NV = (inputs.teacher_NH @ inputs.teacher_VH.T).log_softmax(dim=1)
    top_NK = teacher_NV.topk(K, dim=1)
    gap_NK = top_NK.values - student_NV.gather(1, top_NK.indices)
    values = {
        "log-probability": student_NV.gather(1, inputs.ids_N.unsqueeze(1)).squeeze(1),
        "entropy": -(student_NV.exp() * student_NV).sum(dim=1),
        "divergence, whole": (student_NV.exp() * (student_NV - teacher_NV)).sum(dim=1),
        f"divergence, top {K}": (top_NK.values.exp() * gap_NK).sum(dim=1),
    }
    return with_gradients(values, inputs)


def by_kernels(inputs: HeadInputs, device: str) -> Quantities:
    """The same by TRL's kernels and this library's observers, as training calls them."""
    set_tiles(torch.device(device))
    vocabulary = len(inputs.student_VH)
    tile = min(trainer_utils._CHUNKED_LOGPROB_CHUNK_SIZE, -(-vocabulary // 3))  # several, and a last one that is less
    chunked_divergence.VOCAB_CHUNK_SIZE = tile
    logp_N, entropy_N, *_ = ChunkedLogProbFunction.apply(
        inputs.student_NH, inputs.student_VH, None, inputs.ids_N, 1.0, tile, None, 1.0, ("entropy",)
    )
    hidden_BTH, width = inputs.student_NH.unsqueeze(0), inputs.student_NH.shape[1]
    head = Head(inputs.student_VH, None, 1.0, None, width, False)
    theirs = Head(inputs.teacher_VH, None, 1.0, None, width, False)
    all_BT = torch.ones(1, len(inputs.ids_N), dtype=torch.bool, device=device)
    number_B = torch.zeros(1, dtype=torch.long, device=device)
    teacher: Any = SimpleNamespace(
        config=SimpleNamespace(get_text_config=SimpleNamespace),
        get_output_embeddings=lambda: SimpleNamespace(weight=inputs.teacher_VH, bias=None),
    )
    part = {"teacher_hidden": [inputs.teacher_NH], "teacher_number": number_B}
    whole = FullDivergence(part, all_BT, [teacher], 1.0, 1.0)(hidden_BTH, head, logp_N.unsqueeze(0))
    with torch.no_grad():
        top = TopK(K, 1.0, all_BT)(inputs.teacher_NH.unsqueeze(0), theirs, logp_N.unsqueeze(0))
    part = {name: list(value) for name, value in top.items()} | {"completion_ids": inputs.ids_N.unsqueeze(0)}
    likeliest = TopKDivergence(part, all_BT, 1.0)(hidden_BTH, head, logp_N.unsqueeze(0))
    values = {
        "log-probability": logp_N,
        "entropy": entropy_N,
        "divergence, whole": whole["divergence"].squeeze(0),
        f"divergence, top {K}": likeliest["divergence"].squeeze(0),
    }
    return with_gradients(values, inputs)


@contextmanager
def triton_or_torch(triton: bool) -> Iterator[None]:
    """Inside this TRL's kernels are Triton's, or torch's, whatever the device."""
    modules = chunked_logprob, chunked_divergence
    originals = [module._use_triton for module in modules]
    try:
        for module in modules:
            module._use_triton = lambda device: triton
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module._use_triton = original


def without_triton(device: str) -> str | None:
    """Why Triton's kernels cannot run here, or `None`."""
    if not is_triton_available():
        return "Triton is not installed"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "no CUDA device, and Triton's interpreter is off"
    return None


def compare_kernels(models: Models, rows: int) -> Iterator[dict[str, Any]]:
    """Yield rows of the head alone: float32 and bfloat16, by torch and by Triton, beside float64."""
    inputs = HeadInputs.of(models, rows)
    expected = exact(inputs)
    largest = (inputs.student_NH @ inputs.student_VH.T).abs().max().item()
    triton = "Triton" if models.device == "cuda" else "Triton, interpreted"
    for kernel in ("torch", triton):
        for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
            setting = f"head, {name}, {kernel}"
            if kernel != "torch" and (reason := without_triton(models.device)):
                yield not_compared("all", setting, reason)
                continue
            with triton_or_torch(kernel != "torch"):
                found = by_kernels(inputs.to(dtype), models.device)
            for what, value in found.items():
                bound, why = (FLOAT32, FLOAT32_WHY) if name == "float32" else (BFLOAT16 * largest, BFLOAT16_WHY)
                of = "max"
                if "gradient" in what:
                    of, bound = "relative", bound if name == "float32" else GRADIENT
                    why = why if name == "float32" else GRADIENT_WHY
                yield difference(what, setting, value, expected[what], bound, of, why)


# Whole models


def compare_models(models: Models) -> Iterator[dict[str, Any]]:
    """Yield rows of a whole model's log-probabilities and entropies, as it scores a window."""
    replay = Replay.of(models.size)
    ids_BL, label_BL = padded_rows(replay, models.device)

    def scored(dtype: torch.dtype, autocast: bool) -> Quantities:
        model = models.student(dtype).eval()
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        make_observable(model)
        with torch.no_grad(), torch.autocast(models.device, torch.bfloat16, enabled=autocast):
            output = model(
                input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), labels=label_BL, fused_lm_head=True
            )
        inside_BL = label_BL[:, 1:] != -100
        return {"log-probability": output.log_probs[inside_BL], "entropy": output.entropy[inside_BL]}

    expected = scored(torch.float32, False)
    ways: dict[str, tuple[torch.dtype, bool]] = {
        "model, bfloat16 weights": (torch.bfloat16, False),
        "model, float32 weights in autocast": (torch.float32, True),
    }
    for setting, way in ways.items():
        for what, value in scored(*way).items():
            yield difference(what, setting, value, expected[what], LAYERS, "mean", LAYERS_WHY)


def padded_rows(replay: Replay, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows of a window with padding last, and their labels: those of the completion, -100 elsewhere."""
    rows = [[*prompt, *done] for prompt, done in zip(replay.prompts, replay.completions, strict=True)]
    width = max(map(len, rows))
    ids_BL = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    label_BL = torch.full_like(ids_BL, -100)
    for number, (row, prompt) in enumerate(zip(rows, replay.prompts, strict=True)):
        label_BL[number, len(prompt) : len(row)] = ids_BL[number, len(prompt) : len(row)]
    return ids_BL, label_BL


# A window


class Gradients(TrainerCallback):
    """Keeps the gradient of the first step, in host memory."""

    def __init__(self):
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]


def distilled_window(models: Models, bf16: bool) -> tuple[Quantities, list[torch.Tensor]]:
    """One step of `fire` on replayed completions: what the window was turned into, and the gradient of its update."""
    size, signals, gradients = models.size, [], Gradients()
    distil = trainer_module.distil

    def noting(*args: Any) -> Any:
        signals.append((args[0], distil(*args)))
        return signals[-1][1]

    with tempfile.TemporaryDirectory() as folder, replaced(trainer_module, "distil", noting):
        precision = {"bf16": bf16, "max_steps": 1, "max_grad_norm": 0.0, "use_cpu": models.device == "cpu"}
        args = FiReOPDConfig(
            **{**common_arguments(size, folder, 1), **precision},
            method="fire", drop_fraction=0.2, preflight=False, allow_guessing_teacher=True,
        )  # fmt: skip
        student, replay = models.student(), Replay.of(size)
        trainer = FiReOPDTrainer(
            student, models.teacher(), args, replay.dataset(), processing_class=tokenizer_of(size, folder)
        )
        student.generate = replay.generate
        trainer.add_callback(gradients)
        trainer.train()
    rollout, signal = signals[0]
    kept_BT = rollout.mask_BT & signal.keep_B.unsqueeze(1)
    return {
        "kept rows": signal.keep_B.float(),
        "token weights": signal.weight_BT[kept_BT],
        "advantages": signal.advantage_BT[kept_BT],
    }, gradients.found


@contextmanager
def replaced(owner: Any, name: str, value: Callable) -> Iterator[None]:
    """Inside this an attribute is another one."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def compare_windows(models: Models) -> Iterator[dict[str, Any]]:
    """Yield rows of a whole window and its update, in bfloat16 beside float32."""
    setting = "window of `fire`, float32 weights in autocast"
    expected, exact_gradients = distilled_window(models, bf16=False)
    found, gradients = distilled_window(models, bf16=True)
    yield difference("kept rows", setting, found["kept rows"], expected["kept rows"], 0.0, "max", "the same rows")
    if not torch.equal(found["kept rows"], expected["kept rows"]):
        yield not_compared("token weights, advantages, gradient", setting, "other rows were kept")
        return
    yield difference(
        "token weights", setting, found["token weights"], expected["token weights"], WEIGHTS, "mean", WEIGHTS_WHY
    )
    yield difference("advantages", setting, found["advantages"], expected["advantages"], LAYERS, "mean", LAYERS_WHY)
    yield difference("gradient of the update", setting, gradients, exact_gradients, GRADIENT, "relative", GRADIENT_WHY)
