"""What is wrong with a set of prompts: every kind of fault with its number of rows and the first of them."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset

from ..evaluation.inspect.visible import shortened, visible
from ..preflight.dataset import Reader, measure, measured, no_ids
from ..preflight.findings import Checked, title_of
from ..preflight.prompts import describe_tokens
from ..rollouts.prompts import refuse_malformed, refuse_unrouted
from ..spelling import did_you_mean
from .prompts import CHAT, TEXT, form_of, oddities, text_of
from .readers import Readers
from .similar import held_problems, near_duplicates, numbers_of


LIMITS = (256, 512, 1024, 2048, 4096, 8192)  # tokens, for which the rows above are counted
SHOWN_PAIRS = 5
SHOWN_ROWS = 3
PROMPT_NAMES = ("prompt", "question", "problem", "messages", "conversations", "instruction", "input", "query", "text")
COLUMNS_OF_TRL = ("image", "images")


@dataclass
class Columns:
    """Names of the columns. The prompt's is that of the file: it is called `prompt` when the rows come here."""

    prompt: str = "prompt"
    teacher: str = "teacher_id"
    own: str = "teacher_prompt"
    answer: str = "answer"


@dataclass
class Looked:
    """
    What a look at the prompts has found.

    Args:
        checked ([`~preflight.findings.Checked`]): The findings.
        why (`dict[int, str]`): Why a row would be left out, by its number.
        shown (`str`): Prompts and pairs for a person to read.
    """

    checked: Checked = field(default_factory=Checked)
    why: dict[int, str] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)

    def rows(self, subject: str, outcome: str, rows: list[int], what: str, why: str = "") -> None:
        """Record a kind of rows, if there is any, and with `why` mark them to be left out."""
        if rows:
            self.checked.record(subject, f"{counted(len(rows), 'row')}, the first is row {min(rows)}: {what}", outcome)
        for row in rows if why else ():
            self.why.setdefault(row, why)


@dataclass
class Asked:
    """
    What a look at the prompts is to find.

    Args:
        readers ([`Readers`]): Who reads the prompts.
        columns ([`Columns`]): Where the rest of a row is.
        problems (`dict[str, str]`): Evaluation problems by name.
        overlap (`float`): The share of a problem's triples of words from which a prompt holds it.
        similarity (`float`): The share of common triples from which two prompts are near-duplicates.
        drop_near (`bool`): Whether near-duplicates are marked to be left out.
    """

    readers: Readers
    columns: Columns = field(default_factory=Columns)
    problems: dict[str, str] = field(default_factory=dict)
    overlap: float = 0.6
    similarity: float = 0.7
    drop_near: bool = False


def counted(number: int, thing: str) -> str:
    """Returns how many of a thing there are: `1 row`, `2 rows`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def look_at(rows: Dataset, name: str, asked: Asked) -> Looked:
    """`fire-opd data check` calls this with all rows. It returns what is wrong and odd, and what there is to see."""
    looked, columns = Looked(), asked.columns
    looked.checked.record(
        "file",
        f"{name}: {counted(len(rows), 'row')}; columns "
        + ", ".join(columns.prompt if column == "prompt" else column for column in rows.column_names),
        "ok" if len(rows) else "fault",
    )
    if "prompt" not in rows.column_names:
        guess = next((column for column in PROMPT_NAMES if column in rows.column_names), None)
        hint = f" Is it {guess!r}? Then --prompt_column {guess}." if guess else " Name it with --prompt_column."
        looked.checked.record("columns", f"there is no column `prompt`.{hint}", "fault")
        return looked
    if not len(rows):
        return looked
    read = [c for c in ("prompt", columns.teacher, columns.own, columns.answer) if c in rows.column_names]
    table = rows.select_columns(read).with_format(None)
    cells: dict[str, list[Any]] = {column: list(table[column]) for column in read}
    whole = [dict(zip(read, values, strict=True)) for values in zip(*cells.values(), strict=True)]

    check_columns(looked, rows, columns)
    pictured = bool(set(COLUMNS_OF_TRL) & set(rows.column_names))
    check_forms(looked, whole, asked, pictured)
    check_routes(looked, cells, asked)
    check_oddities(looked, whole, asked)
    check_lengths(looked, rows, table, whole, asked)
    check_repetitions(looked, whole, asked, pictured=pictured)
    show_rows(looked, whole, asked)
    return looked


def check_columns(looked: Looked, rows: Dataset, columns: Columns) -> None:
    """Say what the trainer reads of the columns, and what becomes of the others."""
    read = {
        "prompt": "the student's prompt", columns.teacher: "names the teacher",
        columns.own: "a prompt for the teacher alone", "image": "a picture", "images": "pictures",
    }  # fmt: skip
    names = {"prompt": columns.prompt}
    said = [f"`{names.get(c, c)}` ({what})" for c, what in read.items() if c in rows.column_names]
    rest = [column for column in rows.column_names if column not in read]
    others = f"; only reward functions see {', '.join(rest)}" if rest else ""
    looked.checked.record("columns", f"the trainer reads {', '.join(said)}{others}")


def check_forms(looked: Looked, whole: list[dict[str, Any]], asked: Asked, pictured: bool) -> None:
    """Record each kind of malformed prompt, and whether the rest are texts or chats."""
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    first: dict[tuple[str, str], str] = {}
    forms: Counter[str] = Counter()
    for number, row in enumerate(whole):
        for column in ["prompt"] + [asked.columns.own] * (row.get(asked.columns.own) is not None):
            try:
                refuse_malformed(row, number, "", column, pictured)
            except ValueError as error:
                text = str(error).split(": ", 1)[1]
                kind = column, text.rpartition(". ")[2]  # what to do about it is the same for a kind of fault
                kinds[kind].append(number)
                first.setdefault(kind, text)
            else:
                forms[form_of(row["prompt"])] += column == "prompt"
    for kind, rows in kinds.items():
        looked.rows("form", "fault", rows, shortened(visible(first[kind]), 300), "malformed")
    tokenizer = asked.readers.tokenizers.get("student")
    if forms[TEXT] and forms[CHAT]:
        looked.checked.record(
            "form",
            f"{counted(forms[TEXT], 'prompt')} a text, read as it is; {counted(forms[CHAT], 'prompt')} a list of "
            "messages, which the chat template renders. --prompt_as_chat makes messages of the texts",
            "warning",
        )
    elif forms[TEXT] and tokenizer is not None and tokenizer.chat_template:
        looked.checked.record(
            "form",
            "all prompts are texts, which the student reads without its chat template. A model that was trained on "
            "chats expects it: --prompt_as_chat makes them messages",
            "warning",
        )
    elif forms:
        looked.checked.record("form", f"all prompts are {'texts' if forms[TEXT] else 'lists of messages'}")


def check_routes(looked: Looked, cells: dict[str, list[Any]], asked: Asked) -> None:
    """Record which teachers the rows name, how often, and which rows name none that there is."""
    column, names = asked.columns.teacher, list(asked.readers.teachers)
    subject = "teachers"
    if column not in cells:
        if len(names) > 1:
            text = f"there is no column {column!r}, which must name one of {', '.join(names)} in each row"
            looked.checked.record(subject, text, "fault")
        return
    counts = Counter(value if isinstance(value, str) else repr(value) for value in cells[column])
    shares = ", ".join(f"{visible(name)} {count}" for name, count in counts.most_common(10))
    more = f" and {len(counts) - 10} more names" if len(counts) > 10 else ""
    if not asked.readers.routed:
        missing = sum(not isinstance(value, str) or not value for value in cells[column])
        hint = "" if len(counts) < 2 else ". --teacher NAME=MODEL ... compares them with the teachers there are"
        left = f"; {counted(missing, 'row')} without a name" if missing else ""
        looked.checked.record(subject, f"`{column}`: {shares}{more}{left}{hint}", "warning" if missing else "ok")
        return
    wrong = []
    for number, value in enumerate(cells[column]):
        try:
            refuse_unrouted({column: value}, number, "", column, names)
        except ValueError:
            wrong.append(number)
    strange = [name for name in counts if name not in names]
    looked.rows(
        subject, "fault", wrong,
        f"`{column}` is {', '.join(map(visible, strange[:5]))}, and the teachers are {', '.join(names)}."
        + did_you_mean(strange[0], names) if strange else "", "names no teacher",
    )  # fmt: skip
    never = [name for name in names if not counts[name]]
    without = f"; no row names {', '.join(never)}" if never else ""
    looked.checked.record(subject, f"`{column}`: {shares}{more}{without}", "warning" if never else "ok")


def check_oddities(looked: Looked, whole: list[dict[str, Any]], asked: Asked) -> None:
    """Record what is odd about sound prompts."""
    markers = asked.readers.markers
    kinds: dict[str, list[int]] = defaultdict(list)
    first: dict[str, str] = {}
    for number, row in enumerate(whole):
        if number in looked.why:
            continue
        for kind, what in oddities(row["prompt"], row.get(asked.columns.answer), markers).items():
            kinds[kind].append(number)
            first.setdefault(kind, what)
    for kind, rows in kinds.items():
        looked.rows(kind, "warning", rows, visible(first[kind]))


def check_lengths(looked: Looked, rows: Dataset, table: Dataset, whole: list[dict[str, Any]], asked: Asked) -> None:
    """Record how long the prompts are in tokens, and which are too long; what no template can render is a fault."""
    student, teachers = asked.readers.student, asked.readers.teachers
    if student.ids is no_ids:
        signs = [len(text_of(row["prompt"])) for number, row in enumerate(whole) if number not in looked.why]
        said = f", in characters: {spread(signs)}" if signs else ""
        looked.checked.record("length", f"not known in tokens without --student{said}", "warning")
        return
    if set(COLUMNS_OF_TRL) & set(rows.column_names):
        looked.checked.record("length", "only the rollout knows it: the rows have pictures", "warning")
        return
    columns = (asked.columns.teacher, asked.columns.own)
    read = table.select_columns([c for c in ("prompt", *columns) if c in table.column_names])
    try:
        seen = measured(read, "prompts", student, teachers, columns, quiet=True)
    except ValueError:  # of one row: which ones is found row by row
        seen, failed = one_by_one(whole, student, teachers, columns)
        looked.rows("template", "fault", list(failed), next(iter(failed.values())), "no template renders it")
    known_N, own_N = seen["prompt"] > 0, seen["own"] > 0
    looked.rows("length", "fault", (seen["prompt"] == 0).nonzero().flatten().tolist(), "it has no token", "empty")
    if known_N.any():
        lengths = seen["prompt"][known_N]
        above = ", ".join(f"{limit}: {int((lengths > limit).sum())}" for limit in shown_limits(lengths))
        looked.checked.record("length", f"in tokens of the student: {spread(lengths.tolist())}; above {above}")
    if own_N.any():
        said = f"in tokens, where a teacher reads its own: {spread(seen['own'][own_N].tolist())}"
        looked.checked.record("teacher_prompt", said)
    if student.limit is not None:
        over = (seen["prompt"] > student.limit).nonzero().flatten().tolist()
        what = f"longer than --max_prompt_length {student.limit}. Training refuses it, or leaves it out"
        looked.rows("length", "fault", over, f"{what} (overlong_prompts=drop)", "too long")


def one_by_one(
    whole: list[dict[str, Any]], student: Reader, teachers: dict[str, Reader], columns: tuple[str, str]
) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
    """Returns what `measured` would, and the errors of the rows that cannot be rendered."""
    found: dict[str, list[int]] = defaultdict(list)
    failed: dict[int, str] = {}
    for number, row in enumerate(whole):
        try:
            one = measure({column: [value] for column, value in row.items()}, student, teachers, columns)
        except ValueError as error:
            failed[number] = " ".join(str(error).split())
            one = {key: [-1] for key in ("teacher", "prompt", "own", "largest", "stray")}
        for key, values in one.items():
            found[key] += values
    return {key: torch.tensor(values) for key, values in found.items()}, failed


def spread(lengths: list[int]) -> str:
    """Returns the least, the middle, the 95th percentile and the greatest of some lengths."""
    ordered = sorted(lengths)
    middle, late = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"min {ordered[0]}, median {middle}, p95 {late}, max {ordered[-1]}"


def shown_limits(lengths: torch.Tensor) -> list[int]:
    """Returns the limits that tell something: from the last that all exceed to the first that none does."""
    some = [limit for limit in LIMITS if bool((lengths > limit).any())]
    none = [limit for limit in LIMITS if limit not in some]
    return [*some, *none[:1]]


def check_repetitions(looked: Looked, whole: list[dict[str, Any]], asked: Asked, pictured: bool) -> None:
    """Record repetitions among the prompts, and the evaluation problems that they hold."""
    sound = [number for number in range(len(whole)) if looked.why.get(number) not in ("malformed",)]
    first: dict[str, int] = {}
    again: dict[int, int] = {}
    for number in [] if pictured else sound:
        row = whole[number]
        key = json.dumps([row["prompt"], row.get(asked.columns.teacher), row.get(asked.columns.own)], sort_keys=True)
        if (earlier := first.setdefault(key, number)) != number:
            again[number] = earlier
    what = f"the prompt of row {again[min(again)]} again" if again else ""
    looked.rows("duplicates", "warning", list(again), what, "the prompt of an earlier row")
    once = [number for number in sound if number not in again]
    texts = [text_of(whole[number]["prompt"]) for number in once]
    pairs = {} if pictured else near_duplicates(texts, asked.similarity)
    later = {second: (one, share) for (one, second), share in sorted(pairs.items(), reverse=True)}
    looked.rows(
        "near-duplicates", "warning", [once[number] for number in sorted(later)],
        f"at least {asked.similarity:.0%} of all triples of words are also in an earlier row's, and the numbers are "
        "the same", "nearly the prompt of an earlier row" if asked.drop_near else "",
    )  # fmt: skip
    if not again and not pairs and not pictured:
        looked.checked.record("duplicates", "none, and no near-duplicates")
    show_pairs(looked, "near-duplicates", [
        (f"row {once[number]}", texts[number], f"row {once[other]}", texts[other], share)
        for number, (other, share) in sorted(later.items())
    ])  # fmt: skip
    check_problems(looked, once, texts, asked)


def check_problems(looked: Looked, once: list[int], texts: list[str], asked: Asked) -> None:
    """Record the prompts that hold an evaluation problem."""
    if not asked.problems:
        said = "not compared with evaluation problems: --against names tasks or files"
        looked.checked.record("evaluation", said, "warning")
        return
    names, problems = list(asked.problems), list(asked.problems.values())
    best: dict[int, tuple[int, float]] = {}
    others: set[int] = set()
    for (text, problem), share in held_problems(texts, problems, asked.overlap).items():
        if not numbers_of(problems[problem]) <= numbers_of(texts[text]):
            others.add(text)
        elif share > best.get(text, (0, 0.0))[1]:
            best[text] = problem, share
    rows = [once[text] for text in sorted(best)]
    looked.rows(
        "evaluation", "fault", rows,
        f"at least {asked.overlap:.0%} of the triples of words, and all numbers, of an evaluation problem. A student "
        "that is trained on it is no longer measured by it", "an evaluation problem",
    )  # fmt: skip
    compared = f"compared with {counted(len(problems), 'problem')}: {counted(len(rows), 'row')} held one"
    if other := len(others - set(best)):
        compared += f"; in {counted(other, 'row')} the words are those of a problem, and the numbers are others"
    looked.checked.record("evaluation", compared)
    show_pairs(looked, "evaluation problems", [
        (f"row {once[text]}", texts[text], names[problem], problems[problem], share)
        for text, (problem, share) in sorted(best.items(), key=lambda item: -item[1][1])
    ])  # fmt: skip


def show_pairs(looked: Looked, title: str, pairs: list[tuple[str, str, str, str, float]]) -> None:
    """Add the first pairs to what is shown, one below the other."""
    if not pairs:
        return
    more = f" (the first {SHOWN_PAIRS} of {len(pairs)})" if len(pairs) > SHOWN_PAIRS else ""
    looked.shown.append(f"\n{title}{more}:")
    for one, text, other, problem, share in pairs[:SHOWN_PAIRS]:
        width = max(len(one), len(other))
        looked.shown.append(f"  {one:<{width}}  {shortened(visible(text), 150)}")
        looked.shown.append(f"  {other:<{width}}  {shortened(visible(problem), 150)}  ({share:.0%})")


def show_rows(looked: Looked, whole: list[dict[str, Any]], asked: Asked) -> None:
    """Add three prompts to what is shown, as the student and as their teacher read them; of each teacher one."""
    readers, columns = asked.readers, asked.columns
    if not readers.tokenizers:
        return
    names = list(readers.teachers)

    def owner(row: dict[str, Any]) -> str:
        return names[0] if len(names) == 1 else row[columns.teacher]

    sound = [number for number in range(len(whole)) if looked.why.get(number) in (None, "an evaluation problem")]
    if not sound:
        return
    of_each = {owner(whole[number]): number for number in reversed(sound)}
    wanted = [*of_each.values(), sound[0], sound[len(sound) // 2], sound[-1]]
    for number in sorted(list(dict.fromkeys(wanted))[: max(SHOWN_ROWS, len(of_each))]):
        row, name = whole[number], owner(whole[number])
        (mine,), (own,) = readers.student.ids([row]), readers.teachers[name].ids([row])
        heads = f"row {number} to the student:", f"to {title_of(name)}:"
        width = max(map(len, heads))
        theirs = "the same tokens" if own is None else describe_tokens(own, readers.tokenizers[name])
        looked.shown.append(f"\n{heads[0]:<{width}} {describe_tokens(mine, readers.tokenizers['student'])}")
        looked.shown.append(f"{heads[1]:<{width}} {theirs}")
