"""
`fire-opd demo`: distil the embedded teacher into the embedded student on the CPU, and show that it worked.

It uses the ordinary trainer with an ordinary config; its only special settings are those of `SETTINGS`.
"""

import argparse
import json
import math
import platform
import shutil
import time
from importlib import resources
from pathlib import Path

from ..spelling import did_you_mean


SETTINGS = {
    "learning_rate": 4e-4,
    "warmup_steps": 5,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 512,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 33,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
}
# The engines that can sample: TRL's generate, its continuous batching, or vLLM in this process.
ROLLOUTS: dict[str, dict] = {
    "transformers": {},
    "continuous": {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 512},
    },
    "vllm": {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 64},
}
STEPS = 100
HELD_OUT = 1000
EXPORTED = 4096  # rows of the file of problems: 32 windows of the recipe beside it
RECIPE = """\
# The demo as a run of your own: fire-opd train --accelerate_config cpu --config {folder}/run.yaml
# Put your models, your data and your settings in place of these, one after the other.
model_name_or_path: {folder}/student
teacher_model_name_or_path: {folder}/teacher
dataset_name: {folder}/problems.jsonl
prompt_column: question
reward_funcs: [fire_opd_trl.demo.task.exact_match] # is logged, and trains nothing; it reads the column `answer`
output_dir: {folder}/run

method: opd
learning_rate: 4.0e-4
lr_scheduler_type: cosine
per_device_train_batch_size: 128 # answers that are sampled and learned from at a time
max_completion_length: 33
max_steps: 60
logging_steps: 1
log_rollouts: 16 # answers of each step that are kept for the page of the run
save_strategy: "no" # the student is saved at the end

use_cpu: true
bf16: false
gradient_checkpointing: false
"""
RECORDED = 8  # trajectories of each step for the report: of 512, of which a fifth is dropped


def model_path(name: str) -> str:
    """Folder of the embedded `"teacher"` or `"student"`."""
    return str(resources.files("fire_opd_trl.demo") / "models" / name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fire-opd demo",
        description=__doc__.split("\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="where the results go")
    parser.add_argument("--method", default="fire", help="distillation recipe: `fire-opd methods` lists them")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=SETTINGS["learning_rate"], help="peak learning rate")
    parser.add_argument("--problems", type=int, default=HELD_OUT, help="held-out problems, before and after")
    parser.add_argument("--rollouts", choices=list(ROLLOUTS), default="transformers", help="which engine samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training and of the problems")
    parser.add_argument("--no_report", action="store_true", help="record no trajectories, and make no page of them")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="train nothing: write both models, problems and a recipe there"
    )
    return parser


def export(folder: Path) -> None:
    """`fire-opd demo --export` calls this: the demo as files, which a newcomer replaces by others one by one."""
    from .task import problems, prompt

    for name in ("student", "teacher"):
        shutil.copytree(model_path(name), folder / name)
    rows = [{"question": prompt(a, b), "answer": str(a + b)} for a, b in problems("train", EXPORTED)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(RECIPE.format(folder=folder))


def make_progress(steps: int):
    """Make the callback of a progress bar, which shows accuracy of the samples, kept share and KL to the teacher."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = tqdm(total=steps, desc="distilling", unit="step", dynamic_ncols=True)
            self.history = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "fire/reverse_kl" not in logs:
                return
            entry = {
                "step": state.global_step,
                "accuracy": logs["rewards/exact_match/mean"],
                "keep_ratio": logs["fire/keep_ratio"],
                "reverse_kl": logs["fire/reverse_kl"],
                "loss": logs["loss"],
                "seconds": logs["step_time"],
            }
            self.history.append(entry)
            self.bar.set_postfix_str(
                f"accuracy {entry['accuracy']:.0%}, kept {entry['keep_ratio']:.0%}, KL {entry['reverse_kl']:.4f}"
            )
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Progress()


def main(argv: list[str] | None = None) -> int:
    """Run `fire-opd demo`: measure the student, distil, measure it again, and write figures, picture and student."""
    parser = build_parser()
    options = parser.parse_args(argv)
    for name in ("steps", "problems"):
        if vars(options)[name] < 1:
            parser.error(f"--{name} {vars(options)[name]}: give at least 1.")
    if options.export is not None:
        if options.export.is_file() or options.export.is_dir() and any(options.export.iterdir()):
            what = "it is a file" if options.export.is_file() else "the folder is not empty"
            parser.error(f"--export {options.export}: {what}. Name a folder that is not there yet.")
        export(options.export)
        print(f"student, teacher, problems.jsonl ({EXPORTED} rows) and run.yaml: {options.export}")
        print(f"next: fire-opd preflight --accelerate_config cpu --config {options.export}/run.yaml")
        return 0
    from ..methods import METHODS  # torch, which --help can do without

    if options.method not in METHODS:
        hint = did_you_mean(options.method, METHODS)
        parser.error(f"--method: there is no method {options.method!r}.{hint} Methods: {', '.join(METHODS)}.")
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)  # now, and not after two minutes
    except OSError as error:
        raise ValueError(
            f"--output_dir {options.output_dir}: no such folder can be made ({error.strerror}). Name another."
        ) from error
    import logging
    import warnings

    import torch
    import transformers
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback

    from .. import FiReOPDConfig, FiReOPDTrainer, __version__
    from ..evaluation.inspect.report import report_of, what_it_holds, write_page
    from . import task
    from .curves import draw_learning_curve

    # A first look should not begin with the deprecations of other libraries.
    warnings.filterwarnings("ignore", module="(?!fire_opd_trl)")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    def load(name: str):
        return AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32)

    student, teacher = load("student"), load("teacher")
    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    held_out = task.problems("test", options.problems, seed=options.seed)

    def measure(model) -> tuple[float, float]:
        share = task.accuracy(model, tokenizer, held_out, seed=options.seed)
        return share, 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / len(held_out))

    sizes = " and ".join(f"{sum(p.numel() for p in m.parameters()) / 1e6:.1f} M" for m in (teacher, student))
    print(f"fire_opd_trl {__version__}: {options.method}, teacher and student of {sizes} parameters, on the CPU")
    (before, interval), (ceiling, _) = measure(student), measure(teacher)
    print(
        f"before: student {before:.1%} +- {interval:.1%}, teacher {ceiling:.1%} of {len(held_out)} held-out problems"
    )

    settings = {**SETTINGS, "learning_rate": options.learning_rate, **ROLLOUTS[options.rollouts]}
    progress = make_progress(options.steps)
    trainer = FiReOPDTrainer(
        model=student,
        teacher_model=teacher,
        args=FiReOPDConfig(
            str(options.output_dir),
            method=options.method,
            num_generations=4 if "group_B" in METHODS[options.method]().needs else 1,
            max_steps=options.steps,
            seed=options.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            log_rollouts=0 if options.no_report else RECORDED,
            save_strategy="no",
            disable_tqdm=True,
            preflight=False,
            **settings,
        ),
        train_dataset=task.dataset(
            "train", options.steps * settings["per_device_train_batch_size"], seed=options.seed
        ),
        processing_class=tokenizer,
        reward_funcs=[task.exact_match],  # logged, and used by the methods that have rewards
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    after, interval_after = measure(student)

    folder = options.output_dir
    checkpoint = folder / "student"
    trainer.save_model(str(checkpoint))
    metrics = {
        "method": options.method,
        "rollouts": options.rollouts,
        "before": before,
        "after": after,
        "teacher": ceiling,
        "interval_95": [interval, interval_after],
        "held_out_problems": len(held_out),
        "steps": options.steps,
        "seconds": round(seconds, 1),
        "seed": options.seed,
        "settings": settings,
        "versions": {
            "fire_opd_trl": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
            "python": platform.python_version(),
        },
        "history": progress.history,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(
        f"after:  student {after:.1%} +- {interval_after:.1%} ({100 * (after - before):+.1f} points), {seconds:.0f} s"
    )
    written = [("figures", folder / "metrics.json"), ("student", checkpoint)]
    try:
        draw_learning_curve(
            progress.history,
            folder / "learning_curve.png",
            title=f"{options.method}: addition with carries, {sizes} parameters",
            before=before,
            after=after,
            interval=max(interval, interval_after),
            teacher=ceiling,
        )
        written.insert(1, ("picture", folder / "learning_curve.png"))
    except ImportError:
        print("no picture: pip install fire-opd-trl[report]")
    for name, path in written:
        print(f"{name}: {path}")
    if not options.no_report:
        report = report_of([folder], trajectories=RECORDED * options.steps)
        print(f"report: {write_page(report, folder / 'inspect.html')}")
        print("  What the teacher found of each token that the student wrote, and which answers were dropped.")
        print(f"  {what_it_holds(report)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
