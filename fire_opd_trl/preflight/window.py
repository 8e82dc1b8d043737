"""The arithmetic of a window: how many rows it has, how many the filter drops, how many forwards it takes."""

import math

import torch
from transformers import PretrainedConfig

from ..config import FiReOPDConfig
from ..pipeline import Context, Method, Rollout
from .dataset import Facts
from .findings import Checked


def report_window(checked: Checked, args: FiReOPDConfig, method: Method, names: list[str], facts: Facts) -> None:
    """Record how large a window is, how many of its rows the filter drops, and how many forwards it takes."""
    rows, ranks = args.generation_batch_size, args.world_size
    steps = args.steps_per_generation // args.gradient_accumulation_steps
    prompts = rows // args.num_generations
    windows = len(checked.train_dataset) // prompts if facts.rows else 0
    epoch = f"; {windows} window{'s' * (windows > 1)} an epoch" if windows else ""
    checked.record(
        "window",
        f"{rows} trajectories = {ranks} process{'es' * (ranks > 1)} x {args.per_device_train_batch_size} x "
        f"{args.steps_per_generation} (per_device_train_batch_size x steps_per_generation): {prompts} prompts, "
        f"{args.num_generations} completion{'s' * (args.num_generations > 1)} each; {steps} optimizer "
        f"step{'s' * (steps > 1)}{epoch}",
    )
    if method.filter:
        checked.record("filter", describe_filter(method, rows, names, facts))
    if not facts.longest_read:
        text = f"forwards of at most {args.scoring_token_budget} padded tokens"
    else:
        longest = facts.longest_read + args.max_completion_length
        at_once = max(1, args.scoring_token_budget // longest)
        forwards = math.ceil(rows / ranks / at_once)
        text = f"at most {forwards} forward{'s' * (forwards > 1)} of {args.scoring_token_budget} padded tokens"
    models = " + ".join(["student", *names])
    checked.record(
        "work",
        f"a window and rank: sampling; scoring in {text} under each of {models}; {args.steps_per_generation} "
        f"micro-batch{'es' * (args.steps_per_generation > 1)} forward and backward",
    )


def describe_filter(method: Method, rows: int, names: list[str], facts: Facts) -> str:
    """Returns what the filter keeps of a window of sound rows, which the teachers share as they share the dataset."""
    if {"reward_B", "group_B"} & set(method.needs):
        return f"{method.name} selects by rewards"
    shares = [facts.routed[name] / max(1, sum(facts.routed.values())) for name in names]
    ends = torch.tensor(shares).cumsum(dim=0) * rows
    teacher_B = torch.bucketize(torch.arange(rows, dtype=torch.float32), ends, right=True).clamp(max=len(names) - 1)
    window = Rollout(torch.ones(rows, 1), teacher_B=teacher_B)
    assert method.filter is not None
    keep_B = method.filter(torch.arange(rows, dtype=torch.float32), window, Context())
    kept = int(keep_B.sum())
    return f"{method.name} drops {rows - kept} of {rows} trajectories and updates on {kept}, if all are sound"


def bytes_of_states(config: PretrainedConfig, dtype: str, args: FiReOPDConfig, method: Method) -> int:
    """
    Returns how many bytes a rank holds of a teacher at most, if all of its rows are this teacher's, none is dropped
    and each is as long as it may be: hidden states, or the top k with ids and log-probabilities in 32 bits.

    Args:
        config (`PretrainedConfig`): The teacher's.
        dtype (`str`): The precision of the teacher's weights.
    """
    tokens = args.per_device_train_batch_size * args.steps_per_generation * args.max_completion_length
    of_token = 8 * method.divergence.top_k if method.divergence else 0
    if method.reads_whole_distributions:
        half = (args.bf16 or args.fp16) and not args.cast_lm_head_to_fp32  # the precision of the head's products
        of_token += config.get_text_config().hidden_size * (2 if half else getattr(torch, dtype).itemsize)
    return tokens * of_token
