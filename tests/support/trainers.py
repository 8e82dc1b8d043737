"""Trainers on the embedded models, and how far two models are apart."""

from types import SimpleNamespace

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path


CASE = {"batch": 16, "accumulation": 2, "method": "fire", "max_steps": 2}


def report_as_an_engine(trainer) -> None:
    """Let the trainer's rollouts come with log-probabilities, -1.0 for every token, as an engine that samples has."""
    rollout = trainer.rollout_func

    def reported(prompts, trainer):
        output = rollout(prompts, trainer)
        return {**output, "logprobs": [[-1.0] * len(ids) for ids in output["completion_ids"]]}

    trainer.rollout_func = reported
    trainer.use_vllm, trainer.vllm_generation = True, SimpleNamespace(sync_weights=lambda: None)  # as GRPO sees it


def parameters(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def loaded(name: str):
    return AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32)


def sampling_trainer(tmp_path, rows=8, reward_funcs=None, teacher=None, dataset=None, evaluates=False, **config):
    """A trainer that really samples."""
    config = {"bf16": False, "per_device_train_batch_size": rows, "max_steps": 1, "learning_rate": 1e-3, **config}
    dataset = dataset if dataset is not None else task.dataset("train", 64, seed=0)
    return FiReOPDTrainer(
        model=loaded("student"),
        teacher_model=teacher or loaded("teacher"),
        args=FiReOPDConfig(
            str(tmp_path),
            use_cpu=True,
            logging_steps=1,
            **{"max_completion_length": 33, "disable_tqdm": True, **config},
        ),
        train_dataset=dataset,
        eval_dataset=task.dataset("test", 16, seed=0) if evaluates else None,
        reward_funcs=reward_funcs,
    )


def logs_of(trainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "grad_norm" in log]


def sample_trainer(tmp_path, rows, teacher_model=None, **config):
    return FiReOPDTrainer(
        model=model_path("student"),
        teacher_model=teacher_model or model_path("teacher"),
        args=FiReOPDConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=1,
            **{"max_completion_length": 33, **config},
        ),
        train_dataset=Dataset.from_list(rows),
    )


GOOD = {"prompt": "12+34="}
