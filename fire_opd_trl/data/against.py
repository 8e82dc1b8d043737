"""The problems on which a student will be measured, which its prompts must not hold."""

from pathlib import Path
from typing import Any

from ..evaluation.evaluate.tasks import (
    TASKS,
    benchmark_files,
    benchmark_named,
    file_rows,
    load_task,
    own_files,
    own_name,
)


ALL = "all"
FILES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
PROBLEM_COLUMNS = ("problem", "question", "question_content", "prompt", "text")


def evaluation_problems(names: list[str], data_dir: Path | None) -> dict[str, str]:
    """
    Returns the texts of evaluation problems by a name for each, such as `math500 test/algebra/12`. `fire-opd data
    check` calls this before it reads any prompt.

    Args:
        names (`list[str]`):
            Tasks of `fire-opd evaluate`, files, or `all` for each benchmark of which `data_dir` has a copy.
        data_dir (`Path`, *optional*): The folder of benchmarks.
    """
    if ALL in names:
        folder = data_dir or Path("data")
        there = [name for name in TASKS if benchmark_files(name, folder)]
        if not there:
            raise ValueError(f"--against {ALL}: {folder} holds no benchmark. Name its folder with --data_dir.")
        names = [*there, *(name for name in names if name != ALL)]
    problems: dict[str, str] = {}
    for name in names:
        found = of_task(name, data_dir)
        if not found:
            raise ValueError(f"--against {name}: it holds no problem, so that nothing would be compared.")
        for one, text in found:
            problems.setdefault(one, text)
    return problems


def of_task(name: str, data_dir: Path | None) -> list[tuple[str, str]]:
    """Returns the problems of a task or of a file. A file of one's own needs no answers."""
    if benchmark_named(name) is None and (Path(name).exists() or name.endswith(FILES)):
        paths = own_files(name, data_dir)
        return [(f"{own_name(Path(name))} {place}", problem_in(row, name, place)) for place, row in file_rows(paths)]
    task = load_task(name, data_dir)
    return [(f"{task.name} {problem.id}", problem.text) for problem in task.problems]


def problem_in(row: Any, name: str, place: str) -> str:
    """Returns the text of a row that holds a problem, a text or messages."""
    from .prompts import text_of

    found = next((row[column] for column in PROBLEM_COLUMNS if isinstance(row, dict) and row.get(column)), None)
    if found is None:
        raise ValueError(f"--against {name} {place}: there is none of the columns {', '.join(PROBLEM_COLUMNS)}.")
    return text_of(found)
