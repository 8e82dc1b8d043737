"""
The evidence behind docs/two_teachers: what routing prompts to two teachers is worth, in several arms, over seeds.

`437+85=` asks for the sum, with carries. `437,85=` asks for the sum of each column alone, modulo ten: the working has
the same form, and every carry in it is 0. One teacher is good at the first and one at the second; the student is
mediocre at both. Each prompt goes to its own specialist (`right`), to the other one (`wrong`), or all of them go to
one teacher. On one CPU core a run takes about forty seconds, after as long for the two models made first:

    python -m benchmarks.two_teachers --output_dir outputs/two_teachers --seeds 4

The output folder gets those models, a file for each run, `results.json` and, with matplotlib, `accuracy.png`. The
skills are those of examples/two_teachers.py, the short form for a reader.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.evaluation.compare import embedded
from fire_opd_trl.evaluation.compare.baselines import common_arguments, sft_config
from fire_opd_trl.evaluation.compare.runs import versions
from fire_opd_trl.evaluation.files import write_json
from fire_opd_trl.evaluation.statistics import Estimate, estimate, paired
from fire_opd_trl.preflight.packaged import load_module, packaged_folder


row = load_module(packaged_folder("examples") / "two_teachers.py").row  # prompt, right answer and own teacher
SKILLS = {"carry": "a+b=, sum with carries", "digits": "a,b=, columns without carries"}
ROUTES = {  # the teacher that scores the prompts of each skill
    "right": {"carry": "carry", "digits": "digits"},
    "wrong": {"carry": "digits", "digits": "carry"},
    "carry_alone": {"carry": "carry", "digits": "carry"},
    "digits_alone": {"carry": "digits", "digits": "digits"},
}
# Every route with plain distillation; the right one with FiRe's filter and weights; whole distributions.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{route: (route, {"method": "opd"}) for route in ROUTES},
    "right_fire": ("right", {"method": "fire", "statistics_scope": "batch"}),
    "right_fire_per_teacher": ("right", {"method": "fire", "statistics_scope": "teacher"}),
    "right_full": ("right", {"method": "opd_full"}),
    "wrong_full": ("wrong", {"method": "opd_full"}),
}
ROWS = 128  # completions in an update, half of them of each skill
# Made by supervised fine-tuning: the specialist's ends when it is good, the student's while it is mediocre at both.
FINE_TUNED: dict[str, dict[str, Any]] = {
    "digits_teacher": {"start": "teacher", "skills": ["digits"], "rows": 64, "steps": 120},
    "student": {"start": "student", "skills": ["carry", "digits"], "rows": 128, "steps": 50},
}


def measured(model, tokenizer, problems: int, seed: int) -> dict[str, float]:
    """Returns the share of held-out problems answered exactly: for each skill, one sample and the likeliest tokens."""
    pairs, shares = task.problems("test", problems, seed=seed), {}
    for skill in SKILLS:
        rows = [row(skill, a, b) for a, b in pairs]
        prompts, answers = [one["prompt"] for one in rows], [one["completion"].rpartition(";")[2] for one in rows]
        for name, temperature in ((skill, 1.0), (f"{skill}_greedy", 0.0)):
            completions = task.sampled_completions(model, tokenizer, prompts, temperature, seed=seed)
            shares[name] = sum(task.exact_match(completions, answers)) / len(pairs)
    return shares


def fine_tuned(name: str, folder: Path) -> str:
    """Returns where a model of `FINE_TUNED` lies. It is made unless it is there already."""
    path, recipe = folder / "models" / name, FINE_TUNED[name]
    if not path.is_dir():
        model, tokenizer = embedded.load(recipe["start"])
        pairs = task.problems("train", recipe["rows"] * recipe["steps"], seed=1000)  # not those of a run
        skills = recipe["skills"]
        rows = [row(skills[number % len(skills)], *pair) for number, pair in enumerate(pairs)]
        changes = {"learning_rate": 1e-3, "per_device_train_batch_size": recipe["rows"]}
        trainer = SFTTrainer(
            model=model,
            args=sft_config(embedded, str(folder), recipe["steps"], seed=0, **changes),
            train_dataset=Dataset.from_list(rows).remove_columns("teacher_id"),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model(str(path))
    return str(path)


def routed_prompts(route: dict[str, str], steps: int, seed: int) -> Dataset:
    """Returns prompts of both skills in turn, each with the name of its teacher; the prompts of a seed are one set."""
    pairs, skills = task.problems("train", steps * ROWS, seed=seed), list(SKILLS)
    rows = [row(skills[number % len(skills)], *pair) for number, pair in enumerate(pairs)]
    return Dataset.from_list([{"prompt": one["prompt"], "teacher_id": route[one["teacher_id"]]} for one in rows])


def distilled(student: str, teachers: dict[str, str], arm: str, options: argparse.Namespace, seed: int):
    """Returns the student after on-policy distillation: what a user of several teachers has to write."""
    route, fields = ARMS[arm]
    fields = {**fields, "per_device_train_batch_size": ROWS, "learning_rate": options.learning_rate}
    trainer = FiReOPDTrainer(
        model=student,
        teacher_model=teachers,  # by name; the column `teacher_id` of the dataset says which one scores a row
        args=FiReOPDConfig(
            **{**common_arguments(embedded, str(options.output_dir), options.steps, seed), **fields},
            model_init_kwargs={"dtype": "float32"},
            teacher_model_init_kwargs={"dtype": "float32"},  # the embedded models are stored in bfloat16
            shuffle_dataset=False,  # all arms of a seed see the same prompts in the same order
        ),
        train_dataset=routed_prompts(ROUTES[route], options.steps, seed),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model


def summary(before: list[dict], runs: dict[str, list[dict]]) -> dict:
    """Returns means over seeds with 95 % intervals; gains, and differences to `right`, are paired by seed."""
    table: dict[str, dict] = {"before": {}, "arms": {}}
    for model in before[0]:
        table["before"][model] = {name: estimate([seed[model][name] for seed in before]) for name in before[0][model]}
    for arm, shares in runs.items():
        table["arms"][arm] = {}
        for name in shares[0]:
            after, start = dict(enumerate(run[name] for run in shares)), [seed["student"][name] for seed in before]
            row = {"after": estimate(list(after.values())), "gain": paired(after, dict(enumerate(start)))}
            if arm != "right" and "right" in runs:
                row["to_right"] = paired(after, dict(enumerate(run[name] for run in runs["right"])))
            table["arms"][arm][name] = row
    return table


def label(arm: str) -> str:
    """Returns the name of an arm for a reader, such as `carry alone: opd`."""
    route, fields = ARMS[arm]
    scope = ", per teacher" if fields.get("statistics_scope") == "teacher" else ""
    return f"{route.replace('_', ' ')}: {fields['method']}{scope}"


def points(value: Estimate, signed: bool = True) -> str:
    """Returns `+21.3 [+19.0, +23.6]`: a share in points with its interval, where the seeds give one."""
    mean, half, sign = 100 * value.mean, value.half_width, "+" if signed else ""
    return f"{mean:{sign}.1f}" + (
        f" [{mean - 100 * half:{sign}.1f}, {mean + 100 * half:{sign}.1f}]" if half is not None else ""
    )


def printed(table: dict) -> None:
    """Prints the table for a reader: first the models as they are, then what each arm makes of the student."""
    print("\nexact match of held-out problems, %, one sample each; means over seeds [95 % interval]")
    print(f"{'':28}" + "".join(f"{skill:<32}" for skill in SKILLS.values()))
    for model, shares in table["before"].items():
        name = model if model == "student" else f"{model} teacher"
        print(f"{name:28}" + "".join(f"{points(shares[skill], signed=False):<32}" for skill in SKILLS))
    for column, title in (
        ("after", "after"),
        ("gain", "gain, points"),
        ("to_right", "difference to right: opd, points"),
    ):
        rows = {arm: shares for arm, shares in table["arms"].items() if column in shares["carry"]}
        print(f"{title}:" if rows else "", end="\n" if rows else "")
        for arm, shares in rows.items():
            cells = [points(shares[skill][column], signed=column != "after") for skill in SKILLS]
            print(f"  {label(arm):26}" + "".join(f"{cell:<32}" for cell in cells))


def picture(table: dict, path: Path) -> None:
    """Draws, for each skill, the student before and after every arm, and the specialist of the skill."""
    from fire_opd_trl.evaluation.style import BLUE, GREY, ORANGE, STYLE, VERMILION, pyplot

    plt, arms = pyplot(), list(table["arms"])
    with plt.rc_context(STYLE):
        size = (9.4, 0.34 * len(arms) + 1.9)
        figure, panels = plt.subplots(1, len(SKILLS), figsize=size, sharey=True, layout="constrained")
        for axes, (skill, title) in zip(panels, SKILLS.items(), strict=True):
            start, best = (100 * table["before"][model][skill].mean for model in ("student", skill))
            axes.axvline(start, color=GREY, lw=1.2, ls="--", zorder=0)
            axes.axvline(best, color=ORANGE, lw=2, zorder=0)
            above = axes.get_xaxis_transform()  # across in points, up in shares of the panel
            axes.text(start, 1.01, "student before", ha="center", va="bottom", color="#555555", transform=above)
            axes.text(best, 1.01, "specialist", ha="center", va="bottom", color="#9a6700", transform=above)
            for place, arm in enumerate(arms):
                after = table["arms"][arm][skill]["after"]
                mean, half = 100 * after.mean, 100 * (after.half_width or 0.0)
                color = BLUE if mean > start else VERMILION
                axes.plot([start, mean], [place, place], color=color, lw=5, alpha=0.25, solid_capstyle="butt")
                axes.errorbar(mean, place, xerr=half, fmt="o", ms=5, color=color, capsize=3)
                side, align = (1, "left") if mean > start else (-1, "right")
                axes.text(mean + side * (half + 2), place, f"{mean:.0f}", va="center", ha=align, color=color)
            axes.set_title(title, pad=18, fontweight="bold")
            axes.set(xlim=(-10, 104), xlabel="held-out exact match after distillation, %")
            axes.grid(axis="x", alpha=0.25)
        panels[0].set_yticks(range(len(arms)), [label(arm) for arm in arms])
        panels[0].set_ylim(len(arms) - 0.5, -0.5)
        panels[0].set_ylabel("who scores which prompts: method")
        seeds = table["before"]["student"]["carry"].n
        figure.suptitle(
            f"Two skills of one student, before and after distillation (mean, 95 % interval, seeds: {seeds})"
        )
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main(argv: list[str] | None = None) -> dict:
    """Makes the models, trains every arm with every seed, writes and prints the results, and returns the table."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.two_teachers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/two_teachers"), help="where the results go")
    parser.add_argument("--steps", type=int, default=60, help=f"updates of {ROWS} completions")
    parser.add_argument("--learning_rate", type=float, default=4e-4, help="peak learning rate, one for all arms")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm; a seed has its own prompts and tests")
    parser.add_argument("--problems", type=int, default=1000, help="held-out problems of each skill")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which ways to train")
    options = parser.parse_args(argv)

    folder, tokenizer = options.output_dir, embedded.load("student")[1]
    print(f"making {' and '.join(FINE_TUNED)}, unless they lie in {folder / 'models'}")
    student = fine_tuned("student", folder)
    teachers = {"carry": model_path("teacher"), "digits": fine_tuned("digits_teacher", folder)}
    before: list[dict[str, dict[str, float]]] = []
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        models = {name: AutoModelForCausalLM.from_pretrained(path, dtype="float32") for name, path in teachers.items()}
        models["student"] = AutoModelForCausalLM.from_pretrained(student, dtype="float32")
        before.append({name: measured(model, tokenizer, options.problems, seed) for name, model in models.items()})

    progress = tqdm([(seed, arm) for seed in range(options.seeds) for arm in options.arms], unit="run")
    for seed, arm in progress:
        progress.set_description(f"{arm}, seed {seed}")
        started = time.perf_counter()
        model = distilled(student, teachers, arm, options, seed)
        runs[arm].append(measured(model, tokenizer, options.problems, seed))
        run = {"arm": arm, "seed": seed, "after": runs[arm][-1], "seconds": round(time.perf_counter() - started, 1)}
        write_json(folder / "runs" / f"{arm}-seed{seed}.json", run)
        progress.write(f"{arm}, seed {seed}: " + ", ".join(f"{name} {run['after'][name]:.1%}" for name in SKILLS))

    table = summary(before, runs)
    settings = {key: value for key, value in vars(options).items() if key not in ("output_dir", "arms")}
    settings |= {
        "rows": ROWS,
        "fine_tuned": FINE_TUNED,
        "routes": ROUTES,
        "arms": {arm: ARMS[arm] for arm in options.arms},
    }
    record = {"settings": settings, "versions": versions(), "table": table, "before": before, "runs": runs}
    (folder / "results.json").write_text(json.dumps(record, indent=1, default=asdict), encoding="utf-8")
    printed(table)
    try:
        picture(table, folder / "accuracy.png")
    except ImportError:
        print("no picture: pip install fire-opd-trl[report]")
    return table
