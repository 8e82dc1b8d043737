"""
Which tasks there are, and how their problems are read.

The repository holds no problem of a benchmark. A task is read from a file of the user, or from the Hub where no folder
of data is given and none of the usual files is in `./data`. docs/benchmarks.md says where people get each, what its
licence is, and which layouts were seen.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...spelling import did_you_mean
from ..inspect.visible import visible
from .answers import last_boxed
from .problems import Problem, Task, digest, text_id
from .prompts import AS_WRITTEN, INSTRUCTION


PROBLEM_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("answer", "final_answer", "gt", "solution")  # of a solution: its last box
ID_COLUMNS = ("id", "unique_id", "problem_id", "problem_idx", "idx", "task_id", "question_id")
ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz")
USUAL_FILES = ("test.*", "train.*", "test-*", "train-*", "data/test-*", "data/train-*", "*")
DEFAULT_FOLDER = Path("data")
GENERATED = 200  # problems of a generator where no limit is given
GENERATOR_SEED = 0
LOOKED_AT = 20  # problems of a generator that say whether its answers are numbers, so that no limit changes it
LONGEST_ID = 200  # characters
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
EMBEDDED, SUMS, GYM, HUB = "embedded", "sums", "reasoning_gym:", "hub:"

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # where a row stands, such as `line 3`, and the row


@dataclass(frozen=True)
class Benchmark:
    """
    What is known of the rows of a benchmark, or of a file of one's own. docs/benchmarks.md says the rest.

    Attributes:
        names (`tuple[str, ...]`):
            What else its file or folder is called below the folder of data, in small letters and digits only.
        hub (`str`):
            Its data set on the Hub.
        expected (`tuple[int, ...]`):
            How many problems it has, in the copies that people use. Another number is a warning.
        split (`str`, *optional*, defaults to `"test"`):
            The split of the data set on the Hub. `None` takes the test split if there is one.
        config (`str`, *optional*):
            The configuration of the data set on the Hub.
        inside (`tuple[str, ...]`, *optional*):
            Where the files are inside the folder, if not in a usual place.
        kind (`str`, *optional*, defaults to `"math"`):
            `"math"` or `"code"`.
        columns (`tuple[str, ...]`, *optional*):
            The columns that may hold the problem.
        where (`tuple`, *optional*):
            Only rows whose columns have these values belong to it, as far as the columns are there.
    """

    names: tuple[str, ...]
    hub: str
    expected: tuple[int, ...] = ()
    split: str | None = "test"
    config: str | None = None
    inside: tuple[str, ...] = ()
    kind: str = "math"
    columns: tuple[str, ...] = PROBLEM_COLUMNS
    where: tuple[tuple[str, str], ...] = ()


TASKS: dict[str, Benchmark] = {
    "aime24": Benchmark(("aime2024",), "math-ai/aime24", (30,)),
    "aime25": Benchmark(("aime2025",), "math-ai/aime25", (30,)),
    "math500": Benchmark((), "HuggingFaceH4/MATH-500", (500,)),
    "amc23": Benchmark(("amc2023",), "math-ai/amc23", (40,)),
    "olympiadbench": Benchmark(
        ("olympiad",),
        "Hothan/OlympiadBench",
        (674, 675),
        split="train",
        config="OE_TO_maths_en_COMP",
        inside=("OE_TO_maths_en_COMP/**/*", "OlympiadBench/OE_TO_maths_en_COMP/**/*"),
        where=(
            ("modality", "Text-only"),
            ("language", "English"),
            ("subject", "Math"),
            ("question_type", "Open-ended"),
        ),
    ),
    "minerva": Benchmark(("minervamath",), "math-ai/minervamath", (272,)),
    "hmmt_feb_2025": Benchmark(("hmmt25feb", "hmmtfeb25"), "MathArena/hmmt_feb_2025", (30,), "train"),
    "hmmt_nov_2025": Benchmark(("hmmt25nov", "hmmtnov25"), "MathArena/hmmt_nov_2025", (30,), "train"),
    "humaneval_plus": Benchmark((), "evalplus/humanevalplus", (164,), kind="code", columns=("prompt",)),
    "mbpp_plus": Benchmark((), "evalplus/mbppplus", (378,), kind="code", columns=("prompt",)),
    "livecodebench": Benchmark(
        ("codegenerationlite",), "livecodebench/code_generation_lite", kind="code", columns=("question_content",)
    ),
}


def load_task(name: str | Path, data_dir: Path | str | None = None, limit: int | None = None) -> Task:
    """
    Returns the task that a user names. The command and [`evaluate`] call it before any weights are loaded.

    Args:
        name (`str` or `Path`):
            A name of [`TASKS`], a path of a `.jsonl`, `.json`, `.parquet` or `.csv` file with the columns `problem`
            and `answer`, `hub:OWNER/NAME`, `reasoning_gym:NAME`, `embedded`, or `sums`.
        data_dir (`Path`, *optional*):
            Where the files of benchmarks are. With it, no benchmark is read from the network. Without it, `./data` is
            looked at first, and then the Hub, which `HF_HUB_OFFLINE=1` forbids.
        limit (`int`, *optional*):
            Only the first problems.

    Raises:
        `ValueError`: With a sentence that says what is wrong with the name, the file or the row, and what to do.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: give the number of problems, at least 1, or leave it out for all.")
    name = str(name)
    folder = None if data_dir is None else Path(data_dir)
    if name == EMBEDDED:
        return embedded(limit)
    if name == SUMS:
        return sums_in_words(limit)
    if name.startswith(GYM):
        return from_gym(name, limit)
    if known := benchmark_named(name):
        return benchmark_task(known, folder, limit)
    own = Benchmark((), name.removeprefix(HUB), split=None)
    if name.startswith(HUB):
        return task_of(own.hub.rpartition("/")[2], name, problems_of(hub_rows(own), name, own), limit)
    paths = own_files(name, folder)
    source = str(paths[0])
    return task_of(own_name(Path(name)), source, problems_of(file_rows(paths), source, own), limit)


def task_of(
    name: str,
    source: str,
    problems: list[Problem],
    limit: int | None,
    kind: str = "math",
    answer: str = "boxed",
    style: str = "boxed",
) -> Task:
    """Returns a task of the first problems, and hashes those that it takes."""
    if not problems:
        raise ValueError(f"{source} holds no problem.")
    taken = tuple(problems[:limit])
    return Task(name, kind, answer, source, digest(taken), taken, style)


def only_letters(name: str) -> str:
    """Returns a name in small letters and digits only, so that `MATH-500` is `math500`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def benchmark_named(name: str) -> str | None:
    """Returns the key of [`TASKS`] for a name in any of its usual spellings, or `None`."""
    plain = only_letters(name)
    if plain != name.lower() and re.search(r"[/.:\\]", name):
        return None  # a path or a name of the Hub
    return next((key for key in TASKS if plain in names_of(key)), None)


def names_of(name: str) -> tuple[str, ...]:
    """Returns what a benchmark's file or folder is called, in small letters and digits only."""
    return (only_letters(name), *TASKS[name].names)


def without_ending(name: str) -> str:
    """Returns the name of a file without the ending that says how it is read."""
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


# Files


def own_files(name: str, folder: Path | None) -> list[Path]:
    """Returns the files that a path of the user means, as it stands or below the folder of data."""
    places = [Path(name).expanduser()] if name.strip() else []
    if folder is not None and places and not places[0].is_absolute():
        places.append(folder / name)
    for place in places:
        if place.is_file():
            if not place.name.endswith(ENDINGS):
                raise ValueError(f"{place} ends in none of {', '.join(ENDINGS)}, so how to read it is not known.")
            return [place]
        if place.is_dir():
            if files := files_inside(place, ()):
                return files
            raise ValueError(f"{place} is a folder in which no file ends in {', '.join(ENDINGS)}. Name a file.")
    if name.endswith(ENDINGS) or "/" in name:
        raise ValueError(f"There is no file {' and none '.join(map(str, places))}.")
    names = [*TASKS, EMBEDDED, SUMS]
    raise ValueError(
        f"There is no task {name!r}.{did_you_mean(name, names)} Tasks: {', '.join(names)}, {GYM}NAME, "
        f"{HUB}OWNER/NAME, or a file that ends in {', '.join(ENDINGS)}."
    )


def own_name(path: Path) -> str:
    """Returns what a task from a file is called: the stem, with the folder's name where the stem says little."""
    stem = without_ending(path.name)
    parent = path.resolve().parent.name
    return visible(f"{parent}_{stem}" if stem in ("test", "train") and parent else stem)


def files_inside(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Returns the files of a task in its folder: those of the first pattern that finds any, shards in order."""
    for pattern in (*patterns, *USUAL_FILES):
        found = sorted(path for path in folder.glob(pattern) if path.is_file() and path.name.endswith(ENDINGS))
        shards = [path for path in found if re.search(r"-\d+-of-\d+", path.name)]
        if len(found) > 1 and len(shards) < len(found):
            raise ValueError(
                f"{folder} holds several files that may be meant: {', '.join(path.name for path in found)}. "
                "Keep one, or give the path of one as the task."
            )
        if found:
            return found
    return []


def benchmark_files(name: str, folder: Path) -> list[Path]:
    """Returns the files of a benchmark below the folder of data, or nothing. Of several copies the first is taken."""
    benchmark, names = TASKS[name], names_of(name)
    copies: list[list[Path]] = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        plain = only_letters(without_ending(entry.name))
        # The files of EvalPlus carry their version: HumanEvalPlus-v0.1.10.jsonl.
        if plain in names or (benchmark.kind == "code" and plain.startswith(names)):
            if entry.is_dir():
                copies.append(files_inside(entry, benchmark.inside))
            elif entry.name.endswith(ENDINGS):
                copies.append([entry])
    copies = [files for files in copies if files]
    if len(copies) > 1:
        found = ", ".join(str(files[0]) for files in copies)
        warnings.warn(f"{name}: {folder} holds several copies ({found}). The first is read.", stacklevel=2)
    return copies[0] if copies else []


def file_rows(paths: list[Path]) -> Rows:
    """Yields the rows of files, each with where it stands. Raises `ValueError` at the first that cannot be read."""
    for path in paths:
        where = f"{path} " if len(paths) > 1 else ""
        for place, row in json_lines(path) if path.name.endswith((".jsonl", ".gz")) else table_rows(path):
            yield where + place, row


def json_lines(path: Path) -> Rows:
    """Yields the objects of a file with one a line; it may be packed with gzip."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} line {number} is not UTF-8: {error.reason} at byte {error.start}."
                ) from error
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}. Its start: {text[:60]!r}.") from error
            yield f"line {number}", row


def table_rows(path: Path) -> Rows:
    """Yields the rows of a parquet file, of comma-separated values, or of a JSON file that is a list of objects."""
    rows: Any
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # slow to import, and comes with datasets

            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
        else:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        hint = " One object a line belongs into a .jsonl file." if path.suffix == ".json" else ""
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}.{hint}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__} and not a list of problems.")
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def hub_rows(benchmark: Benchmark) -> Rows:
    """Yields the rows of a data set on the Hub, or of its copy in the cache. Raises `ValueError` where it has none."""
    import datasets  # slow to import, and not needed for a file

    repository, config, split = benchmark.hub, benchmark.config, benchmark.split
    try:
        splits = [split] if split else datasets.get_dataset_split_names(repository, config)
        wanted = next((name for name in ("test", "train") if name in splits), splits[0])
        rows = datasets.load_dataset(repository, config, split=wanted)
    except Exception as error:  # the hub, the network and the data set each have errors of their own
        raise ValueError(
            f"The data set {repository!r} could not be read from the Hub: {type(error).__name__}: "
            f"{(str(error).strip() or 'no message').splitlines()[0]} "
            "Without a network, put a file of it into a folder and name that with --data_dir."
        ) from error
    yield from ((f"row {number}", dict(row)) for number, row in enumerate(rows, 1))


# Rows


def benchmark_task(name: str, folder: Path | None, limit: int | None) -> Task:
    """Returns the task of a benchmark, from a file or from the Hub."""
    benchmark, below = TASKS[name], folder or DEFAULT_FOLDER
    paths, code = benchmark_files(name, below), benchmark.kind == "code"
    if not paths and (folder is not None or code):
        names = " or ".join(f"{one}.jsonl" for one in dict.fromkeys((name, *names_of(name))))
        get = "the releases of its own project"
        if not code:
            get = f"the data set {benchmark.hub} of the Hub: without --data_dir it is read there"
        raise ValueError(
            f"{name}: nothing below {below} is it. Looked for {names} (also .json, .parquet, .csv) and for folders of "
            f"these names with test.jsonl, train.jsonl or data/test-*.parquet in them. People get it from {get}. "
            "See docs/benchmarks.md."
        )
    source = str(paths[0]) if paths else f"{HUB}{benchmark.hub}"
    problems = problems_of(file_rows(paths) if paths else hub_rows(benchmark), source, benchmark, name)
    return task_of(name, source, problems, limit, benchmark.kind, "code" if code else "boxed")


def problems_of(rows: Rows, source: str, benchmark: Benchmark, name: str = "") -> list[Problem]:
    """
    Returns the problems of rows, without repetitions.

    A row that asks and answers what an earlier one does is left out with a warning: some copies repeat a benchmark to
    get several samples of each problem, and repeated rows would make the interval too narrow. Where only the problem
    is the same and the answer another, both stay.
    """
    found: dict[tuple, Problem] = {}
    count = 0
    for place, row in rows:
        if isinstance(row, dict) and any(row.get(column, value) != value for column, value in benchmark.where):
            continue
        problem = (code_problem if benchmark.kind == "code" else math_problem)(row, benchmark, f"{source} {place}")
        found.setdefault((problem.text, problem.gold, problem.fields.get("row_sha256")), problem)
        count += 1
    if benchmark.expected and not {count, len(found)} & set(benchmark.expected):
        usual = " or ".join(map(str, benchmark.expected))
        warnings.warn(
            f"{name}: {source} has {count} problems, and the usual copy {usual}. The number is not comparable.",
            stacklevel=2,
        )
    if repeated := count - len(found):
        warnings.warn(
            f"{source}: {repeated} rows repeat an earlier one with its answer and are left out.", stacklevel=2
        )
    if damaged := sum(bool(problem.gold and CONTROL.search(problem.text)) for problem in found.values()):
        warnings.warn(
            f"{source}: {damaged} problems hold control characters, as where \\f of \\frac was read as a form feed. "
            "They are asked as they stand.",
            stacklevel=2,
        )
    return numbered(list(found.values()))


def math_problem(row: Row, benchmark: Benchmark, where: str) -> Problem:
    """Returns the problem of a row with an answer, named by the row's own id if it has one."""
    written = text_of(row, benchmark.columns, where)
    gold = golds_of(row, where)
    context = row.get("context")
    if isinstance(context, str) and context.strip():  # OlympiadBench: what several questions share
        refuse_surrogates(context, f"{where}: `context`")
        written = f"{context.strip()}\n{written}"
    text = written.strip().removesuffix(INSTRUCTION).strip()
    if not text:
        raise ValueError(f"{where}: the problem is only the instruction.")
    fields = small_fields(row, {*benchmark.columns, *ANSWER_COLUMNS, *ID_COLUMNS})
    if text != written.strip():
        fields[AS_WRITTEN] = written
    return Problem(own_id(row), text, gold, fields)


def code_problem(row: Row, benchmark: Benchmark, where: str) -> Problem:
    """
    Returns the problem of a row of code. Its tests stay in the file, which the grader reads by itself
    ([`Task.source`]); a hash of the whole row goes into the fields, so that other tests are another task.
    """
    text = text_of(row, benchmark.columns, where)
    whole = json.dumps(row, sort_keys=True, default=str)
    fields = small_fields(row, {*benchmark.columns, "canonical_solution"})
    fields["row_sha256"] = hashlib.sha256(whole.encode()).hexdigest()
    if isinstance(starter := row.get("starter_code"), str):
        refuse_surrogates(starter, f"{where}: `starter_code`")
        fields["starter_code"] = starter  # of any length: the prompt needs it
    return Problem(own_id(row), text, (), fields)


def column_of(row: Any, columns: tuple[str, ...], where: str) -> Any:
    """Returns the first of some columns that a row has, in capital letters or small, and is not empty."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__} and not an object with the columns {' or '.join(columns)}.")
    small = {str(key).lower(): value for key, value in reversed(row.items())}
    for column in columns:
        value = row.get(column, small.get(column.lower()))
        if value is not None and value != "" and value != []:
            return (column, value)
    there = f"It has: {', '.join(map(str, row))}." if row else "It is empty."
    raise ValueError(f"{where}: no column {' or '.join(map(repr, columns))} with anything in it. {there}")


def text_of(row: Any, columns: tuple[str, ...], where: str) -> str:
    """Returns the problem of a row. Raises `ValueError` where it is no text."""
    column, text = column_of(row, columns, where)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: `{column}` is {text!r:.60} and not a text.")
    refuse_surrogates(text, f"{where}: `{column}`")
    return text


def refuse_surrogates(text: str, where: str) -> None:
    """Refuse half a character, which JSON can hold and no tokenizer reads."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{where} holds half a character (a lone surrogate). Write the file as UTF-8 again.")


def golds_of(row: Row, where: str) -> tuple[str, ...]:
    """
    Returns the answers of a row, any of which is right.

    A list is a list of such answers, except where the row says `is_multiple_answer`: then all of them together are the
    answer, as where one text names several with commas between them.
    """
    column, value = column_of(row, ANSWER_COLUMNS, where)
    values = value if isinstance(value, list | tuple) else [value]
    texts = []
    for one in values:
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{where}: `{column}` is {one}, which no answer can equal.")
        if isinstance(one, float) and one.is_integer() and abs(one) < 1e15:
            one = int(one)  # a column of numbers with a gap in it becomes one of floats
        if isinstance(one, bool) or not isinstance(one, str | int | float) or not str(one).strip():
            raise ValueError(f"{where}: `{column}` is {one!r:.60}. Give a text, a number, or a list of texts.")
        text = str(one).strip()
        refuse_surrogates(text, f"{where}: `{column}`")
        boxed = last_boxed(text) if "\\boxed" in text else None
        if column == "solution" and boxed is None:
            raise ValueError(f"{where}: there is no answer, and `solution` has no \\boxed{{...}} to take it from.")
        texts.append(boxed or text)
    if row.get("is_multiple_answer") and len(texts) > 1:
        texts = [", ".join(texts)]
    return tuple(dict.fromkeys(gold for text in texts for gold in spellings(text)))


NUMBER_WITH_EXPONENT = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?)0*(\d+)")


def spellings(gold: str) -> list[str]:
    r"""
    Returns an answer as it stands, and in LaTeX where it is written as in a program: math-verify reads `4.5e33` as
    4.5 times e times 33, so that `4.5 \times 10^{33}` would be wrong. A fifth of Minerva's answers are such numbers.
    """
    latex = NUMBER_WITH_EXPONENT.fullmatch(gold)
    if latex:
        return [gold, rf"{latex[1]} \times 10^{{{latex[2].replace('+', '')}{latex[3]}}}"]
    repaired = re.sub(r"\b(?:np|math)\.(?=[a-z])", r"\\", gold)  # np.arcsin(10/13)
    repaired = re.sub(r"(?<![\\a-zA-Z])sqrt(?=\{)", r"\\sqrt", repaired)  # sqrt{7}, a backslash was lost
    repaired = re.sub(r"(?<=\d)\.(?=/|$)", "", repaired)  # -1./3
    return [gold] if repaired == gold else [gold, repaired]


def small_fields(row: Row, without: set[str]) -> dict[str, Any]:
    """Returns the short values of a row that are neither its problem nor its answer, such as level and subject."""
    return {
        key: value
        for key, value in row.items()
        if key not in without
        and (isinstance(value, bool | int | float) or (isinstance(value, str) and 0 < len(value) <= 200))
    }


def own_id(row: Row) -> str:
    """Returns the row's own id, or an empty text where it has none that can name a file inside a log."""
    small = {str(key).lower(): value for key, value in row.items()}
    value = next((small[column] for column in ID_COLUMNS if isinstance(small.get(column), str | int)), "")
    text = str(value).strip()
    return text if text.isprintable() and len(text) <= LONGEST_ID else ""


def numbered(found: list[Problem]) -> list[Problem]:
    """Returns the problems with their ids: the rows' own if each row has one of its own, else those of the texts."""
    own = {problem.id for problem in found}
    if len(own) == len(found) and all(own):
        return found
    times: Counter[str] = Counter()
    problems = []
    for problem in found:
        name = text_id(problem.text)
        times[name] += 1
        problems.append(replace(problem, id=name if times[name] == 1 else f"{name}-{times[name]}"))
    return problems


# Generators


def drawn(pairs: Iterable[tuple[str, str]]) -> list[Problem]:
    """Returns the problems of a generator, which gives their texts and answers, each text once."""
    answers: dict[str, str] = {}
    for text, answer in pairs:
        answers.setdefault(text, answer)
    return [Problem(text_id(text), text, (answer,)) for text, answer in answers.items()]


def embedded(limit: int | None) -> Task:
    """Returns the held-out sums of the embedded task. The answer follows a semicolon and is compared as text."""
    from ...demo import task  # imports torch

    pairs = task.problems("test", limit or GENERATED, seed=GENERATOR_SEED)
    problems = drawn((task.prompt(a, b), str(a + b)) for a, b in pairs)
    return task_of(EMBEDDED, "fire_opd_trl.demo.task", problems, limit, "exact", "semicolon", "none")


def sums_in_words(limit: int | None) -> Task:
    """Returns the held-out sums of the real pair, which a small language model can learn."""
    from ...real_pair import sums

    problems = drawn((sums.problem(one), str(sum(one))) for one in sums.problems("test", limit or GENERATED))
    return task_of(SUMS, "fire_opd_trl.real_pair.sums", problems, limit)


NUMBER = re.compile(r"-?\d+(?:\.\d+|/[1-9]\d*)?")


def from_gym(name: str, limit: int | None) -> Task:
    """
    Returns problems of a generator of reasoning-gym, the same for the same version of it.

    Its own scorers are not used: they run in this process and some evaluate what the model wrote. Where the answers
    are numbers, math-verify compares; else the text must be equal. A generator whose problems have several right
    answers is thus measured too low.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(f"{name} needs reasoning-gym: pip install reasoning-gym.") from error
    kind = name.removeprefix(GYM)
    if kind not in DATASETS:
        raise ValueError(f"reasoning-gym has no generator {kind!r}.{did_you_mean(kind, DATASETS)}")
    try:
        made = list(reasoning_gym.create_dataset(kind, size=max(limit or GENERATED, LOOKED_AT), seed=GENERATOR_SEED))
    except AssertionError as error:  # how it refuses a configuration
        raise ValueError(f"{name} cannot be made without further settings: {error}.") from error
    if any(row["answer"] is None for row in made):
        raise ValueError(f"{name}: its problems have no single answer to compare with. Choose another generator.")
    found = drawn((row["question"].strip(), str(row["answer"]).strip()) for row in made)
    numbers = all(NUMBER.fullmatch(problem.gold[0]) for problem in found[:LOOKED_AT])
    source = f"reasoning-gym {version('reasoning-gym')}, seed {GENERATOR_SEED}"
    return task_of(name, source, found, limit or GENERATED, "math" if numbers else "exact")
