"""The arithmetic of a window: how many rows it has, how many the filter drops, how many forwards it takes."""

import math

import torch
from transformers import PretrainedConfig

from ..config import FiReOPDConfig
from ..pipeline import Context, Method, Rollout
from .dataset import Facts
from .findings import Checked
from .plan.memory import states_of_token


FEW = 0.1  # of the micro-batches: so many may be fillers without a word


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
    kept = survivors(method, rows, names, facts)
    if kept is None:
        checked.record("filter", f"{method.name} selects by rewards")
    elif method.filter:
        text = f"{method.name} drops {rows - kept} of {rows} trajectories and updates on {kept}, if all are sound"
        checked.record("filter", text)
    if not facts.longest_read:
        text = f"forwards of at most {args.scoring_token_budget} padded tokens"
    else:
        longest = facts.longest_read + args.max_completion_length
        at_once = max(1, args.scoring_token_budget // longest)
        forwards = math.ceil(rows / ranks / at_once)
        text = f"at most {forwards} forward{'s' * (forwards > 1)} of {args.scoring_token_budget} padded tokens"
    if kept is not None and (fillers := describe_fillers(args, kept)):
        checked.record("fillers", fillers, "warning")
    models = " + ".join(["student", *names])
    checked.record(
        "work",
        f"a window and rank: sampling; scoring in {text} under each of {models}; {args.steps_per_generation} "
        f"micro-batch{'es' * (args.steps_per_generation > 1)} forward and backward",
    )


def survivors(method: Method, rows: int, names: list[str], facts: Facts) -> int | None:
    """
    Returns how many of a window's rows are left if all are sound; the teachers share the window as they share the
    dataset. `None` where the filter reads rewards.
    """
    if method.filter is None:
        return rows
    if {"reward_B", "group_B"} & set(method.needs):
        return None
    shares = [facts.routed[name] / max(1, sum(facts.routed.values())) for name in names]
    ends = torch.tensor(shares).cumsum(dim=0) * rows
    teacher_B = torch.bucketize(torch.arange(rows, dtype=torch.float32), ends, right=True).clamp(max=len(names) - 1)
    window = Rollout(torch.ones(rows, 1), teacher_B=teacher_B)
    return int(method.filter(torch.arange(rows, dtype=torch.float32), window, Context()).sum())


def describe_fillers(args: FiReOPDConfig, kept: int) -> str | None:
    """
    Returns a warning where many micro-batches have no row, with a split of the same window that has none; else `None`.
    A rank still runs a micro-batch without a row, forward and backward with weight zero, since all ranks run equally
    many.

    A larger split costs no memory as long as the longest row decides it. Rows are packed by length, so that a
    micro-batch is as large as its padded tokens: at least the longest row, and at least an even share of all tokens.
    """
    batch, accumulation, micro_batches = (
        args.per_device_train_batch_size, args.gradient_accumulation_steps, args.steps_per_generation
    )  # fmt: skip
    filled, steps = kept / args.world_size, micro_batches // accumulation
    fillers = micro_batches - filled
    if fillers < FEW * micro_batches or accumulation == 1:
        return None
    text = (
        f"of the {accumulation} micro-batches of an optimizer step, a rank has no row for {fillers / steps:.3g} in "
        "the mean; each still costs a forward and a backward"
    )
    factors = [factor for factor in (4, 3, 2) if accumulation % factor == 0 and filled >= micro_batches / factor]
    if not factors:
        return f"{text}. Raise per_device_train_batch_size and lower gradient_accumulation_steps"
    factor = factors[0]
    longer = math.ceil(1.1 * filled * factor / micro_batches)  # 1.1: what packing leaves uneven
    generation = "" if steps == 1 else f", steps_per_generation={micro_batches // factor}"
    return (
        f"{text}. Set per_device_train_batch_size={batch * factor}, gradient_accumulation_steps="
        f"{accumulation // factor}{generation}: the same window in {factor} times fewer forwards, none of them empty. "
        "Short rows then share a micro-batch, and the longest row keeps one to itself, so that the peak of memory is "
        f"the same where the longest row has at least {longer} times the tokens of the mean row"
    )


def bytes_of_states(config: PretrainedConfig, dtype: str, args: FiReOPDConfig, method: Method) -> int:
    """
    Returns how many bytes a rank holds of a teacher at most, if all of its rows are this teacher's, none is dropped
    and each is as long as it may be: hidden states, or the top k with ids and log-probabilities in 32 bits.

    Args:
        config (`PretrainedConfig`): The teacher's.
        dtype (`str`): The precision of the teacher's weights.
    """
    tokens = args.per_device_train_batch_size * args.steps_per_generation * args.max_completion_length
    half = (args.bf16 or args.fp16) and not args.cast_lm_head_to_fp32  # the precision of the head's products
    number, top_k = 2 if half else getattr(torch, dtype).itemsize, method.divergence.top_k if method.divergence else 0
    hidden = config.get_text_config().hidden_size
    return tokens * states_of_token(hidden, method.reads_whole_distributions, top_k, number)
