"""Implementations of attention on the same rows: alone, padded, and packed into one line."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_kernels_available

from benchmarks.throughput.replay import Replay

from .correctness import GRADIENT, GRADIENT_WHY, LAYERS, LAYERS_WHY
from .differences import difference, not_compared
from .models import Models


FLOAT32, FLOAT32_WHY = 1e-3, "float32 sums in another order, through all layers"
ROWS = 6


def compare(models: Models) -> Iterator[dict[str, Any]]:
    """Yield a row for each implementation, precision and layout, beside eager attention on one row at a time."""
    rows = chosen_rows(Replay.of(models.size))
    expected = logps(models, "eager", torch.float32, rows, "alone")
    for implementation in ("eager", "sdpa", *flash(models.device)):
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            flashes = implementation not in ("eager", "sdpa")
            if flashes and dtype == torch.float32:
                continue  # it computes in 16 bits alone
            bound, why, of = (LAYERS, LAYERS_WHY, "mean") if dtype == torch.bfloat16 else (FLOAT32, FLOAT32_WHY, "max")
            for layout in ("padded", "packed"):
                setting = f"{implementation}, {name}, {layout}"
                try:
                    found = logps(models, implementation, dtype, rows, layout)
                except (ImportError, ValueError, OSError) as error:
                    yield not_compared("log-probability", setting, f"{type(error).__name__}: {str(error)[:160]}")
                    break
                yield difference("log-probability", setting, found[0], expected[0], bound, of, why)
                yield difference(
                    "gradient of the embedding", setting, found[1], expected[1],
                    GRADIENT if dtype == torch.bfloat16 else FLOAT32, "relative",
                    GRADIENT_WHY if dtype == torch.bfloat16 else FLOAT32_WHY,
                )  # fmt: skip
    if reason := without_flash(models.device):
        yield not_compared("log-probability", "flash attention", reason)


def flash(device: str) -> list[str]:
    """The implementations of flash attention that are installed."""
    if without_flash(device):
        return []
    return ["flash_attention_2"] if is_flash_attn_2_available() else ["kernels-community/flash-attn2"]


def without_flash(device: str) -> str | None:
    """Why there is no flash attention here, or `None`."""
    if device != "cuda":
        return "no CUDA device"
    if not (is_flash_attn_2_available() or is_kernels_available()):
        return "neither flash-attn nor kernels is installed"
    return None


def chosen_rows(replay: Replay) -> list[list[int]]:
    """Some rows of a window, from the shortest to the longest."""
    rows = [[*prompt, *done] for prompt, done in zip(replay.prompts, replay.completions, strict=True)]
    return rows[:: max(1, len(rows) // ROWS)][-ROWS:]


def logps(
    models: Models, implementation: str, dtype: torch.dtype, rows: list[list[int]], layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all tokens but the first of each row, row after row, and the gradient of their mean."""
    model = models.student(dtype, attn_implementation=implementation).eval()
    device, lengths = models.device, [len(row) for row in rows]
    if layout == "alone":
        logit_LV = torch.cat([model(torch.tensor([row], device=device)).logits[0].float() for row in rows])
    elif layout == "padded":
        width = max(lengths)
        ids_BL = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        mask_BL = torch.arange(width, device=device) < torch.tensor(lengths, device=device).unsqueeze(1)
        logit_LV = model(ids_BL, attention_mask=mask_BL.long()).logits[mask_BL].float()
    else:
        ids_1L = torch.tensor([sum(rows, [])], device=device)
        position_1L = torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0)
        logit_LV = model(ids_1L, position_ids=position_1L, use_cache=False).logits[0].float()
    ids_L = torch.tensor(sum(rows, []), device=device)
    starts = torch.tensor(lengths, device=device).cumsum(0)[:-1]
    inside_L = torch.ones(len(ids_L) - 1, dtype=torch.bool, device=device)
    inside_L[starts - 1] = False  # a row's last token says nothing of the next row's first
    logp_N = logit_LV[:-1].log_softmax(dim=1).gather(1, ids_L[1:].unsqueeze(1)).squeeze(1)[inside_L]
    weight_VH = model.get_input_embeddings().weight
    (gradient_VH,) = torch.autograd.grad(logp_N.mean(), [weight_VH])
    return logp_N.detach(), gradient_VH
