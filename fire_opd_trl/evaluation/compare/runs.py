"""One run of a comparison: train a student, measure it, write what was observed. A worker does one after the other."""

import functools
import hashlib
import json
import platform
import tempfile
import time
import traceback
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..files import write_json, write_whole
from .baselines import TRAINING, add_completions, common_arguments, grpo_config, prompts, sft_config
from .presets import BASELINES, Arm
from .records import Run, error_path, run_path


if TYPE_CHECKING:
    from multiprocessing.connection import Connection


# The name of a value in the history of a run, and in the trainer's logs. SFT logs few of them: the others are null.
LOGGED = {
    "accuracy": "rewards/exact_match/mean",
    "reverse_kl": "fire/reverse_kl",
    "kept_token_ratio": "fire/active_token_ratio",
    "advantage_abs": "fire/advantage_abs",
    "response_length": "completions/mean_length",
    "entropy": "entropy",
    "loss": "loss",
}
WARM_UP = 2  # steps whose time does not count
ENDS = 5  # steps that make "first" and "last"


def shared_settings(steps: int, problems: int, curve_problems: int, curve_every: int) -> dict[str, Any]:
    """The settings that all arms of a comparison share, as they are written in every run."""
    return {
        "steps": steps,
        "problems": problems,
        "curve_problems": curve_problems,
        "curve_every": curve_every,
        "training": TRAINING,
    }


def load_embedded(name: str):
    """Return the embedded `"teacher"` or `"student"` and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ...demo.run import model_path

    model = AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(model_path(name))


def held_out_problems(settings: dict[str, Any], seed: int) -> list[tuple[int, int]]:
    """The test problems of a seed. A point of the learning curve takes the first few of them."""
    from ...demo import task

    return task.problems("test", settings["problems"], seed=seed)


def measure_start(folder: Path, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """
    Return the held-out accuracy of the untrained student and of the teacher. It is measured once for each seed and
    read from its file after that.
    """
    from ...demo import task

    counts = f"{settings['problems']}-{settings['curve_problems']}"
    path = folder / "runs" / "before" / f"seed{seed}-{counts}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    problems, measured = held_out_problems(settings, seed), {}
    for name in ("student", "teacher"):
        model, tokenizer = load_embedded(name)
        measured[name] = task.accuracy(model, tokenizer, problems, seed=seed)
        measured[f"{name}_greedy"] = task.accuracy(model, tokenizer, problems, temperature=0, seed=seed)
        few = problems[: settings["curve_problems"]]
        measured[f"{name}_curve"] = task.accuracy(model, tokenizer, few, seed=seed)
    write_json(path, measured)
    return measured


def make_observer(tokenizer, problems: list[tuple[int, int]], every: int, seed: int):
    """Make the callback of a run: it keeps the logs, times the steps, and measures the student every `every` steps."""
    import torch
    from transformers import TrainerCallback

    from ...demo import task

    class Observer(TrainerCallback):
        def __init__(self):
            self.history: list[dict[str, Any]] = []
            self.curve: list[list[float]] = []
            self.cpu: list[float] = []
            self.wall: list[float] = []
            self.writing = 0.0  # CPU seconds in which the teacher wrote beforehand

        def on_step_begin(self, args, state, control, **kwargs):
            self.began = time.process_time(), time.perf_counter()

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.cpu.append(time.process_time() - self.began[0])
            self.wall.append(time.perf_counter() - self.began[1])
            if state.global_step % every == 0 or state.global_step == args.max_steps:
                with torch.no_grad():
                    share = task.accuracy(model, tokenizer, problems, seed=seed)
                self.curve.append([state.global_step, share])

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:  # the last log, of the whole training, has none
                values = {name: logs.get(key) for name, key in LOGGED.items()}
                self.history.append({"step": state.global_step, **values, "seconds": self.wall[-1]})

    return Observer()


def build_trainer(arm: Arm, seed: int, steps: int, student, teacher, tokenizer, folder: str, observer):
    """Build the trainer of an arm: TRL's own for the baselines, this library's for everything else."""
    from trl import GRPOTrainer, SFTTrainer

    from ... import FiReOPDTrainer
    from ...demo import task

    given = {"model": student, "processing_class": tokenizer, "callbacks": [observer]}
    rows = prompts(steps, seed, arm.generations)
    if arm.method in BASELINES and arm.method_kwargs:
        raise ValueError(f"{arm.name}: {arm.method} is a trainer of TRL and takes no method_kwargs. Use config.")
    if arm.method == "sft":
        began = time.process_time()
        texts = add_completions(teacher, tokenizer, rows, seed)
        observer.writing = time.process_time() - began
        return SFTTrainer(args=sft_config(folder, steps, seed, **arm.config), train_dataset=texts, **given)
    given |= {"train_dataset": rows, "reward_funcs": [task.exact_match]}
    if arm.method == "grpo":
        config = grpo_config(folder, steps, seed, num_generations=arm.generations, **arm.config)
        return GRPOTrainer(args=config, **given)
    return FiReOPDTrainer(teacher_model=teacher, args=fire_config(arm, folder, steps, seed), **given)


def fire_config(arm: Arm, folder: str, steps: int, seed: int):
    """The configuration of an arm that `FiReOPDTrainer` trains."""
    from ... import FiReOPDConfig

    fields = {**common_arguments(folder, steps, seed), "shuffle_dataset": False, "num_generations": arm.generations}
    return FiReOPDConfig(method=arm.method, method_kwargs=arm.method_kwargs or None, **{**fields, **arm.config})


def run_one(folder: Path, arm: Arm, seed: int, settings: dict[str, Any]) -> Run:
    """
    Train one student, measure it before and after, and write the run into the folder.

    Args:
        folder (`Path`): The output folder of the comparison.
        arm ([`Arm`]): Method and settings.
        seed (`int`): Seed of the prompts, of the training and of the held-out problems.
        settings (`dict`): From [`shared_settings`].

    Returns:
        `dict`: The run, as it was written.
    """
    from transformers.trainer_callback import PrinterCallback

    from ...demo import task

    started = time.perf_counter()
    before, problems = measure_start(folder, settings, seed), held_out_problems(settings, seed)
    student, tokenizer = load_embedded("student")
    teacher, _ = load_embedded("teacher")
    observer = make_observer(tokenizer, problems[: settings["curve_problems"]], settings["curve_every"], seed)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(arm, seed, settings["steps"], student, teacher, tokenizer, scratch, observer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    cpu = observer.cpu[WARM_UP:] or observer.cpu
    lengths = [entry["response_length"] for entry in observer.history]
    run = {
        "arm": {"name": arm.name, **arm.trained_with},
        "seed": seed,
        "settings": settings,
        "versions": versions(),
        "before": before["student"],
        "before_greedy": before["student_greedy"],
        "teacher": before["teacher"],
        "teacher_greedy": before["teacher_greedy"],
        "after": task.accuracy(student, tokenizer, problems, seed=seed),
        "after_greedy": task.accuracy(student, tokenizer, problems, temperature=0, seed=seed),
        "curve": [[0, before["student_curve"]], *observer.curve],
        # CPU time of one thread, which does not depend on what else the machine does; what the teacher writes for SFT
        # is shared out over the steps.
        "cpu_seconds_per_step": fmean(cpu) + observer.writing / settings["steps"],
        "kept_token_ratio": mean_of(observer.history, "kept_token_ratio"),
        "advantage_abs": mean_of(observer.history, "advantage_abs"),
        "response_length": None if None in lengths else [fmean(lengths[:ENDS]), fmean(lengths[-ENDS:])],
        "history": observer.history,
    }
    run["seconds"] = round(time.perf_counter() - started, 1)
    write_json(run_path(folder, arm, seed), run)
    return run


def mean_of(history: list[dict[str, Any]], name: str) -> float | None:
    """The mean of a logged value over the steps; `None` where the trainer does not log it."""
    values = [entry[name] for entry in history if entry[name] is not None]
    return fmean(values) if values else None


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import torch
    import transformers
    import trl

    from ... import __version__

    return {
        "fire_opd_trl": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "python": platform.python_version(),
        "code": source_hash(),
    }


@functools.cache
def source_hash() -> str:
    """Twelve digits that change with any line of the package: a report then shows that code changed between runs."""
    package = Path(__file__).parents[2]
    files = sorted(package.rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def try_job(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job. If it fails, write the traceback beside the runs and answer with the error, so that others go on."""
    folder, arm, seed = Path(job["folder"]), Arm(**job["arm"]), job["seed"]
    error_path(folder, arm, seed).unlink(missing_ok=True)
    try:
        run = run_one(folder, arm, seed, job["settings"])
        return {"before": run["before"], "after": run["after"], "seconds": run["seconds"], "error": None}
    except Exception as error:
        write_whole(error_path(folder, arm, seed), traceback.format_exc())
        return {"error": f"{type(error).__name__}: {error}"}


def silence_libraries() -> None:
    """Compute on one thread and let the libraries print nothing: a comparison prints one line for each run."""
    import logging
    import warnings

    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def do_jobs_of(link: "Connection") -> None:
    """Answer one job after the other until the process is killed: the function of a worker of `fire-opd compare`."""
    silence_libraries()
    while True:
        link.send(try_job(link.recv()))
