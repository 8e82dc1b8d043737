"""What is computed, and how often: once for each trajectory, at its own tokens, and no update for those dropped."""

from collections import Counter

import pytest
import torch
import trl.trainer.utils as trl_utils
from support.layouts import METHODS as ON_POLICY
from support.layouts import OTHERS
from support.worker import built
from transformers import AutoModelForCausalLM

from fire_opd_trl import METHODS
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.scoring import divergences as vocabulary
from fire_opd_trl.scoring.forward import rows_in_lines, score_lines
from fire_opd_trl.scoring.heads import make_observable


CASE = {"batch": 8, "accumulation": 4, "max_steps": 1}


def tokens_of(ids_BL: torch.Tensor, pad: int = 0) -> list[tuple[int, ...]]:
    """Rows without the padding behind them."""
    rows = [tuple(ids.tolist()) for ids in ids_BL]
    return [row[: max(place for place, token in enumerate(row) if token != pad) + 1] for row in rows]


class Watched:
    """Counts the rows that pass through the models of a trainer, and the tokens that pass through a head."""

    def __init__(self, trainer, monkeypatch):
        self.rows, self.heads = {}, Counter()
        self.trainer, function, top = trainer, trl_utils._ChunkedLogProbFunction, vocabulary.tiles
        models = {name: placed.module for name, placed in trainer.teachers.items()}
        models.update(student=trainer.model, **({"reference": trainer.reference} if trainer.reference else {}))
        for name, model in models.items():
            model.base_model.register_forward_pre_hook(self.noting(name), with_kwargs=True)
        whole = function.apply

        class Spy:
            @staticmethod
            def apply(hidden, *rest):
                self.heads[self.last] += hidden.shape[0]
                return whole(hidden, *rest)

        def tiled(rows, width, device):
            self.heads["top k"] += rows if width == 16 else 0  # the whole vocabulary, not the k columns of a student
            return top(rows, width, device)

        monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Spy)
        monkeypatch.setattr(vocabulary, "tiles", tiled)

    def noting(self, name: str):
        def note(module, args, kwargs):
            self.last = f"{name}, update" if torch.is_grad_enabled() else name
            self.rows.setdefault(self.last, Counter()).update(tokens_of(kwargs["input_ids"]))

        return note


def window_of(trainer) -> tuple[list[dict], dict]:
    """One window and its micro-batches."""
    trainer.model.train()
    rows = [trainer.train_dataset[row // trainer.num_generations] for row in range(32)]
    batch = trainer._generate_and_score_completions(rows)
    lines = rows_in_lines(batch)[0]
    known = {"keep": batch["keep"], "alive": batch["train_mask"].any(dim=1), "lines": lines}
    known["tokens"] = int(batch["completion_mask"].sum())
    known["kept_tokens"] = int(batch["completion_mask"][batch["keep"]].sum())
    return trainer._micro_batches(batch), known


# Of each method the first, plain case: what comes later is overwritten by what came before.
CASES = {case["method"]: case for case in reversed([*ON_POLICY.values(), *OTHERS.values()])}


DROPPING = ("fire", "fire_full", "random")


@pytest.mark.parametrize("budget", [40, 16384])
@pytest.mark.parametrize("name", METHODS)
def test_each_model_reads_each_trajectory_once_and_only_survivors_are_updated_on(name, budget, tmp_path, monkeypatch):
    trainer = built({**CASES[name], **CASE, "scoring_token_budget": budget}, str(tmp_path))
    seen = Watched(trainer, monkeypatch)
    parts, known = window_of(trainer)
    for part in parts:
        trainer.compute_loss(trainer.model, part).backward()
    every = Counter(tokens_of(known["lines"]))
    kept = Counter(tokens_of(known["lines"][known["keep"]]))
    assert sum(every.values()) == 32  # 5 of them empty
    if not CASES[name].get("rewards"):  # those of outcomes have filters of their own
        assert sum(kept.values()) == (22 if name in DROPPING else 27)
    assert seen.rows["teacher"] == seen.rows["student"] == every
    assert seen.rows["student, update"] == kept
    if name == "exopd":
        assert seen.rows["reference"] == every and seen.heads["reference"] == known["tokens"]
    # Nor does a head see a prompt or padding.
    assert seen.heads["teacher"] == seen.heads["student"] == known["tokens"]
    assert seen.heads["student, update"] == known["kept_tokens"]
    assert seen.heads["top k"] == (known["tokens"] if name in ("eopd", "tropd") else 0)


def test_a_window_of_two_steps_is_scored_once_and_updated_once(tmp_path, monkeypatch):
    """Here GRPO itself asks for old log-probabilities, before there is a filter: of all rows, and that is the one."""
    case = {**CASE, "accumulation": 2, "steps_per_generation": 4, "max_steps": 2, "method": "fire"}
    trainer = built(case, str(tmp_path))
    seen = Watched(trainer, monkeypatch)
    trainer.train()
    assert {name: sum(rows.values()) for name, rows in seen.rows.items()} == {
        "teacher": 32,
        "student": 32,
        "student, update": 22,
    }


def test_the_reference_of_the_penalty_sees_completions_alone(tmp_path, monkeypatch):
    trainer = built({**CASE, "method": "opd", "config": {"beta": 0.1}}, str(tmp_path))
    seen = Watched(trainer, monkeypatch)
    trainer.ref_model.base_model.register_forward_pre_hook(seen.noting("penalty"), with_kwargs=True)
    _, known = window_of(trainer)
    assert seen.rows["penalty"] == Counter(tokens_of(known["lines"])) and seen.heads["penalty"] == known["tokens"]


def test_a_student_with_virtual_tokens_is_scored_where_its_completions_stand():
    """PEFT puts them in front of every line; predictions are counted from the right end."""
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_path("student"), dtype=torch.float32).eval()
    trl_utils.add_fused_lm_head(base, outputs=("log_probs", "entropy"))
    make_observable(base)
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    part = {"prompt_ids": torch.tensor([[0, 5], [6, 7]]), "prompt_mask": torch.tensor([[0, 1], [1, 1]])}
    part |= {
        "completion_ids": torch.tensor([[8, 9, 4], [3, 0, 0]]),
        "completion_mask": torch.tensor([[1] * 3, [1, 0, 0]]),
    }
    observed_states = {}

    def observer(hidden_BTH, head, logp_BT):
        observed_states.update(hidden=hidden_BTH, logp=logp_BT)
        return {}

    with torch.no_grad():
        logp, entropy, *_ = score_lines(model, base, part, observer, False, 1)
        for row, ids in enumerate(([5, 8, 9, 4], [6, 7, 3])):
            logits = model(torch.tensor([ids])).logits[0, 3:].log_softmax(dim=-1)
            count = int(part["completion_mask"][row].sum())
            places = torch.arange(len(ids) - count - 1, len(ids) - 1)
            expected = logits[places, torch.tensor(ids[-count:])]
            torch.testing.assert_close(logp[row, :count], expected, atol=2e-5, rtol=0)
            torch.testing.assert_close(observed_states["logp"][row, :count], expected, atol=2e-5, rtol=0)
            spread = -(logits[places].exp() * logits[places]).sum(dim=1)
            torch.testing.assert_close(entropy[row, :count], spread, atol=2e-5, rtol=0)
            from_states = (observed_states["hidden"][row, :count] @ base.lm_head.weight.T).log_softmax(dim=-1)
            torch.testing.assert_close(from_states, logits[places], atol=2e-5, rtol=0)
