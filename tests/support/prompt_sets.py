"""
Sets of prompts in the columns of those that people use, and a student that reads chats.

    PYTHONPATH=tests python -m support.prompt_sets 100000    # writes big.jsonl and problems.jsonl, to time the check
"""

import itertools
import json
import random
import sys
from pathlib import Path

from datasets import Dataset

from support.inspections import without_weights


WORDS = (
    "let be a function such that find the number of all positive integers prove real continuous group order ring "
    "matrix trace value integral limit sequence converges sum"
).split()


def words(seed: int, many: int = 25) -> str:
    """Some words, the same for a seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=many))


def deepmath(rows: int = 40, **changes: dict) -> list[dict]:
    """Rows in the columns of zwhe99/DeepMath-103K, as its card on the Hub lists them; `row3={...}` changes one."""
    made = [
        {
            "question": f"{words(row)} n={row}",
            "final_answer": str(row),
            "difficulty": 5.0 + row % 4 / 2,
            "topic": "Mathematics -> Algebra",
            **{f"r1_solution_{k}": f"Okay, so {k}.\n</think>\nThe answer is {row}." for k in (1, 2, 3)},
        }
        for row in range(rows)
    ]
    for name, change in changes.items():
        made[int(name.removeprefix("row"))].update(change)
    return made


def eurus(rows: int = 10) -> list[dict]:
    """Rows of code prompts in verl's columns."""
    return [
        {
            "data_source": "apps",
            "prompt": [
                {"role": "system", "content": "[ASSESS] [ADVANCE]"},
                {"role": "user", "content": f"Write a program. {words(1000 + row)}"},
            ],
            "ability": "code",
            "reward_model": {"ground_truth": f'{{"inputs": [{row}]}}', "style": "rule"},
            "extra_info": {"index": row},
        }
        for row in range(rows)
    ]


def written(rows: list[dict], path: Path) -> Path:
    """The rows in a file of the kind that its name says."""
    table = Dataset.from_list(rows)
    {".jsonl": table.to_json, ".parquet": table.to_parquet, ".csv": table.to_csv}[path.suffix](path)
    return path


def chat_model(folder: Path) -> str:
    """Config and tokenizer of the embedded student, with a chat template that takes no system's message."""
    name = without_weights(folder, "student")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}{% if enable_thinking is defined %},{% endif %}="
    )
    return name


def random_texts(many: int, seed: int = 0) -> list[str]:
    """Texts of 59 words on average; few words are frequent and most are rare, and each tenth is a number."""
    draw, weights = random.Random(seed), list(itertools.accumulate(1 / (rank + 5) for rank in range(20_000)))
    texts = []
    for _ in range(many):
        length = max(5, int(draw.lognormvariate(3.9, 0.6)))
        words_ = [f"w{rank}" for rank in draw.choices(range(20_000), cum_weights=weights, k=length)]
        for _ in range(length // 10):
            words_[draw.randrange(length)] = str(draw.randrange(100))
        texts.append(" ".join(words_))
    return texts


if __name__ == "__main__":
    made = random_texts(int(sys.argv[1]) + 2500)
    for name, texts in (("problems", made[:2500]), ("big", made[2500:])):
        rows = ({"prompt": text} if name == "big" else {"problem": text} for text in texts)
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
