r"""
Prompts of several sources for several teachers: each row names its teacher in the column `teacher_id`.

    python examples/datasets/multi_teacher.py --output prompts/math_and_code.jsonl
    fire-opd data multi-teacher --output prompts/math_and_code.jsonl      # the same

By default mathematics of DeepMath-103K (difficulty 6 and above) and the code prompts of G-OPD (Yang et al. 2026, arXiv
2602.12125), from which the data of the paper come, one to one. Any other sources can be named:

    fire-opd data multi-teacher --output prompts/mine.jsonl --source math=math.jsonl law=law.csv \
        --prompt_column math=question law=text --weight math=2 law=1
"""

import argparse
import sys
from pathlib import Path

from fire_opd_trl.data.mixing import mixed, weights_of
from fire_opd_trl.data.sources import (
    DROPPED,
    as_messages,
    by_name,
    converted,
    load_rows,
    refuse_missing_file,
    refuse_output,
    refuse_unknown_columns,
    value_at,
    without_dropped,
    write_rows,
)
from fire_opd_trl.trainer.ending import Ending, Refusal, refusals


# Where nothing is said of a source that is called so. The file of code prompts has verl's columns.
SOURCES = {
    "math": "zwhe99/DeepMath-103K",
    "code": "hf://datasets/Keven16/G-OPD-Training-Data/Eurus/code_train.parquet",
}
PROMPTS = {"zwhe99/DeepMath-103K": "question"}
ANSWERS = {"zwhe99/DeepMath-103K": "final_answer"}
FILTERS = {"zwhe99/DeepMath-103K": "difficulty >= 6"}


def to_row(row: dict, teacher: str, prompt: str, answer: str | None, instruction: str) -> dict:
    """Returns the row that the trainer reads for a row of a source, and why it is left out, if it is."""
    messages = as_messages(value_at(row, prompt), instruction)
    found = value_at(row, answer) if answer else None
    return {
        "prompt": messages,
        "teacher_id": teacher,
        "answer": None if found is None else str(found),
        DROPPED: "" if any(message["content"] for message in messages) else "there is no prompt",
    }


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s --output FILE [--OPTION VALUE ...]",
        description="Write prompts of several sources, each row with its teacher.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    pairs = {"nargs": "+", "action": "extend", "default": []}
    add("--output", type=Path, required=True, metavar="FILE", help="what is written: .jsonl or .parquet")
    add(
        "--source",
        metavar="NAME=DATA",
        help="a teacher and its data: an id or a file (default: math, code)",
        **pairs,
    )
    add("--prompt_column", metavar="NAME=COLUMN", help="where the prompt is (default: prompt)", **pairs)
    add("--answer_column", metavar="NAME=COLUMN", help="where the answer is, also inside: reward_model.ground_truth",
        **pairs)  # fmt: skip
    add("--dataset_filter", metavar="NAME=CONDITION", help="rows to use: math='difficulty >= 6'", **pairs)
    add("--instruction", metavar="NAME=TEXT", help="put behind each prompt", **pairs)
    add("--weight", metavar="NAME=NUMBER", help="the proportion of the sources (default: equal parts)", **pairs)
    add("--rows", type=int, metavar="N", help="rows in all, at most")
    add("--seed", type=int, default=0, metavar="N", help="of the rows that are drawn (default: 0)")
    add("--streaming", action="store_true", help="keep no copies of the sources in the cache")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    return parser


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(prog)
    asked = parser.parse_args(argv)
    if asked.rows is not None and asked.rows < 1:
        parser.error(f"--rows {asked.rows}: give at least 1.")
    with refusals():
        sources = by_name("--source", asked.source) or SOURCES
        refuse_output(asked.output, asked.overwrite, *sources.values())
        prompts = by_name("--prompt_column", asked.prompt_column, sources)
        answers = by_name("--answer_column", asked.answer_column, sources)
        filters = by_name("--dataset_filter", asked.dataset_filter, sources)
        instructions = by_name("--instruction", asked.instruction, sources)
        weights = weights_of(by_name("--weight", asked.weight, sources), sources)
        for name, source in sources.items():
            refuse_missing_file(source, f"--source {name}")

        from datasets import Features, List, Value

        from fire_opd_trl.preflight.loading import filtered

        text = Value("string")
        chat = List({"role": text, "content": text})
        features = Features({"prompt": chat, "teacher_id": text, "answer": text, DROPPED: text})
        tables, dropped, read = {}, {}, 0
        for name, source in sources.items():
            rows = load_rows(source, f"--source {name}", streaming=asked.streaming)
            prompt = prompts.get(name) or PROMPTS.get(source, "prompt")
            answer = answers.get(name) or ANSWERS.get(source)
            refuse_unknown_columns(rows, filter(None, [prompt, answer]), f"--source {name}={source}")
            if condition := filters.get(name) or FILTERS.get(source):
                before, rows = getattr(rows, "num_rows", 0), filtered(rows, condition)
                dropped[f"{name}, not {condition}"] = before - getattr(rows, "num_rows", 0)  # of a stream not counted
                read += dropped[f"{name}, not {condition}"]
            instruction = instructions.get(name, "")
            table = converted(
                rows, to_row, features, teacher=name, prompt=prompt, answer=answer, instruction=instruction
            )
            if condition and not len(table):  # of a stream
                raise Refusal(f"--dataset_filter {name}={condition}: no row of {source} fulfils it.")
            if answer and table.unique("answer") == [None]:
                raise Refusal(f"--answer_column {name}={answer}: no row has a value there.")
            tables[name], why = without_dropped(table)
            dropped.update({f"{name}, {reason}": count for reason, count in why.items()})
            read += len(table)
        chosen, parts = mixed(tables, weights, asked.rows, asked.seed)
        dropped.update({f"{name}, beyond its part": len(tables[name]) - parts[name] for name in tables})
        written = write_rows(chosen, asked.output, read, dropped)
    print(written)
    print("  " + ", ".join(f"{name} {count}" for name, count in parts.items()))
    return 0


if __name__ == "__main__":
    with Ending():
        sys.exit(main())
