"""Windows in which the teacher reads another prompt than the student."""

import random

import pytest
from datasets import Dataset

import fire_opd_trl.trainer.trainer as trainer_module
from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo.run import model_path


TEACHER, STUDENT = model_path("teacher"), model_path("student")


PROMPTS = ["12+34=", "5+6=", "123+456=", "7+8=", "99+1=", "10+20=", "250+250=", "3+4="]


HINTS = ["46;", "", "579;579;579;579;", "1", "1+9+9=;;", "30;" * 12, ",", "0123456789"]


LENGTHS = [3, 1, 33, 7, 12, 5, 20, 9]


def frozen() -> list[list[int]]:
    """Ragged completions, every other one with its end token."""
    draw = random.Random(0)
    return [[*(draw.randrange(2, 16) for _ in range(n - n % 2)), *[1] * (n % 2)] for n in LENGTHS]


def trainer_of(folder, rows, teacher=TEACHER, tokenizer=None, budget=150, **config) -> FiReOPDTrainer:
    """A trainer whose student answers `frozen()`, after prompts that TRL itself has tokenized."""
    args = FiReOPDConfig(
        str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=8, max_completion_length=33, max_steps=1,
        scoring_token_budget=budget, model_init_kwargs={"dtype": "float32"}, disable_tqdm=True, preflight=False,
        teacher_model_init_kwargs={"dtype": "float32"}, **config,
    )  # fmt: skip
    trainer = FiReOPDTrainer(STUDENT, teacher, args, Dataset.from_list(rows), processing_class=tokenizer)
    trainer._generate_single_turn = lambda *_, **__: (frozen(), None)
    return trainer


def window(trainer) -> tuple:
    """The window as a batch, and its scores."""
    seen, distil = [], trainer_module.distil
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "distil", lambda *args: seen.append(args[1]) or distil(*args))
        trainer.model.train()
        batch = trainer._generate_and_score_completions([trainer.train_dataset[row] for row in range(8)])
    (scores,) = seen
    return batch, scores


def scores_of(folder, rows, **kwargs):
    return window(trainer_of(folder, rows, **kwargs))[1]


HINTED = [{"prompt": prompt, "teacher_prompt": hint + prompt} for prompt, hint in zip(PROMPTS, HINTS, strict=True)]
