"""The command line of a training: recipes by name, a help in groups, and hints at what was meant."""

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, get_type_hints

from trl import TrlParser

from ..preflight.recipes import read_recipe, without_config
from ..spelling import did_you_mean
from .ending import COMMAND, wait_for_the_first_rank


KINDS = {
    "str": "TEXT",
    "text_or_json": "TEXT",
    "int": "INT",
    "float": "FLOAT",
    "string_to_bool": "BOOL",
    "dict": "JSON",
}

SHORT = 40  # characters of choices that stand behind the name of an argument; more of them stand in its help


# Arguments that do not stand in any of the dataclasses.
BESIDES = ("--config", "--accelerate_config", "--num_processes", "--with-models")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Each argument by one of its names, followed by what it takes."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help if action.default is None else super()._get_help_string(action)
        if action.choices and len(choices := ", ".join(map(str, action.choices))) > SHORT:
            return f"{text} One of: {choices}."
        return text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        kind = KINDS.get(getattr(action.type, "__name__", ""), "VALUE")
        if action.choices:
            choices = ",".join(map(str, action.choices))
            kind = "NAME" if len(choices) > SHORT else f"{{{choices}}}"
        return f"{action.option_strings[0]} {kind}" + (" ..." if action.nargs == "+" else "")


class Parser(TrlParser):
    """
    examples/train_fire.py makes this for its arguments, and with it `fire-opd train` and `fire-opd preflight`.

    Args:
        groups (`dict[str, list]`):
            The titles of the help, in its order, each with what stands below it: names of arguments, and classes
            with all their own fields. What is named twice stands in the first group.
        helps (`dict[str, str]`): Another help for some of the arguments.
        kwargs: Everything else that [`~trl.TrlParser`] takes.
    """

    def __init__(self, *args: Any, groups: dict[str, list[Any]], helps: dict[str, str], **kwargs: Any):
        super().__init__(*args, formatter_class=HelpFormatter, **kwargs)
        self.groups = groups
        hints = {name: str(hint).lower() for one in self.dataclass_types for name, hint in get_type_hints(one).items()}
        self.holds = {name: [kind for kind in (list, dict) if kind.__name__ in hint] for name, hint in hints.items()}
        for action in self._actions:
            action.help = helps.get(action.dest, action.help)
            if action.type is str and action.nargs is None and dict in self.holds.get(action.dest, ()):
                action.type = text_or_json

    def parse_args_and_config(self, args: Iterable[str] | None = None, *more: Any, **kwargs: Any) -> Any:
        """As TRL's, with `--config NAME` for a recipe of this package, and recipes that extend others."""
        name, rest = without_config(sys.argv[1:] if args is None else args)
        if name is not None:
            self.take_recipe(name)
        return super().parse_args_and_config(rest, *more, **kwargs)

    def take_recipe(self, name: str) -> None:
        """
        `fire-opd train` calls this before it starts anything. The settings of a recipe become the defaults of the
        arguments; those that no argument has are refused.
        """
        settings = read_recipe(name)
        lists = {action.dest for action in self._actions if action.nargs in ("+", "*")}
        known = {action.dest for action in self._actions}
        if strange := [key for key in settings if key not in known and key != "env"]:
            faults = [f"there is no argument {key}.{did_you_mean(str(key), known)}" for key in strange]
            raise ValueError(f"--config {name}: {' '.join(faults)}")
        for key, value in settings.items():
            if isinstance(value, list | dict) and key in self.holds and type(value) not in self.holds[key]:
                raise ValueError(f"--config {name}: {key} is {value!r}. It takes no {type(value).__name__}.")
        environment = settings.pop("env", None) or {}
        if not isinstance(environment, dict):
            raise ValueError(f"--config {name}: env={environment!r} is no mapping of names to values.")
        os.environ.update({str(key): str(value) for key, value in environment.items()})
        self.set_defaults_with_config(
            **{key: [value] if key in lists and isinstance(value, str) else value for key, value in settings.items()}
        )

    def unknown(self, words: list[str]) -> str:
        """Returns the refusal of arguments that do not exist."""
        flags = [word for word in words if word.startswith("-")] or words  # without the values behind them
        return " ".join(f"There is no argument {flag}.{self.did_you_mean(flag)}" for flag in flags)

    def did_you_mean(self, word: str) -> str:
        """Returns the argument that was probably meant, as [`did_you_mean`] does."""
        return did_you_mean(word.split("=")[0], [*BESIDES, *(f"--{action.dest}" for action in self._actions)])

    def format_help(self) -> str:
        """The help in groups."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        left = {action.dest: action for action in reversed(self._actions)}  # not the `--no_...` of what is true
        for title, members in self.groups.items():
            names = [
                n for part in members for n in ([part] if isinstance(part, str) else inspect.get_annotations(part))
            ]
            formatter.start_section(title)
            formatter.add_arguments([left.pop(name) for name in names if name in left])
            formatter.end_section()
        formatter.start_section("others")
        formatter.add_arguments([action for name, action in left.items() if name != "help"])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> Any:
        """As argparse's, once for all ranks."""
        wait_for_the_first_rank()
        return super().error(message)


def text_or_json(word: str) -> str:
    """Returns a word. One that begins as JSON, and not as a chat template, must be JSON: transformers reads it so."""
    try:
        if re.match(r"\{(?![%{#])", word):
            json.loads(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not JSON: {error}") from error
    return word


def program() -> str | None:
    """Returns what a user has called: `fire-opd train`, or `None` where it is this very script."""
    return os.environ.get(COMMAND)
