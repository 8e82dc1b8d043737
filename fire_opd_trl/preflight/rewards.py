"""Whether the reward functions can be called as GRPO will call them, with the columns of the dataset."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .loading import columns_of


# What GRPOTrainer._calculate_rewards passes beside the columns, and `environments` where there are any.
OF_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def refuse_uncallable_rewards(reward_funcs: Any, dataset: Any, environments: bool) -> None:
    """
    `inspect_run` calls this. Refuse a reward function that would fail at its first call, after a window was sampled:
    it requires an argument that is no column, or does not take all that it is given.

    Args:
        reward_funcs (`list`, *optional*): As the trainer takes them. What is no function reads only texts.
        environments (`bool`): Whether there is an `environment_factory`.
    """
    functions = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    functions = [one for one in functions if callable(one) and not isinstance(one, nn.Module)]
    columns = columns_of(dataset) if functions else None
    if columns is None:
        return
    given = dict.fromkeys((*OF_TRL, *["environments"] * environments, *columns))
    for column in ("prompt", "completion"):  # not passed under these names
        given.pop(column, None)
    for function in functions:
        try:
            signature_of(function).bind(**given)
        except TypeError as error:
            name = getattr(function, "__name__", type(function).__name__)
            raise ValueError(
                f"reward_funcs: {name} cannot be called: {error}. It is given the arguments {', '.join(OF_TRL)}, and "
                f"the columns of the dataset: {', '.join(columns)}. Rename a column or the argument, give it a "
                "default, and take the rest with **kwargs."
            ) from error


def signature_of(function: Callable) -> inspect.Signature:
    """Returns what a function takes; of one in C, which does not say it, anything."""
    try:
        return inspect.signature(function, follow_wrapped=False)  # what is called is the wrapper
    except ValueError:
        return inspect.signature(lambda **rest: rest)
