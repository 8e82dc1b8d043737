"""`fire-opd data`: prompts to train on, made from public sets or your own, and checked before they are used."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..preflight.packaged import load_module, packaged_folder
from ..spelling import did_you_mean
from .sources import by_name, load_rows, refuse_missing_file, refuse_output, table_of, write_rows


SCRIPTS = {
    "deepmath": "Prompts of DeepMath-103K, difficulty 6 and above: the paper's.",
    "multi-teacher": "Prompts of several sources, each row with its teacher.",
}
CHECK = "Check prompts: lengths, repetitions, evaluation problems."


def main(argv: list[str]) -> int:
    """Run `fire-opd data`: one of the scripts of examples/datasets, or the check."""
    verbs = {**SCRIPTS, "check": CHECK}
    parser = argparse.ArgumentParser(
        prog="fire-opd data",
        usage="%(prog)s [--help] COMMAND ...",
        description="Make prompts to train on, or check those you have.",
        epilog="commands:\n"
        + "\n".join(f"  {verb:<15}{what}" for verb, what in verbs.items())
        + "\n\n`fire-opd data COMMAND --help` says more. All but check are scripts in\nexamples/datasets.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", help=argparse.SUPPRESS)
    verb = parser.parse_args(argv[:1] or ["--help"]).command
    if verb not in verbs:
        parser.error(f"there is no command {verb!r}.{did_you_mean(verb, verbs)} Commands: {', '.join(verbs)}.")
    if verb == "check":
        return check(argv[1:])
    script = packaged_folder("examples") / "datasets" / f"{verb.replace('-', '_')}.py"
    return load_module(script).main(argv[1:], f"fire-opd data {verb}")


def check_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fire-opd data check`."""
    parser = argparse.ArgumentParser(
        prog="fire-opd data check",
        usage="%(prog)s FILE [--student MODEL] [--OPTION VALUE ...]",
        description=CHECK + " No weights are loaded.",
        epilog="exit codes: 0 fine, or written with --output; 1 there is a fault; 2 refused.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="JSONL, Parquet or CSV file, a folder, or a dataset id on the Hub")
    add("--student", metavar="MODEL", help="folder or id, for its tokenizer and chat template")
    add("--teacher", nargs="+", action="extend", default=[], metavar="[NAME=]MODEL",
        help="likewise; of several teachers each with its name: math=DIR code=DIR")  # fmt: skip
    add("--max_prompt_length", type=positive, metavar="TOKENS", help="longer prompts are faults")
    add("--against", nargs="+", action="extend", default=[], metavar="TASK",
        help="evaluation problems that no prompt may hold: tasks of `fire-opd evaluate`, files, or all")  # fmt: skip
    add("--data_dir", type=Path, metavar="DIR", help="where the files of the tasks are (default: ./data)")
    add("--overlap", type=share, default=0.6, metavar="SHARE",
        help="of a problem's triples of words, from which a prompt holds it (default: %(default)s)")  # fmt: skip
    add("--similarity", type=share, default=0.7, metavar="SHARE",
        help="of common triples, from which prompts are near-duplicates (default: %(default)s)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help="write the rows that pass: no fault, no repetition, no evaluation problem")  # fmt: skip
    add("--drop_near_duplicates", action="store_true", help="leave these out of the output, too")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    reading = parser.add_argument_group("how the rows are read")
    add = reading.add_argument
    add("--dataset_config", metavar="NAME", help="of a dataset on the Hub")
    add("--split", metavar="NAME", help="by default train, or the only one")
    add("--streaming", action="store_true", help="read a large set row by row, without a copy in the cache")
    add("--rows", type=positive, metavar="N", help="only the first rows")
    add("--dataset_filter", action="append", default=[], metavar="CONDITION", help="only rows with 'difficulty >= 6'")
    add("--prompt_column", default="prompt", metavar="NAME", help="(default: %(default)s)")
    add("--prompt_as_chat", action="store_true", help="make a prompt that is a text the message of a user")
    add("--teacher_column", default="teacher_id", metavar="NAME", help="(default: %(default)s)")
    add("--teacher_prompt_column", default="teacher_prompt", metavar="NAME", help="(default: %(default)s)")
    add("--answer_column", default="answer", metavar="NAME", help="(default: %(default)s)")
    add("--chat_template_kwargs", type=json_object, metavar="JSON", help="such as '{\"enable_thinking\": false}'")
    add("--teacher_chat_template", metavar="TEXT", help="own, or a .jinja file")
    add("--teacher_chat_template_kwargs", type=json_object, metavar="JSON", help="of all teachers, or by name")
    return parser


def positive(text: str) -> int:
    """Returns a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0.")
    return int(text)


def share(text: str) -> float:
    """Returns a share above 0, and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give a number above 0, at most 1.")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Returns an object that is written as JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as '{{\"enable_thinking\": false}}'.")
    return value


def named_teachers(words: list[str]) -> dict[str, str]:
    """Returns the teachers by name, of `NAME=MODEL ...` or of one `MODEL`."""
    if len(words) == 1 and "=" not in words[0]:
        return {"teacher": words[0]}
    return by_name("--teacher", words, form="of several teachers give each as NAME=MODEL")


def check(argv: list[str]) -> int:
    """Run `fire-opd data check`; the exit code is 1 if there is a fault, and none of it was left out of an output."""
    asked = check_parser().parse_args(argv)
    teachers = named_teachers(asked.teacher)
    refuse_missing_file(asked.file, "FILE")
    if asked.output is not None:
        refuse_output(asked.output, asked.overwrite, asked.file, *asked.against)
    if asked.drop_near_duplicates and asked.output is None:
        raise ValueError("--drop_near_duplicates has no effect without --output.")
    if teachers and asked.student is None:
        raise ValueError("--teacher has no effect without --student, whose tokens the teacher reads.")
    if asked.max_prompt_length and asked.student is None:
        raise ValueError("--max_prompt_length counts tokens of the student: name it with --student.")
    names = asked.teacher_column, asked.teacher_prompt_column, asked.answer_column
    if len({"prompt", *names}) < 4:
        raise ValueError(
            "--teacher_column {}, --teacher_prompt_column {} and --answer_column {} must be three columns, and none "
            "of them `prompt`.".format(*names)
        )
    for name in asked.against:
        refuse_missing_file(name if not asked.data_dir or Path(name).exists() else str(asked.data_dir / name),
                            "--against")  # fmt: skip

    from .against import evaluation_problems

    problems = evaluation_problems(asked.against, asked.data_dir) if asked.against else {}

    from datasets import Dataset, disable_progress_bars
    from transformers.utils import logging

    from ..preflight.loading import as_chat, filtered, with_prompt
    from .check import Asked, Columns, look_at
    from .readers import readers_of

    disable_progress_bars()
    logging.set_verbosity_error()
    settings = {
        "chat_template_kwargs": asked.chat_template_kwargs,
        "teacher_chat_template": asked.teacher_chat_template,
        "teacher_chat_template_kwargs": asked.teacher_chat_template_kwargs,
        "teacher_column": asked.teacher_column,
        "teacher_prompt_column": asked.teacher_prompt_column,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    readers = readers_of(asked.student, teachers, asked.max_prompt_length, given)
    rows = load_rows(asked.file, "FILE", config=asked.dataset_config, split=asked.split, streaming=asked.streaming)
    for condition in asked.dataset_filter:
        rows = filtered(rows, condition)
    if asked.prompt_column != "prompt":
        rows = with_prompt(rows, asked.prompt_column)
    table: Dataset = table_of(rows, asked.rows)
    if asked.prompt_as_chat and "prompt" in table.column_names:
        table = table.map(as_chat, batched=True)
    columns = Columns(asked.prompt_column, *names)
    looked = look_at(
        table, asked.file,
        Asked(readers, columns, problems, asked.overlap, asked.similarity, asked.drop_near_duplicates),
    )  # fmt: skip
    code = report(looked.checked, looked.shown, looked.why, table, asked.output)
    if asked.output is not None and asked.output.exists() and asked.prompt_column != "prompt":
        print(
            f"The prompts in it are called `prompt`: a recipe needs no prompt_column={asked.prompt_column} any more."
        )
    return code


def report(checked: Any, shown: list[str], why: dict[int, str], table: Any, output: Path | None) -> int:
    """Prints the table, what there is to see and the verdict; writes the output; returns the exit code."""
    print(checked.table())
    print("\n".join(shown))
    faults = len(checked.faults)
    doubts = sum(finding.outcome == "warning" for finding in checked.findings)
    counted = f"{faults or 'no'} fault{'s' * (faults != 1)}, {doubts or 'no'} warning{'s' * (doubts != 1)}"
    if output is None or "prompt" not in table.column_names:
        print(f"\n{counted}." + " --output FILE writes the rows that pass." * bool(faults and why))
        return 1 if faults else 0
    kept = [row for row in range(len(table)) if row not in why]
    reasons = list(why.values())
    print(f"\n{counted} in what was read.")
    if not kept:
        print(f"{output} is not written: no row passes.")
        return 1
    dropped = {one: reasons.count(one) for one in dict.fromkeys(reasons)}
    print(write_rows(table.select(kept), output, len(table), dropped))
    return 0
