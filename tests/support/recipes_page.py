"""
Writes the tables of docs/recipes.md: each recipe, its window, its steps, and what `fire-opd plan` says of it.

    make recipes

A test compares the page with what this makes. Not a test itself.
"""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from trl.trainer.utils import RepeatSampler

import fire_opd_trl
from fire_opd_trl.preflight import packaged, plan_arguments
from fire_opd_trl.preflight.command import planned_config
from fire_opd_trl.preflight.plan.of_arguments import SERVER
from fire_opd_trl.preflight.plan.report import verdict
from fire_opd_trl.preflight.plan_command import plan_of_command
from fire_opd_trl.preflight.recipes import about, recipes_by_folder


ROOT = Path(fire_opd_trl.__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
RECIPES = packaged.recipes()
# Rows of the datasets after the recipe's filter, where it is known.
ROWS = {
    "zwhe99/DeepMath-103K": 57_046,  # from difficulty 6 on: the rows of the authors' file of that name
    "prompts/hints.jsonl": 57_046,  # the same problems
    "openai/gsm8k": 7_473,
    "lmms-lab/multimodal-open-r1-8k-verified": 7_690,
}
CARDS = {"lora-24gb": "rtx4090", "smoke": "cpu"}  # of the others: what the paper's run had
CARD = "a100"


def commands_of(name: str, verb: str) -> list[list[str]]:
    """The words of the commands of one verb that the top of a recipe's file proposes."""
    text = RECIPES[name].read_text().replace("\\\n#", "")
    return [line.split("#")[0].split() for line in re.findall(rf"^# .*(fire-opd {verb} .*)$", text, re.MULTILINE)]


def command_of(name: str) -> list[str]:
    """The words of the training that the top of a recipe's file proposes."""
    (words,) = commands_of(name, "train")
    return words


def option(name: str, flag: str) -> str | None:
    words = command_of(name)
    return words[words.index(flag) + 1] if flag in words else None


@cache
def planned_options(name: str) -> Any:
    """
    What `fire-opd plan` makes of the words that a recipe's file proposes for it, else for the training, with the card
    for which the table is.
    """
    (words,) = commands_of(name, "plan") or [command_of(name)]
    return plan_arguments.make_parser().parse_known_args([*words[2:], "--hardware", CARDS.get(name, CARD)])


def processes_of(name: str) -> int:
    """On how many processes a recipe's file proposes to train."""
    if number := option(name, "--num_processes"):
        return int(number)
    config = packaged.accelerate_configs()[option(name, "--accelerate_config") or "cpu"]
    return int(re.search(r"num_processes: (\d+)", config.read_text())[1])


@cache
def parsed(name: str, *argv: str, processes: int | None = None) -> tuple:
    """The arguments of a recipe, as the script has them on so many processes."""
    faults: list[str] = []
    config = planned_config(processes or processes_of(name), faults)
    parser = packaged.training_script().make_parser("fire-opd train", config)
    arguments = parser.parse_args_and_config(["--config", name, "--use_cpu", "true", *argv])
    assert faults == []
    return arguments


def steps(rows: int, args: Any) -> int:
    """Optimizer steps of a run, with TRL's own sampler: an epoch has only whole windows."""
    window = args.generation_batch_size // args.num_generations
    epoch = RepeatSampler(range(rows), mini_repeat_count=1, batch_size=window)
    windows = len(list(epoch)) // window
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * windows)


def steps_of(name: str) -> int | None:
    """The optimizer steps of a recipe, `None` where nobody knows the rows of its dataset."""
    script, args, _, _ = parsed(name)
    rows = ROWS.get(script.dataset_name, 0)
    return steps(rows, args) if rows or args.max_steps > 0 else None


def plan_of(name: str) -> Any:
    options, rest = planned_options(name)
    options.steps = steps_of(name)
    config = packaged.accelerate_configs()[options.accelerate_config]
    return plan_of_command(packaged.training_script(), rest, config, options)


def row_of(name: str) -> str:
    """The row of a recipe."""
    args = parsed(name)[1]
    answers = args.generation_batch_size
    window = f"{answers // args.num_generations} x {args.num_generations}"
    try:
        said = verdict(plan_of(name)).split(" Computed:")[0].split(" `fire-opd plan --fit`")[0]
    except TypeError:
        said = "not planned yet"
    options, _ = planned_options(name)
    if server := [f"--{option} {value}" for option in SERVER if (value := getattr(options, option)) is not None]:
        said = f"With `{' '.join(server)}`: {said}"
    link = RECIPES[name].relative_to(ROOT).as_posix()
    cells = (f"[`{name}`](../{link})", about(RECIPES[name]), window, str(steps_of(name) or "–"), said)
    return f"| {' | '.join(cells)} |"


def table_of(names: list[str]) -> str:
    head = "| recipe | what it is | window: prompts x answers | steps | what `fire-opd plan` says |"
    return "\n".join([head, "| --- | --- | ---: | ---: | --- |", *map(row_of, names)])


def filled(page: str) -> str:
    """The page with new tables."""
    for names in recipes_by_folder().values():
        (old,) = (part for part in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) if f"[`{names[0]}`]" in part)
        page = page.replace(old, table_of(names) + "\n")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
