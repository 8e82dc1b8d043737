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
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..files import write_json, write_whole
from . import embedded, real
from .baselines import common_arguments, grpo_config, prompts, sft_config
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
TASKS: dict[str, ModuleType] = {"embedded": embedded, "real": real}
WARM_UP = 2  # steps whose time does not count
ENDS = 5  # steps that make "first" and "last"


def shared_settings(
    steps: int, problems: int, curve_problems: int, curve_every: int, task: str = "embedded"
) -> dict[str, Any]:
    """The settings that all arms of a comparison share, as they are written in every run."""
    named = {"task": task} if task != "embedded" else {}  # runs are older than the second task
    return {
        **named,
        "steps": steps,
        "problems": problems,
        "curve_problems": curve_problems,
        "curve_every": curve_every,
        "training": TASKS[task].TRAINING,
    }


def setting_of(settings: dict[str, Any]) -> ModuleType:
    """What is learned in runs of these settings."""
    return TASKS[settings.get("task", "embedded")]


def measure_start(folder: Path, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """
    Return the held-out accuracy of the untrained student and of the teacher. It is measured once for each set of
    problems and read from its file after that.
    """
    setting = setting_of(settings)
    problems = setting.held_out_problems(settings["problems"], seed)
    counts = f"{settings['problems']}-{settings['curve_problems']}"
    seed = seed if setting.EACH_SEED_HAS_PROBLEMS else 0
    path = folder / "runs" / "before" / f"seed{seed}-{counts}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for name in ("student", "teacher"):
        model, tokenizer = setting.load(name, folder / "models")
        found[name], found[f"{name}_measured"] = setting.measured(model, tokenizer, problems, seed)
        found[f"{name}_greedy"] = setting.accuracy(model, tokenizer, problems, temperature=0, seed=seed)
        few = problems[: settings["curve_problems"]]
        found[f"{name}_curve"] = setting.accuracy(model, tokenizer, few, seed=seed)
    write_json(path, found)
    return found


def make_observer(setting: ModuleType, tokenizer, problems: list, every: int, seed: int):
    """Make the callback of a run: it keeps the logs, times the steps, and measures the student every `every` steps."""
    import torch
    from transformers import TrainerCallback

    logged = LOGGED | setting.LOGGED

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
                    share = setting.accuracy(model, tokenizer, problems, seed=seed)
                self.curve.append([state.global_step, share])

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:  # the last log, of the whole training, has none
                values = {name: logs.get(key) for name, key in logged.items()}
                self.history.append({"step": state.global_step, **values, "seconds": self.wall[-1]})

    return Observer()


def build_trainer(arm: Arm, seed: int, settings: dict[str, Any], models: tuple, folder: str, observer):
    """
    Build the trainer of an arm: TRL's own for the baselines, this library's for everything else.

    Args:
        arm ([`Arm`]): The arm.
        seed (`int`): Seed of its prompts and its training.
        settings (`dict`): From [`shared_settings`].
        models (`tuple`): Student, teacher and their tokenizer.
        folder (`str`): Where the trainer may write.
        observer (`TrainerCallback`): From [`make_observer`].
    """
    from trl import GRPOTrainer, SFTTrainer

    from ... import FiReOPDTrainer

    (student, teacher, tokenizer), setting, steps = models, setting_of(settings), settings["steps"]
    given = {"model": student, "processing_class": tokenizer, "callbacks": [observer]}
    rows = prompts(setting, steps, seed, arm.generations)
    if arm.method in BASELINES and arm.method_kwargs:
        raise ValueError(f"{arm.name}: {arm.method} is a trainer of TRL and takes no method_kwargs. Use config.")
    if arm.method == "sft":
        began = time.process_time()
        texts = setting.completed(teacher, tokenizer, rows, seed)
        observer.writing = time.process_time() - began
        return SFTTrainer(args=sft_config(setting, folder, steps, seed, **arm.config), train_dataset=texts, **given)
    given |= {"train_dataset": rows, "reward_funcs": [setting.exact_match]}
    given["rollout_func"] = setting.rollouts(student, tokenizer, seed)
    if arm.method == "grpo":
        config = grpo_config(setting, folder, steps, seed, num_generations=arm.generations, **arm.config)
        return GRPOTrainer(args=config, **given)
    return FiReOPDTrainer(teacher_model=teacher, args=fire_config(setting, arm, folder, steps, seed), **given)


def fire_config(setting: ModuleType, arm: Arm, folder: str, steps: int, seed: int):
    """The configuration of an arm that `FiReOPDTrainer` trains."""
    from ... import FiReOPDConfig

    fields = {
        **common_arguments(setting, folder, steps, seed),
        "shuffle_dataset": False,
        "num_generations": arm.generations,
    }
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

    started, setting = time.perf_counter(), setting_of(settings)
    before, problems = measure_start(folder, settings, seed), setting.held_out_problems(settings["problems"], seed)
    student, tokenizer = setting.load("student", folder / "models")
    teacher, _ = setting.load("teacher", folder / "models")
    few = problems[: settings["curve_problems"]]
    observer = make_observer(setting, tokenizer, few, settings["curve_every"], seed)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(arm, seed, settings, (student, teacher, tokenizer), scratch, observer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    cpu = observer.cpu[WARM_UP:] or observer.cpu
    lengths = [entry["response_length"] for entry in observer.history]
    after, details = setting.measured(student, tokenizer, problems, seed)
    run = {
        "arm": {"name": arm.name, **arm.trained_with},
        "seed": seed,
        "settings": settings,
        "versions": versions(),
        "before": before["student"],
        "before_greedy": before["student_greedy"],
        "teacher": before["teacher"],
        "teacher_greedy": before["teacher_greedy"],
        "after": after,
        "after_greedy": setting.accuracy(student, tokenizer, problems, temperature=0, seed=seed),
        "curve": [[0, before["student_curve"]], *observer.curve],
        # CPU time of one thread, which does not depend on what else the machine does; what the teacher writes for SFT
        # is shared out over the steps.
        "cpu_seconds_per_step": fmean(cpu) + observer.writing / settings["steps"],
        "kept_token_ratio": mean_of(observer.history, "kept_token_ratio"),
        "advantage_abs": mean_of(observer.history, "advantage_abs"),
        "response_length": None if None in lengths else [fmean(lengths[:ENDS]), fmean(lengths[-ENDS:])],
        "history": observer.history,
        **({"measured": details} if details else {}),
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
