"""
What is observed beside the sampled token: the teacher's likeliest tokens, its hidden states, and divergences over the
whole vocabulary. All of it is computed inside the one forward that scores the sampled token; `[B, T, V]` never exists.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

from ..rollouts.layout import Batch
from .heads import LARGEST_TILE, LARGEST_TILE_ON_GPU, Head, Observer


# What is observed of a teacher


def hidden_states(hidden_BTH: torch.Tensor, head: Head, logp_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    The observer that keeps what a full-vocabulary divergence needs of a teacher: `H` numbers a token, not `V`, in the
    precision in which the loss will multiply them with the head.
    """
    return {"teacher_hidden": hidden_BTH.to(product_dtype(hidden_BTH))}


@dataclass
class TopK:
    """
    The observer that keeps the teacher's `k` likeliest tokens and their log-probabilities.

    Args:
        k (`int`): How many.
        temperature (`float`): By which logits are divided.
        inside_BT (`torch.Tensor`): Tokens of completions. At padding the values are 0 and are not computed.
    """

    k: int
    temperature: float
    inside_BT: torch.Tensor

    def __call__(self, hidden_BTH: torch.Tensor, head: Head, logp_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden_NH = head.read(hidden_BTH[self.inside_BT])
        ids, logps = [], []
        with maybe_gather_lm_head_ctx(head.weight, head.bias):
            weight_VH = head.weight.to(product_dtype(hidden_NH))
            for rows in tiles(len(hidden_NH), len(weight_VH), hidden_NH.device):
                logits_NV = head.logits(raw_logits(hidden_NH[rows], weight_VH, head.bias), self.temperature)
                top = logits_NV.topk(min(self.k, logits_NV.shape[1]), dim=1)
                ids.append(top.indices.int())
                logps.append(top.values - logits_NV.logsumexp(dim=1, keepdim=True))
        observed = {}
        for name, value_NK in (("top_ids", torch.cat(ids)), ("top_logps", torch.cat(logps))):
            observed[name] = value_NK.new_zeros((*self.inside_BT.shape, value_NK.shape[1]))
            observed[name][self.inside_BT] = value_NK
        return observed


def tiles(rows: int, width: int, device: torch.device) -> list[slice]:
    """Cuts `rows` rows of `width` numbers into tiles of the device's size; at least one, so that shapes exist."""
    step = max(1, (LARGEST_TILE if device.type == "cpu" else LARGEST_TILE_ON_GPU) // width)
    return [slice(start, start + step) for start in range(0, max(rows, 1), step)]


def product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Returns the precision in which the head's factors are multiplied: that of the layers."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def raw_logits(hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
    """
    Returns `W h + b` in float32, as the fused head does, from factors in the precision of the layers. A linear layer
    would round the result to it as well: in bfloat16 a logit of 20 by up to 1/16.
    """
    raw_NV = torch.zeros((len(hidden_NH), len(weight_VH)), dtype=torch.float32, device=hidden_NH.device)
    chunked_logprob._addmm_fp32(raw_NV, hidden_NH.to(weight_VH.dtype), weight_VH.t())
    return raw_NV if bias_V is None else raw_NV + bias_V.float()


# What is differentiated


@dataclass
class FullDivergence:
    """
    Divergence of the student from each row's teacher over the whole vocabulary, through TRL's chunked kernel: gradient
    into the student alone. Every teacher's kernel runs in every forward, also without a row, since sharded heads are
    gathered in it.

    Args:
        part (`dict`): Rows with `teacher_hidden` and `teacher_number`.
        chosen_BT (`torch.Tensor`): Tokens to compare at. At the others the value is 0 and is not computed.
        teachers (`list`): The unwrapped teachers, by number.
        mixture (`float`): See [`Divergence`].
    """

    part: Batch
    chosen_BT: torch.Tensor
    teachers: list[PreTrainedModel]
    mixture: float
    temperature: float

    def __call__(self, hidden_BTH: torch.Tensor, head: Head, logp_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        device, student_BTH = hidden_BTH.device, head.read(hidden_BTH)
        value_BT = torch.zeros(self.chosen_BT.shape, dtype=torch.float32, device=device)
        for number, teacher in enumerate(self.teachers):
            mine_BT = self.chosen_BT & (self.part["teacher_number"] == number).unsqueeze(1)
            theirs = Head.of(teacher, head.float32)
            pairs = zip(self.part["teacher_hidden"], mine_BT, strict=True)
            rows = [states.to(device)[mine_T[: len(states)]] for states, mine_T in pairs if mine_T.any()]
            states_NH = torch.cat(rows) if rows else student_BTH.new_zeros((0, theirs.width))
            value_N, _ = ChunkedDivergenceFunction.apply(
                student_BTH[mine_BT],
                head.weight,
                head.bias,
                theirs.read(states_NH),
                theirs.weight,
                theirs.bias,
                self.mixture,
                self.temperature,
                head.scale,
                head.softcap,
                theirs.scale,
                theirs.softcap,
            )
            value_BT = value_BT.masked_scatter(mine_BT, value_N)
        return {"divergence": value_BT}


@dataclass
class TopKDivergence:
    """
    `sum_v pi_T(v) (log pi_T(v) - log pi_S(v))` over the teacher's top k. The student's logits are computed at those
    columns alone; its normaliser is the sampled token's logit minus its log-probability, which the forward has.

    Args:
        part (`dict`): Rows with `top_ids`, `top_logps` and `completion_ids`.
        chosen_BT (`torch.Tensor`): Tokens to compare at. At the others the value is 0 and is not computed.
    """

    part: Batch
    chosen_BT: torch.Tensor
    temperature: float

    def __call__(self, hidden_BTH: torch.Tensor, head: Head, logp_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        chosen_BT, device = self.chosen_BT, hidden_BTH.device
        picked = zip(self.part["top_ids"], self.part["top_logps"], chosen_BT, strict=True)
        rows = [
            (ids.to(device)[mine[: len(ids)]].long(), logps.to(device)[mine[: len(ids)]])
            for ids, logps, mine in picked
        ]
        ids_NK, top_logp_NK = (torch.cat(values) for values in zip(*rows, strict=True))
        sampled_N1 = self.part["completion_ids"][chosen_BT].unsqueeze(1)
        hidden_NH = head.read(hidden_BTH[chosen_BT])
        raw_NK = HeadColumns.apply(hidden_NH, head.weight, head.bias, torch.cat([ids_NK, sampled_N1], 1))
        logits_NK = head.logits(raw_NK, self.temperature)
        normaliser_N1 = logits_NK[:, -1:] - logp_BT[chosen_BT].unsqueeze(1)
        kl_N = (top_logp_NK.exp() * (top_logp_NK - (logits_NK[:, :-1] - normaliser_N1))).sum(dim=1)
        value_BT = torch.zeros(chosen_BT.shape, dtype=torch.float32, device=hidden_BTH.device)
        return {"divergence": value_BT.masked_scatter(chosen_BT, kl_N.float())}


class HeadColumns(torch.autograd.Function):
    """`h_n . W[id_nk] + b[id_nk]` in float32, in tiles forward and backward: neither `[N, V]` nor `[N, K, H]`."""

    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, ids_NK):
        device = hidden_NH.device.type
        ctx.dtype = product_dtype(hidden_NH)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_NK)
        raw_NK = torch.zeros(ids_NK.shape, dtype=torch.float32, device=hidden_NH.device)
        with maybe_gather_lm_head_ctx(weight_VH, bias_V), torch.autocast(device, enabled=False):
            for rows in tiles(*column_shape(hidden_NH, ids_NK)):
                columns_NKH = weight_VH[ids_NK[rows]].to(ctx.dtype).float()
                raw_NK[rows] = (columns_NKH @ hidden_NH[rows].to(ctx.dtype).float().unsqueeze(2)).squeeze(2)
            return raw_NK if bias_V is None else raw_NK + bias_V[ids_NK].float()

    @staticmethod
    def backward(ctx, grad_NK):
        hidden_NH, weight_VH, bias_V, ids_NK = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        with maybe_gather_lm_head_ctx(weight_VH, bias_V):
            grad_hidden = torch.zeros_like(hidden_NH, dtype=torch.float32) if needs_hidden else None
            grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
            for rows in tiles(*column_shape(hidden_NH, ids_NK)):
                ids, grad = ids_NK[rows], grad_NK[rows].float()
                if grad_hidden is not None:
                    columns_NKH = weight_VH[ids].to(ctx.dtype).float()
                    grad_hidden[rows] = (grad.unsqueeze(1) @ columns_NKH).squeeze(1)
                if grad_weight is not None:
                    outer_NKH = grad.unsqueeze(2) * hidden_NH[rows].to(ctx.dtype).float().unsqueeze(1)
                    grad_weight.index_add_(0, ids.flatten(), outer_NKH.flatten(0, 1))
            grad_bias = None
            if needs_bias:
                grad_bias = torch.zeros_like(bias_V, dtype=torch.float32)
                grad_bias.index_add_(0, ids_NK.flatten(), grad_NK.float().flatten())
        grads = ((grad_hidden, hidden_NH), (grad_weight, weight_VH), (grad_bias, bias_V))
        return *(None if g is None else g.to(value.dtype) for g, value in grads), None


def column_shape(hidden_NH: torch.Tensor, ids_NK: torch.Tensor) -> tuple[int, int, torch.device]:
    """Returns the number of rows, and of numbers in a row, of the gathered columns, and where they are."""
    return len(hidden_NH), ids_NK.shape[1] * hidden_NH.shape[1], hidden_NH.device


def observe_all(observers: list[Observer]) -> Observer:
    """One observer in place of several."""

    def observe(hidden_BTH: torch.Tensor, head: Head, logp_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        observed = [observer(hidden_BTH, head, logp_BT) for observer in observers]
        return {name: value for values in observed for name, value in values.items()}

    return observe


def on_host(value: torch.Tensor) -> torch.Tensor:
    """
    Returns a copy in host memory, from where the loss brings it back for its micro-batch; pinned where a CUDA device
    made it, so that both ways are fast.
    """
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda).copy_(value)


def pad_ragged(rows: list[torch.Tensor], like_BT: torch.Tensor) -> torch.Tensor:
    """Pads ragged rows of numbers with 0 to `[B, T]`."""
    value_BT = torch.zeros_like(like_BT)
    for row, value_T in enumerate(rows):
        value_BT[row, : len(value_T)] = value_T
    return value_BT
