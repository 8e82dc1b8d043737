"""The head that is observed: no tensor of logits exists, and a row's scores do not depend on its company."""

import pytest
import torch
import trl.trainer.utils as trl_utils
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fire_opd_trl.demo.run import model_path
from fire_opd_trl.scoring import divergences as vocabulary
from fire_opd_trl.scoring.forward import score_lines
from fire_opd_trl.scoring.heads import make_observable


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any new tensor had, but for parameters and their gradients."""

    def __init__(self, shapes: set[tuple[int, ...]]):
        super().__init__()
        self.numbers, self.shapes = 0, shapes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, tuple | list) else (output,):
            if isinstance(value, torch.Tensor) and tuple(value.shape) not in self.shapes:
                self.numbers = max(self.numbers, value.numel())
        return output


@pytest.mark.parametrize("method", ["opd", "fire", "reopold", "exopd", "tropd", "eopd", "opd_full", "tip"])
def test_no_tensor_of_logits_exists(method, tmp_path):
    from support.memory_worker import LENGTH, ROWS, VOCABULARY, model, ours

    student, teacher = model(64, 0), model(96, 1)
    ids = torch.randint(2, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    step = ours(method, student, teacher, ids)
    shapes = {tuple(p.shape) for m in (student, teacher) for p in m.parameters()}
    with Largest(shapes | {shape[::-1] for shape in shapes}) as largest:
        step()
    # A tile of the head, or of the top k: they have a size of their own, and do not grow with rows or length.
    tile = vocabulary.LARGEST_TILE if method in ("tropd", "eopd") else 2**21
    assert 2**18 < largest.numbers <= tile and ROWS * LENGTH * VOCABULARY > 11 * tile


@pytest.mark.parametrize("kind", ["rotary", "absolute"])
def test_a_row_scores_the_same_alone_and_in_company(kind):
    """Positions count from the row's first token: with learned ones, TRL's padding on the left would shift them."""
    torch.manual_seed(0)
    if kind == "absolute":
        shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 16}
        model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=1)).eval()
        torch.nn.init.normal_(model.transformer.wpe.weight)  # so that positions matter
    else:
        model = AutoModelForCausalLM.from_pretrained(model_path("student"), dtype=torch.float32).eval()
    lengths = [(1, 9), (7, 2), (4, 4)]
    rows = [torch.randint(2, 16, (sum(pair),)) for pair in lengths]
    part = {name: torch.zeros((3, width), dtype=torch.long) for name, width in (("prompt_ids", 7), ("prompt_mask", 7))}
    part |= {name: torch.zeros((3, 9), dtype=torch.long) for name in ("completion_ids", "completion_mask")}
    for row, (ids, (prompt, completion)) in enumerate(zip(rows, lengths, strict=True)):
        part["prompt_ids"][row, 7 - prompt :], part["prompt_mask"][row, 7 - prompt :] = ids[:prompt], 1
        part["completion_ids"][row, :completion], part["completion_mask"][row, :completion] = ids[prompt:], 1
    with torch.no_grad():
        alone = [model(ids.unsqueeze(0)).logits[0].log_softmax(dim=-1) for ids in rows]
    trl_utils.add_fused_lm_head(model)
    make_observable(model)
    with torch.no_grad():
        logp, entropy, seen, router = score_lines(model, model, part, None, False, 1)
    assert entropy is None and seen == {} and router is None
    for row, (ids, (prompt, completion)) in enumerate(zip(rows, lengths, strict=True)):
        expected = alone[row][torch.arange(prompt - 1, len(ids) - 1), ids[prompt:]]
        torch.testing.assert_close(logp[row, :completion], expected, atol=2e-5, rtol=0)
        assert not logp[row, completion:].any()
