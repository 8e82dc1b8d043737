r"""
Prompts of mathematics from DeepMath-103K (He et al. 2025, arXiv 2504.11456), as a student reads them.

    python examples/datasets/deepmath.py --output prompts/deepmath.jsonl
    fire-opd data deepmath --output prompts/deepmath.jsonl      # the same

Each row has a `prompt` (one message of the user), its `answer`, `difficulty` and `topic`; with --teacher_prompt also a
prompt that the teacher alone reads, with a worked solution in it. Copy this file and change `to_row` for another set.
"""

import argparse
import math
import sys
from pathlib import Path

from fire_opd_trl.data.sources import (
    DROPPED,
    as_messages,
    converted,
    drawn,
    load_rows,
    refuse_missing_file,
    refuse_output,
    refuse_unknown_columns,
    without_dropped,
    write_rows,
)
from fire_opd_trl.trainer.ending import Ending, refusals


SOURCE = "zwhe99/DeepMath-103K"  # 103,110 rows: question, final_answer, difficulty, topic and these
SOLUTIONS = ("r1_solution_1", "r1_solution_2", "r1_solution_3")
HINT = (
    "{question}\n\nHere is a worked solution of this problem:\n\n{solution}\n\nUse it to find the answer, but write a "
    "solution of your own, step by step, and do not mention this one."
)


def to_row(row: dict, least: float, instruction: str, solution: str | None, hint: str) -> dict:
    """Returns the row that the trainer reads for a row of DeepMath, and why it is left out, if it is."""
    question, difficulty = str(row["question"] or "").strip(), row["difficulty"]
    try:
        difficulty = float(difficulty)  # in CSV and JSON lines it may be a text
    except (TypeError, ValueError):
        difficulty = None
    made = {
        "prompt": as_messages(question, instruction),
        "answer": None if row["final_answer"] is None else str(row["final_answer"]),
        "difficulty": difficulty,
        "topic": row.get("topic"),
        DROPPED: "",
    }
    if not question:
        made[DROPPED] = "there is no question"
    elif difficulty is None or not difficulty >= least:  # nor one that is NaN
        made[DROPPED] = f"the difficulty is below {least:g}, or not known"
    if solution is not None:
        worked = str(row[solution] or "").rpartition("</think>")[2].strip()  # what follows the thinking of R1
        made["teacher_prompt"] = as_messages(hint.replace("{question}", question).replace("{solution}", worked))
        made[DROPPED] = made[DROPPED] or ("" if worked else f"there is no solution in {solution}")
    return made


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s --output FILE [--OPTION VALUE ...]",
        description="Write prompts of DeepMath-103K for a training.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="what is written: .jsonl or .parquet")
    add("--source", default=SOURCE, metavar="NAME", help="its id on the Hub, or files of it (default: %(default)s)")
    add("--min_difficulty", type=float, default=6.0, metavar="LEVEL", help="at least this (default: 6, the paper's)")
    add("--instruction", default="", metavar="TEXT", help="put behind each question (default: none)")
    add("--teacher_prompt", choices=SOLUTIONS, metavar="COLUMN",
        help="give the teacher a solution to read: r1_solution_1, _2 or _3")  # fmt: skip
    add("--hint", default=HINT, metavar="TEXT", help="how: a text with {question} and {solution} in it")
    add("--rows", type=int, metavar="N", help="only so many rows, drawn with --seed")
    add("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add("--streaming", action="store_true", help="keep no copy of the source (2 GB) in the cache")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    return parser


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(prog)
    asked = parser.parse_args(argv)
    if asked.rows is not None and asked.rows < 1:
        parser.error(f"--rows {asked.rows}: give at least 1.")
    if not math.isfinite(asked.min_difficulty):
        parser.error(f"--min_difficulty {asked.min_difficulty}: give a number.")
    if "{solution}" not in asked.hint:
        parser.error("--hint: there is no {solution} in it.")
    with refusals():
        refuse_output(asked.output, asked.overwrite, asked.source)
        refuse_missing_file(asked.source, "--source")

        from datasets import Features, List, Value

        chat = List({"role": Value("string"), "content": Value("string")})
        features = {"prompt": chat, "answer": Value("string"), "difficulty": Value("float64"),
                    "topic": Value("string"), DROPPED: Value("string")}  # fmt: skip
        if asked.teacher_prompt is not None:
            features["teacher_prompt"] = chat
        rows = load_rows(asked.source, "--source", streaming=asked.streaming)
        needed = ["question", "final_answer", "difficulty", *filter(None, [asked.teacher_prompt])]
        refuse_unknown_columns(rows, needed, f"--source {asked.source}")
        table = converted(
            rows, to_row, Features(features), least=asked.min_difficulty, instruction=asked.instruction,
            solution=asked.teacher_prompt, hint=asked.hint,
        )  # fmt: skip
        kept, dropped = without_dropped(table)
        chosen = drawn(kept, asked.rows, asked.seed)
        dropped["not drawn (--rows)"] = len(kept) - len(chosen)
        written = write_rows(chosen, asked.output, len(table), dropped)
    print(written)
    return 0


if __name__ == "__main__":
    with Ending():
        sys.exit(main())
