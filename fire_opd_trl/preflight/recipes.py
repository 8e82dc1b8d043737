"""
Recipes: YAML files with the arguments of a training. One may begin with `extends: OTHER`, and then holds only what it
changes of the other one. `fire-opd recipes` lists those of this package, and prints one as a run reads it.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .packaged import packaged_file, recipe, recipes


EXTENDS = "extends"
PACKAGED = "package://"  # what follows is a path inside of this package, wherever it is installed
# What a recipe does not inherit: arguments of a method that it replaces, and the folder of another run.
OF_THE_METHOD = (
    "method",
    "method_kwargs",
    "control",
    "drop_fraction",
    "confidence",
    "confusion",
    "statistics_scope",
)
OUTPUT_DIR = "output_dir"


def main(argv: list[str]) -> int:
    """Run `fire-opd recipes`: list the recipes, or print one with all that it inherits; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="fire-opd recipes",
        description="List the recipes of `fire-opd train --config NAME`, or print one as a run\n"
        "reads it, with the source of each value.",
        epilog="A recipe of your own: fire-opd recipes NAME > mine.yaml, then --config mine.yaml.\n"
        "Or begin it with `extends: NAME`, and write only what differs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe by name, or a YAML file")
    chosen = parser.parse_args(argv).name
    if chosen is None:
        for title, names in recipes_by_folder().items():
            print(f"{title}:")
            for name in names:
                print(f"  {name:<18}{about(recipe(name))}")
            print()
        print("`fire-opd recipes NAME` prints one; docs/recipes.md compares them.")
        return 0
    try:
        print(resolved_text(chosen), end="")
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def recipes_by_folder() -> dict[str, list[str]]:
    """Returns the names of the recipes under the titles that a list of them has."""
    titles: dict[str, list[str]] = {"recipes": [], "the strong-to-weak run with another method": []}
    ours, others = titles.values()
    for name, file in recipes().items():
        (others if file.parent.name == "baselines" else ours).append(name)
    return titles


def about(file: Path) -> str:
    """Returns what a recipe is, in a line: the first sentence of the comment at its top, or else its name."""
    first = file.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").split(". ")[0].rstrip(".") if first.startswith("#") else file.stem


def without_config(arguments: Iterable[str]) -> tuple[str | None, list[str]]:
    """Returns the recipe that `--config` names, if there is one, and the other arguments."""
    names, rest, words = [], [], iter(arguments)
    for word in words:
        if word == "--config":
            names.append(next(words, ""))
        elif word.startswith("--config="):
            names.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    if "" in names or any(name.startswith("--") for name in names):
        raise ValueError("--config needs the name of a recipe, or of a YAML file.")
    if len(names) > 1:
        raise ValueError(
            f"--config is given {len(names)} times: {', '.join(names)}. Give it once; a recipe may begin with "
            "`extends: OTHER`."
        )
    return (names[0] if names else None), rest


def read_recipe(name: str | Path) -> dict[str, Any]:
    """
    Whoever reads `--config` calls this. It returns the arguments of a recipe, given by name or as a file, with those
    that it inherits, and paths in place of `package://...`. Whatever is wrong is refused in a line.
    """
    settings: dict[str, Any] = {}
    for file in reversed(lineage(recipe(str(name)))):
        own = loaded(file)
        new = {**inherited(settings, own), **own}
        if new.pop(EXTENDS, None) is not None:
            new.setdefault(OUTPUT_DIR, f"outputs/{file.stem}")
        settings = {key: new[key] for key in in_order(list(settings), list(own)) if key in new} | new
    return {key: with_paths(value) for key, value in settings.items()}


def in_order(keys: list[str], own: list[str]) -> list[str]:
    """Returns a base's keys, and among them those of a recipe that extends it, each behind its neighbour there."""
    for before, key in zip([None, *own], own, strict=False):
        if key not in keys:
            keys.insert(keys.index(before) + 1 if before in keys else len(keys), key)
    return keys


def inherited(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Returns what is left of a base's settings in a recipe that extends it."""
    dropped = {OUTPUT_DIR, *(OF_THE_METHOD if "method" in own else ())}
    return {key: value for key, value in settings.items() if key not in dropped}


def lineage(file: Path) -> list[Path]:
    """Returns a recipe, the one that it extends, the one that this extends, and so on; a circle is refused."""
    files = [file]
    while (base := loaded(files[-1]).get(EXTENDS)) is not None:
        files.append(base_file(files[-1], base))
        if files[-1].resolve() in [file.resolve() for file in files[:-1]]:
            raise ValueError(f"--config {file}: a circle of {EXTENDS}: {' -> '.join(map(str, files))}.")
    return files


def base_file(file: Path, base: Any) -> Path:
    """Returns the file of the recipe that a file extends: one beside it, or one of this package by name."""
    if not isinstance(base, str):
        raise ValueError(f"--config {file}: {EXTENDS} is {base!r}. Give the name of one recipe, or its YAML file.")
    beside = file.parent / base
    if beside.suffix in (".yaml", ".yml") and beside.is_file():
        return beside
    try:
        return recipe(base)
    except ValueError as error:
        raise ValueError(str(error).replace("--config", f"--config {file}: {EXTENDS}", 1)) from error


def loaded(file: Path) -> dict[str, Any]:
    """Returns what stands in one recipe's file."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        settings, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--config {file} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {file} is no YAML file: {in_a_line(error)}.") from error
    if not isinstance(settings, dict):
        what = "is empty" if settings is None else f"holds a {type(settings).__name__}"
        raise ValueError(f"--config {file} {what}. A recipe has lines of `argument: value`.")
    keys = [key.value for key, _ in root.value]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise ValueError(f"--config {file}: {', '.join(twice)} stands there twice.")
    return settings


def in_a_line(error: Any) -> str:
    """Returns what is wrong in a YAML file, and where, without the lines that it quotes."""
    mark = getattr(error, "problem_mark", None)
    said = str(getattr(error, "problem", None) or getattr(error, "reason", error))
    return said if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def with_paths(value: Any) -> Any:
    """Returns a value of a recipe, with the paths of this package's files in it."""
    if isinstance(value, dict):
        return {key: with_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_paths(part) for part in value]
    if isinstance(value, str) and value.startswith(PACKAGED):
        return str(packaged_file(value.removeprefix(PACKAGED)))
    return value


def resolved_text(name: str) -> str:
    """Returns a recipe with all that it inherits, as YAML with the comments of the files that each value is from."""
    import yaml

    files, settings = lineage(recipe(name)), read_recipe(name)
    texts = dict(block for file in reversed(files) for block in blocks(file))
    if len(files) > 1 and OUTPUT_DIR not in loaded(files[0]):
        texts.pop(OUTPUT_DIR, None)
    top = [f"# {about(files[0])}."]
    top += [f"# It extends {', which extends '.join(file.stem for file in files[1:])}."] * (len(files) > 1)
    written = [texts.get(key) or yaml.safe_dump({key: value}, sort_keys=False) for key, value in settings.items()]
    return "\n".join(top) + "\n\n" + "".join(written)


def blocks(file: Path) -> Iterator[tuple[str, str]]:
    """
    Yields each key of a recipe's file with its text: the comment right above it, its value, and the comment behind.
    """
    import yaml

    text = file.read_text(encoding="utf-8")
    lines, root = text.splitlines(), yaml.compose(text)
    starts = [key.start_mark.line for key, _ in root.value]
    if len(set(starts)) < len(starts):
        return  # all in one line, as in JSON: it has no comments either
    for (key, _), start, end in zip(root.value, starts, [*starts[1:], len(lines)], strict=True):
        above = start
        while above and lines[above - 1].startswith("#"):
            above -= 1
        start = above or start  # a comment in the first line is about the whole file
        body = lines[start:end]
        while body and (not body[-1].strip() or body[-1].startswith("#")):
            body.pop()  # what stands above the next key
        apart = "\n" if start and not lines[start - 1].strip() and key is not root.value[0][0] else ""
        yield key.value, apart + "\n".join(body) + "\n"
