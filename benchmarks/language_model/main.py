"""
The evidence behind docs/language_model: the run of examples/smollm2.py, and the same pair made sick on purpose.

    pip install gguf reasoning-gym scipy
    python -m benchmarks.language_model --output_dir outputs/smollm2

Models and runs that lie in the output folder already are not made again, and the good run, if it was stopped, goes on.
At the end `results.json` in the output folder has the numbers, and with `--docs docs/language_model` that folder gets
them too, with the tables of its README.md.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from fire_opd_trl.evaluation.compare.runs import versions
from fire_opd_trl.evaluation.files import write_json
from fire_opd_trl.evaluation.inspect.run import read_run
from fire_opd_trl.preflight.packaged import load_module, packaged_folder

from .costs import costs, timed
from .findings import findings, wilson
from .sick import COMMON, SICK
from .tables import filled_in


example = load_module(packaged_folder("examples") / "smollm2.py")
SHOWN = (
    "step", "reward", "fire/reverse_kl", "entropy", "completions/mean_length", "completions/clipped_ratio",
    "fire/keep_ratio", "fire/keep_ratio_finished", "fire/keep_ratio_truncated", "fire/keep_ratio_looped",
    "fire/looped_ratio", "fire/terminal_gap", "fire/weight_ess", "fire/weight_max", "fire/advantage_top_decile",
    "fire/confidence", "fire/confusion", "tokens_per_second", "step_time",
    "share/rollout", "share/score", "share/update", "share/other",
)  # fmt: skip


RUNS = ["good", "untouched", "costs", *SICK]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Makes the pair, the recorded runs and the sick ones, unless they are there; writes and returns the results."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.language_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/smollm2"), help="where models and runs go")
    parser.add_argument("--problems", type=int, default=128, help="held-out problems, before and after; 0: none")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=RUNS, help="which runs to make")
    parser.add_argument("--docs", type=Path, help="a folder with a README.md whose tables are to be written anew")
    options = parser.parse_args(argv)

    folder = options.output_dir
    student, teacher = example.pair(folder)
    for name, (start, run, steps) in recorded_runs(folder, student).items():
        if name in options.runs and not finished(folder / run):
            prompts = example.problems("train", steps * example.ROWS)
            with timed() as seconds:
                trainer = example.distil(start, teacher, folder / run, prompts, max_steps=steps)
            trainer.save_model()
            write_json(folder / run / "costs.json", costs(seconds, trainer.state.log_history))
    for name in options.runs:
        if name in SICK and not finished(folder / name):
            shutil.rmtree(folder / name, ignore_errors=True)
            settings: dict[str, Any] = COMMON | SICK[name].changes
            prompts = example.problems(
                "train", settings["max_steps"] * settings["per_device_train_batch_size"], ["chain_sum"]
            )
            example.distil(student, teacher, folder / name, SICK[name].prompts(prompts), **settings)
    results = {
        "versions": versions(),
        "runs": {
            name: findings_of(folder / run)
            for name, (_, run, _) in recorded_runs(folder, student).items()
            if (folder / run / "rollouts").is_dir()
        },
        "accuracy": accuracies(folder, student, teacher, options.problems),
        "sick": {name: sick_run(name, folder / name) for name in SICK},
    }
    for place in [folder, *([options.docs] if options.docs else [])]:
        write_json(place / "results.json", results)
    if options.docs:
        readme = options.docs / "README.md"
        readme.write_text(filled_in(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
    return results


def recorded_runs(folder: Path, student: Path) -> dict[str, tuple[Path, str, int]]:
    """Returns the runs whose answers are all recorded: from which student, in which folder, and how many windows."""
    return {
        "good": (student, "fire", 24),
        "untouched": (folder / "untouched", "fire_untouched", 24),
        "costs": (student, "fire_costs", 3),
    }


def finished(run: Path) -> bool:
    """Whether a run ended as it should."""
    return (run / "run.json").is_file() and json.loads((run / "run.json").read_text())["status"] == "finished"


def task_of(prompt: str) -> str:
    """Returns the task of a prompt: the sums are asked for in one form."""
    return "chain_sum" if "arithmetic problem" in prompt else "gsm_symbolic"


def findings_of(folder: Path) -> dict[str, Any]:
    """Returns logs, watchdogs, costs and findings of a run all of whose answers were recorded."""
    run = read_run(folder)
    spent = folder / "costs.json"
    return {
        "logs": [{name: log[name] for name in SHOWN if name in log} for log in run.logs if "loss" in log],
        "watchdogs": run.warnings,
        "costs": json.loads(spent.read_text()) if spent.exists() else None,
        **findings(run.records, task_of),
    }


def sick_run(name: str, folder: Path) -> dict[str, Any]:
    """Returns what is wrong with a run and, if it was made, which watchdogs said so."""
    about = {"what": SICK[name].what, "expected": SICK[name].expected}
    if not finished(folder):
        return {**about, "steps": None, "watchdogs": [], "logs": []}
    run = read_run(folder)
    logs = [{key: log[key] for key in SHOWN if key in log} for log in run.logs if "loss" in log]
    return {**about, "steps": logs[-1]["step"], "watchdogs": run.warnings, "logs": logs}


def accuracies(folder: Path, student: Path, teacher: Path, count: int) -> dict[str, Any]:
    """Returns the share of held-out problems that each model answers right, one sample each, with intervals."""
    kept = folder / "accuracy.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if not count:
        return found
    held_out = example.problems("test", count)
    for name, model in {
        "untouched": folder / "untouched",
        "student": student,
        "trained": folder / "fire",
        "teacher": teacher,
    }.items():
        if name not in found and (model / "model.safetensors").exists():
            shares = example.share_right(model, held_out)
            number = {task: list(held_out["task"]).count(task) for task in shares}
            found[name] = {
                task: {"problems": number[task], "right": wilson(round(share * number[task]), number[task])}
                for task, share in shares.items()
            }
            write_json(kept, found)
    return found
