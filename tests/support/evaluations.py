"""Invented evaluations: tasks, samples of models with some skill, and the results of them."""

import random
from dataclasses import replace

from fire_opd_trl.evaluation.evaluate import results
from fire_opd_trl.evaluation.evaluate.problems import Problem, Task, digest
from fire_opd_trl.evaluation.evaluate.samples import Sample


def task(name: str = "sums", problems: int = 20, text: str = "What is {a} + {b}?") -> Task:
    """Sums, which are no benchmark."""
    rng = random.Random(name)
    found = []
    for number in range(problems):
        a, b = rng.randrange(100, 999), rng.randrange(100, 999)
        asked = text.replace("{a}", str(a)).replace("{b}", str(b))
        found.append(Problem(f"{name}-{number}", asked, (str(a + b),), {}))
    return Task(name, "math", "boxed", f"data/{name}.jsonl", digest(found), tuple(found), "boxed")


def samples(task: Task, model: str, skill: float, n: int = 8, missing: int = 0, **changes) -> list[Sample]:
    """Samples of a model that solves about this share; `changes` are of the first sample."""
    rng, hard = random.Random(f"{model}/{task.name}"), random.Random(task.name)
    found = []
    for problem in task.problems:
        chance = min(1.0, max(0.0, skill + hard.gauss(0, 0.35)))
        for number in range(1, n + 1):
            right = rng.random() < chance
            verdict = "right" if right else rng.choice(["wrong", "wrong", "wrong", "no answer"])
            answer = None if verdict == "no answer" else problem.gold[0] if right else str(int(problem.gold[0]) + 10)
            found.append(
                Sample(
                    task=task.name,
                    problem=problem.id,
                    sample=number,
                    seed=rng.randrange(2**31),
                    text=f"Let me add the two numbers.\nThe tens carry.\nSo it is \\boxed{{{answer}}}.",
                    answer=answer,
                    verdict=verdict,
                    stop="length" if verdict == "no answer" else "stop",
                    tokens=rng.randrange(30, 100),
                    seconds=None,
                )
            )
    return [replace(found[0], **changes), *found[1 : len(found) - missing]]


def entry(task: Task, model: str, samples: list[Sample], n: int = 8, **changes) -> dict:
    """What results.json says of a model on a task. `changes` are settings: `temperature=0.6`, `backend="vllm"`."""
    sampling = {"n": n, "temperature": 1.0, "top_p": 1.0, "top_k": None, "max_new_tokens": 1024, "seed": 42}
    prompt = {"style": "boxed", "thinking": False, "example": f"<|user|>{task.problems[0].text}<|assistant|>"}
    facts = {
        "model": {
            "label": model,
            "path": f"outputs/{model}",
            "hashes": {"weights": f"{sum(model.encode()):064x}", "chat_template": None},
        },
        "task": {"limit": None},
        "prompt": {name: changes.get(name, value) for name, value in prompt.items()},
        "backend": {
            "name": changes.get("backend", "transformers"),
            "versions": {"torch": "2.13.0"},
            "dtype": changes.get("dtype", "bfloat16"),
            "device": "cpu",
            **({"arguments": {}} if changes.get("backend") == "vllm" else {}),
        },
        "sampling": {name: changes.get(name, value) for name, value in sampling.items()},
        "grader": {"name": "math-verify", "version": "0.9.0", "limit": 5.0},
        "versions": {"transformers": "5.23.0", "fire_opd_trl": "0.1.0"},
    }
    return results.entry(facts, task, samples)


def only_table(made: dict) -> results.Table:
    """The table of results that have one."""
    (table,) = results.tables(made)
    return table


def evaluation(models: dict[str, float], tasks: list[Task], n: int = 8, **changes) -> dict:
    """The results of some models, by their skill, on some tasks."""
    entries = [
        entry(one, name, samples(one, name, skill, n), n, **changes) for name, skill in models.items() for one in tasks
    ]
    return results.build(entries, command="fire-opd evaluate --model outputs/student --tasks sums.jsonl")
