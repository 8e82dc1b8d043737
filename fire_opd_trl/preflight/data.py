"""The dataset, the window, and one prompt as each model sees it."""

import math
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..config import FiReOPDConfig
from ..pipeline import Context, Method, Rollout
from ..prompts import Facts, Reader, no_ids, prompt_ids
from .findings import Checked


SHOWN = 400  # characters of a prompt


def student_ids(checked: Checked, args: FiReOPDConfig, others: dict[str, Any]):
    """How the student's prompt tokens are read off rows."""
    if others.get("rollout_func") is not None:
        return no_ids
    template_kwargs, tools = args.chat_template_kwargs or {}, others.get("tools")
    return lambda rows: prompt_ids([row["prompt"] for row in rows], checked.tokenizer, None, template_kwargs, tools)


def refuse_lost_columns(args: FiReOPDConfig, dataset: Any, names: list[str]) -> None:
    """TRL may drop columns it does not know, before anyone reads them."""
    columns = getattr(dataset, "column_names", None) or []
    read = [args.teacher_column] * (len(names) > 1) + [c for c in [args.teacher_prompt_column] if c in columns]
    if args.remove_unused_columns and read:
        raise ValueError(
            f"remove_unused_columns=True would remove {', '.join(map(repr, read))}, which says whose teacher a row "
            "has, or what it reads. Set it to False."
        )


def refuse_views_that_cannot_be(args: FiReOPDConfig, dataset: Any, others: dict[str, Any]) -> None:
    """Settings of the teacher's prompt that would do nothing, or the wrong thing."""
    columns = getattr(dataset, "column_names", None) or []
    set_here = [n for n in ("teacher_chat_template", "teacher_chat_template_kwargs") if getattr(args, n) is not None]
    column = args.teacher_prompt_column in columns
    default = type(args).__dataclass_fields__["teacher_prompt_column"].default
    if columns and not column and args.teacher_prompt_column != default:
        raise ValueError(
            f"teacher_prompt_column={args.teacher_prompt_column!r} is no column of the dataset, which has: "
            f"{', '.join(columns)}."
        )
    if not set_here and not column:
        return
    what = ", ".join(set_here) or f"the column {args.teacher_prompt_column!r}"
    if others.get("environment_factory") is not None:
        raise ValueError(f"{what}: an environment writes the prompts as it goes, so the teacher can have no other.")
    if {"image", "images"} & set(columns):
        raise ValueError(f"{what}: a prompt with images cannot be rendered anew for the teacher. Remove it.")
    read = [name for name in ("prompt", args.teacher_prompt_column) if name in columns]
    if set_here and isinstance(dataset, Dataset) and "prompt" in read:
        if all(isinstance(prompt, str | None) for name in read for prompt in dataset[name]):
            raise ValueError(
                f"{what} has no effect: the prompts are texts, which no chat template renders. Give `prompt` or "
                f"{args.teacher_prompt_column!r} as messages, or remove it."
            )


def say_of_dataset(checked: Checked, facts: Facts, names: list[str], args: FiReOPDConfig) -> None:
    """How many rows, how long, and whose."""
    if not isinstance(checked.train_dataset, Dataset) or not facts.rows:
        text = "a stream, or prompts that an environment makes: routes and forms are checked as rows are sampled, "
        checked.says("dataset", text + "lengths are not")
        return
    left = f", {facts.dropped} left out as too long" if facts.dropped else ""
    longest = f", the longest prompt has {facts.longest} tokens" if facts.longest else ""
    checked.says("dataset", f"{facts.rows} rows{left}{longest}, completions up to {args.max_completion_length}")
    if len(names) > 1:
        shares = ", ".join(f"{name} {facts.routed[name]}" for name in names)
        alone = [name for name in names if not facts.routed[name]]
        never = f"; no row names {', '.join(alone)}" if alone else ""
        checked.says("routing", f"`{args.teacher_column}`: {shares}{never}", "warning" if alone else "ok")


def say_of_views(checked: Checked, facts: Facts) -> None:
    """Which prompts the teachers read."""
    for name, view in checked.views.items():
        subject = f"{title_of(name)}, prompt"
        own, template = facts.own[name], view.tokenizer.chat_template
        if own:
            how = f", rendered with {view.template_kwargs}" if view.rendered and view.template_kwargs else ""
            checked.says(subject, f"one of its own in {own} of {facts.routed[name]} rows{how}")
        elif name not in facts.first or isinstance(facts.first[name]["prompt"], str):
            checked.says(subject, "the student's")
        elif template and template != checked.tokenizer.chat_template:
            text = (
                "the student's, whose chat template is another than its own; teacher_chat_template='own' changes that"
            )
            checked.says(subject, text, "warning")
        else:
            checked.says(subject, "the student's, rendered by the student's chat template")


def title_of(name: str) -> str:
    """What a teacher is called in a table."""
    return name if name == "teacher" else f"teacher {name}"


def say_of_window(checked: Checked, args: FiReOPDConfig, method: Method, names: list[str], facts: Facts) -> None:
    """Batch arithmetic: the window, what the filter drops, forwards."""
    rows, ranks = args.generation_batch_size, args.world_size
    steps = args.steps_per_generation // args.gradient_accumulation_steps
    prompts = rows // args.num_generations
    windows = len(checked.train_dataset) // prompts if facts.rows else 0
    epoch = f"; {windows} window{'s' * (windows > 1)} an epoch" if windows else ""
    checked.says(
        "window",
        f"{rows} trajectories = {ranks} process{'es' * (ranks > 1)} x {args.per_device_train_batch_size} x "
        f"{args.steps_per_generation} (per_device_train_batch_size x steps_per_generation): {prompts} prompts, "
        f"{args.num_generations} completion{'s' * (args.num_generations > 1)} each; {steps} optimizer "
        f"step{'s' * (steps > 1)}{epoch}",
    )
    if method.filter is not method.unfiltered().filter:
        checked.says("filter", said_of_filter(method, rows, names, facts))
    if not facts.longest_read:
        text = f"forwards of at most {args.scoring_token_budget} padded tokens"
    else:
        longest = facts.longest_read + args.max_completion_length
        at_once = max(1, args.scoring_token_budget // longest)
        forwards = math.ceil(rows / ranks / at_once)
        text = f"at most {forwards} forward{'s' * (forwards > 1)} of {args.scoring_token_budget} padded tokens"
    models = " + ".join(["student", *names])
    checked.says(
        "work",
        f"a window and rank: sampling; scoring in {text} under each of {models}; {args.steps_per_generation} "
        f"micro-batch{'es' * (args.steps_per_generation > 1)} forward and backward",
    )


def said_of_filter(method: Method, rows: int, names: list[str], facts: Facts) -> str:
    """What the recipe's filter leaves of a window of sound trajectories, shared by the teachers as the dataset is."""
    if {"reward_B", "group_B"} & set(method.needs):
        return f"{method.name} selects by rewards"
    shares = [facts.routed[name] / max(1, sum(facts.routed.values())) for name in names]
    ends = torch.tensor(shares).cumsum(dim=0) * rows
    teacher_B = torch.bucketize(torch.arange(rows, dtype=torch.float32), ends, right=True).clamp(max=len(names) - 1)
    window = Rollout(torch.ones(rows, 1), teacher_B=teacher_B)
    keep_B = method.filter(torch.arange(rows, dtype=torch.float32), window, Context())
    kept = int(keep_B.sum())
    return f"{method.name} drops {rows - kept} of {rows} trajectories and updates on {kept}, if all are sound"


def prompts_seen(checked: Checked, facts: Facts, student: Reader) -> str:
    """One prompt of each teacher's, as student and teacher see it."""
    lines: list[str] = []
    for name, view in checked.views.items():
        row = facts.first.get(name)
        if row is None:
            continue
        (mine,), (own,) = student.ids([row]), view.ids([row])
        text = "the same tokens" if own is None else shown(own, view.tokenizer)
        heads = "a prompt as the student sees it:", f"and as {title_of(name)} sees it:"
        width = max(len(head) for head in heads)
        lines += ["", f"{heads[0]:<{width}} {shown(mine, checked.tokenizer)}", f"{heads[1]:<{width}} {text}"]
    return "\n".join(lines)


def shown(ids: list[int] | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens for a person."""
    if ids is None:
        return "known only to the rollout"
    text = tokenizer.decode(ids)
    cut = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"
    return f"{len(ids)} tokens, {cut!r}"
