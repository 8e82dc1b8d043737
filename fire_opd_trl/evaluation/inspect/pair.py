"""
`fire-opd inspect --student DIR --teacher DIR --prompts FILE`: one window of two models, without a training run. It
leaves a folder that is read like a run's, and says whether the teacher fits. Light: its help is there at once.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset

    from ...config import FiReOPDConfig
    from ...preflight.findings import Checked
    from ...trainer.one_window import OneWindowTrainer


ROWS = 32  # enough for an interval of the KL; seconds on a GPU, and with the embedded models on a CPU
TOKENS_AT_ONCE = 16384  # sampled and scored at a time: of a model of 4 B, keys and values of so many take 2.4 GB
NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<path>.+)")
# Options that are fields of FiReOPDConfig. Those that are not given keep its defaults.
FIELDS = (
    *("method", "method_kwargs", "drop_fraction", "confidence", "confusion", "statistics_scope", "num_generations"),
    *("temperature", "teacher_chat_template", "chat_template_kwargs", "teacher_column", "teacher_prompt_column"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`fire-opd inspect` calls this: the arguments with which it looks at a pair of models, in place of a run."""
    models = parser.add_argument_group("a student and a teacher, in place of a run")
    models.add_argument("--student", metavar="DIR", help="model or LoRA adapter: a folder or an id on the Hub")
    models.add_argument(
        "--teacher",
        metavar="DIR",
        nargs="+",
        help="model or LoRA adapter; 'self' is a student without its adapter; several as NAME=DIR NAME=DIR",
    )
    models.add_argument(
        "--prompts",
        metavar="FILE",
        help="JSONL, Parquet, CSV, text with a prompt a line, a folder, or a dataset's id",
    )
    models.add_argument("--prompt_column", metavar="NAME", help="column of the prompt (prompt; text of a .txt file)")
    models.add_argument("--prompt_as_chat", action="store_true", help="a prompt that is a text is a user's message")
    models.add_argument("--split", default="train", help="split of the dataset (train)")
    models.add_argument("--rows", type=int, default=ROWS, help=f"prompts, drawn at random; 0 takes all ({ROWS})")
    models.add_argument("--num_generations", type=int, metavar="N", help="answers to each prompt (1)")
    models.add_argument("--max_completion_length", type=int, default=256, metavar="N", help="longest answer (256)")
    models.add_argument("--temperature", type=float, metavar="T", help="of sampling (1.0)")
    models.add_argument("--seed", type=int, default=0, help="draws prompts and answers (0)")
    models.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="precision of all models (bfloat16 on a GPU that computes in it, else float32; auto: each model's own)",
    )
    models.add_argument("--teacher_chat_template", metavar="T", help="'own', or a .jinja file: how teachers are asked")
    models.add_argument("--chat_template_kwargs", type=as_dict, metavar="JSON", help="variables of the chat template")
    models.add_argument("--teacher_column", metavar="NAME", help="column of the teacher's name (teacher_id)")
    models.add_argument("--teacher_prompt_column", metavar="NAME", help="column of the teacher's prompt")
    models.add_argument("--trust_remote_code", action="store_true", help="run code that the models' folders bring")
    models.add_argument("--use_cpu", action="store_true", help="leave a GPU alone")
    models.add_argument("--use_vllm", action="store_true", help="sample with vLLM, in this process")
    models.add_argument(
        "--tokens_at_once",
        type=int,
        default=TOKENS_AT_ONCE,
        metavar="N",
        help=f"prompt and answer tokens that are sampled or scored at a time: the bound of memory ({TOKENS_AT_ONCE})",
    )
    models.add_argument("--output_dir", type=Path, metavar="DIR", help="(outputs/inspect-STUDENT-TEACHER)")
    method = parser.add_argument_group("the method that weighs their tokens")
    method.add_argument("--method", metavar="NAME", help="distillation recipe (fire); `fire-opd methods` lists them")
    method.add_argument("--method_kwargs", type=as_dict, metavar="JSON", help="its arguments without an option here")
    for name, what in (
        ("drop_fraction", "share of the answers that the filter drops"),
        ("confidence", "weight of the teacher's confidence"),
        ("confusion", "weight of the student's confusion"),
    ):
        method.add_argument(f"--{name}", type=float, metavar="X", help=what)
    method.add_argument("--statistics_scope", metavar="NAME", help="batch, teacher or trajectory")


def as_dict(text: str) -> dict[str, Any]:
    """Returns a dict that stands on the command line as JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no dict. Give for example '{{\"enable_thinking\": false}}'.")
    return value


def sample_pair(options: argparse.Namespace) -> Path:
    """
    `fire-opd inspect` calls this. It checks models and prompts, samples and scores one window, prints whether the
    teachers fit, and returns the folder: run.json, metrics.jsonl and rollouts/, as of a run.

    Args:
        options (`argparse.Namespace`): What the arguments of [`add_arguments`] have become.
    """
    student, teachers = options.student, teachers_of(options.teacher)
    refuse_incomplete(options)
    folder = options.output_dir or Path("outputs") / folder_name(student, teachers)
    refuse_anothers_folder(folder)
    models = ", ".join(dict.fromkeys([student, *named(teachers).values()]))
    print(f"checking {models} and {options.prompts}", flush=True)

    from ...preflight.fit import fit_of  # torch and transformers, seconds
    from .verdict import of_teacher, table_of_checks

    quiet()
    dataset, rows = prompts_of(options, list(named(teachers)))
    args = config_of(options, folder, teachers, len(rows))
    checked, base, adapter = check(student, args, dataset)
    refuse_faults(checked, options.prompts, rows)
    for line in table_of_checks(checked):
        print(line)
    trainer = load(base, adapter, checked, args, dataset, asked_of(options))
    forget_earlier(folder)
    with said_in_a_sentence(args):
        window = trainer.look(list(dataset))

    found = {}
    for number, name in enumerate(trainer.teachers):
        fit = fit_of(window, number, trainer.checked.student_rows)
        lines, found[name] = of_teacher(
            name, fit, window, number, trainer.checked.tokenizer, args.num_generations, seed=options.seed
        )
        print("\n".join(lines), flush=True)
    trainer.conclude({"fit": found})
    print(f"\nWhat was sampled and scored is in {folder}.", flush=True)
    return folder


# What was asked for


def teachers_of(given: list[str] | None) -> str | dict[str, str]:
    """Returns the teacher, or teachers by name where each is given as NAME=DIR."""
    parts = [NAMED.fullmatch(one) for one in given or []]
    if given and all(parts) and not Path(given[0]).exists():
        teachers = {part["name"]: part["path"] for part in parts if part}
        if len(teachers) < len(parts):
            raise ValueError(f"--teacher {' '.join(given)}: two teachers have one name. Give each its own.")
        return teachers
    if len(given or []) > 1:
        raise ValueError(f"--teacher {' '.join(given or [])}: several teachers need names. Give each as NAME=DIR.")
    return given[0] if given else ""


def named(teachers: str | dict[str, str]) -> dict[str, str]:
    """Returns the teachers by name, as the trainer calls them."""
    return teachers if isinstance(teachers, dict) else {"teacher": teachers}


def refuse_incomplete(options: argparse.Namespace) -> None:
    """Refuse a pair without one of its three parts, and numbers that are none of anything."""
    missing = [f"--{name}" for name in ("student", "teacher", "prompts") if not getattr(options, name)]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing: a look at a pair needs a student that answers, a teacher that judges, "
            "and a file of prompts. Give --student DIR --teacher DIR --prompts FILE."
        )
    for name, least in (("rows", 0), ("num_generations", 1), ("max_completion_length", 1), ("tokens_at_once", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: give at least {least}.")


def folder_name(student: str, teachers: str | dict[str, str]) -> str:
    """Returns what the folder is called by default."""
    names = [Path(student).name, *(Path(teacher).name for teacher in named(teachers).values())]
    return "-".join(["inspect", *(re.sub(r"[^\w.]+", "_", name) or "model" for name in names)])


def refuse_anothers_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier look at a pair."""
    if folder.is_file():
        raise ValueError(f"--output_dir {folder} is a file. Give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not is_a_look(folder):
        raise ValueError(f"--output_dir {folder} holds something else. Give a folder that is empty, or not there yet.")


def is_a_look(folder: Path) -> bool:
    """Whether a folder is that of an earlier look at a pair, which a new one replaces."""
    try:
        return "asked" in json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def forget_earlier(folder: Path) -> None:
    """Remove what an earlier look at a pair has left in the folder."""
    for name in ("metrics.jsonl", "watchdogs.jsonl", "inspect.html", "rollouts/rollouts_00000.parquet"):
        (folder / name).unlink(missing_ok=True)


def defaults() -> dict[str, Any]:
    """Returns the options of a pair with their defaults."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args([]))


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what was asked for, for run.json: the options of a pair that have a value."""
    asked = {name: getattr(options, name, None) for name in defaults()}
    return {n: str(v) if isinstance(v, Path) else v for n, v in asked.items() if v is not None and v is not False}


# What it takes: prompts, a configuration, models


def quiet() -> None:
    """What other libraries say while they load is not said: what matters is printed here."""
    import logging
    import warnings

    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def prompts_of(options: argparse.Namespace, teachers: list[str]) -> tuple["Dataset", list[int]]:
    """Returns the rows whose prompts are answered, drawn at random, and their numbers in the file."""
    from ...config import FiReOPDConfig
    from ...preflight.dataset import bars_off
    from ...preflight.findings import Checked
    from ...preflight.loading import load_named, prepared, refuse_unknown_column

    with bars_off(True):
        splits = load_named(options.prompts, None, False, called="--prompts")
    if options.split not in splits:
        raise ValueError(f"--split {options.split} is no split of {options.prompts}, which has: {', '.join(splits)}.")
    column = options.prompt_column or ("text" if Path(options.prompts).suffix.lower() == ".txt" else "prompt")
    source = SimpleNamespace(dataset_filter=None, prompt_column=column, prompt_as_chat=options.prompt_as_chat)
    dataset = splits[options.split]
    routed = options.teacher_column or FiReOPDConfig.teacher_column
    owners = [teachers[0]] * len(dataset)
    if len(teachers) > 1:
        refuse_unknown_column(dataset, routed, f"teacher_column={routed!r}")
        owners = dataset[routed]
        if strange := sorted({str(name) for name in owners} - set(teachers)):
            raise ValueError(
                f"--prompts {options.prompts}: the column {routed!r} names {strange[0]!r}, and the teachers are "
                f"{', '.join(teachers)}."
            )
    rows = drawn(owners, teachers, options.rows or len(dataset), options.seed)
    with bars_off(True):
        return prepared(dataset.select(rows), source, Checked()), rows


def drawn(owners: list[str], teachers: list[str], rows: int, seed: int) -> list[int]:
    """Returns some row numbers at random, equally many for each teacher as far as there are."""
    order = random.Random(seed).sample(range(len(owners)), len(owners))
    each = -(-rows // len(teachers))
    return sorted(row for name in teachers for row in [row for row in order if owners[row] == name][:each])


def config_of(options: argparse.Namespace, folder: Path, teachers: str | dict[str, str], rows: int) -> "FiReOPDConfig":
    """Returns the configuration of one window that trains nothing, with all rows in it."""
    import torch
    from transformers.utils import is_torch_bf16_gpu_available

    from ...config import FiReOPDConfig

    on_gpu = torch.accelerator.is_available() and not options.use_cpu
    dtype = options.dtype or ("bfloat16" if on_gpu and is_torch_bf16_gpu_available() else "float32")
    given = {name: value for name in FIELDS if (value := getattr(options, name)) is not None}
    answers = rows * (options.num_generations or 1)
    return FiReOPDConfig(
        str(folder),
        teacher_model_name_or_path=teachers,
        teacher_model_init_kwargs={"dtype": dtype},
        model_init_kwargs={"dtype": dtype},
        trust_remote_code=options.trust_remote_code,
        per_device_train_batch_size=answers,
        gradient_accumulation_steps=1,
        max_completion_length=options.max_completion_length,
        scoring_token_budget=options.tokens_at_once,
        seed=options.seed,
        use_vllm=options.use_vllm,
        use_cpu=not on_gpu,
        bf16=False,  # the weights themselves are in 16 bits, since none of them moves
        gradient_checkpointing=False,
        disable_dropout=True,
        log_rollouts=answers,
        allow_guessing_teacher=True,  # what stops a training is a finding here
        teacher_nonfinite_limit=1.0,
        preflight=False,
        print_metrics="none",
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        **given,
    )


def check(student: str, args: "FiReOPDConfig", dataset: "Dataset") -> tuple["Checked", str, str | None]:
    """Returns what is found before weights are loaded, the student's base, and its adapter if it has one."""
    from transformers import AutoTokenizer

    from ...preflight.inspection import inspect_run
    from ...refusals import chosen_method
    from ...teachers.sources import read_adapter_config, teacher_sources
    from ...teachers.vocabulary import tokenizer_of

    adapter, base, processing_class = read_adapter_config(student, None), student, None
    if adapter is not None:
        base = adapter.get("base_model_name_or_path") or ""
        if not base:
            raise ValueError(f"--student {student}: the adapter does not name its base (base_model_name_or_path).")
        try:
            tokenizer_of(student)
            processing_class = AutoTokenizer.from_pretrained(student, padding_side="left")
        except ValueError:  # an adapter without one has its base's
            pass
    method = chosen_method(None, args, rewarded=False)
    sources = teacher_sources(None, base, args, adapted=adapter is not None)
    checked = inspect_run(base, sources, args, method, dataset, None, processing_class, {"trains": False})
    return checked, base, student if adapter is not None else None


TO_DROP = "or set overlong_prompts='drop'"  # what a training can do about long prompts


def refuse_faults(checked: "Checked", prompts: str, rows: list[int]) -> None:
    """Raise all faults in one error, in which a row has its number in the file."""
    from ...refusals import WrongSettings

    def in_file(found: re.Match) -> str:
        return f"{prompts} row {rows[int(found[1])]}"

    if checked.faults:
        faults = [re.sub(r"train_dataset row (\d+)", in_file, fault) for fault in checked.faults]
        raise WrongSettings(*(fault.replace(TO_DROP, "or draw other rows (--seed)") for fault in faults))


def load(
    base: str,
    adapter: str | None,
    checked: "Checked",
    args: "FiReOPDConfig",
    dataset: "Dataset",
    asked: dict[str, Any],
) -> "OneWindowTrainer":
    """Returns the trainer with all models in memory; broken weights are refused in a sentence."""
    from trl.trainer.utils import create_model_from_path

    from ...trainer.one_window import OneWindowTrainer

    print("loading the models", flush=True)
    with checked.check("models", whatever=True):
        student: Any = create_model_from_path(
            base, **args.model_init_kwargs, trust_remote_code=args.trust_remote_code, device_map=None
        )
        if adapter is not None:
            from peft import PeftModel

            student = PeftModel.from_pretrained(student, adapter, autocast_adapter_dtype=False)
        student.requires_grad_(False)
        args.model_init_kwargs = None
        trainer = OneWindowTrainer(
            student,
            args=args,
            train_dataset=dataset,
            processing_class=checked.processing_class,
            tokens_at_once=args.scoring_token_budget,
            asked=asked,
        )
    checked.refuse()
    return trainer


@contextmanager
def said_in_a_sentence(args: "FiReOPDConfig") -> Iterator[None]:
    """A window is sampled inside this: what a student without sound weights, or a small memory, raise is refused."""
    import torch

    broken = "The student has NaN or infinite values. Look at its weights, and at its precision (--dtype float32)"
    try:
        yield
    except FloatingPointError as error:
        raise ValueError(f"{broken}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"The GPU's memory is too small for --tokens_at_once {args.scoring_token_budget}. Halve it, or lower "
            "--max_completion_length."
        ) from error
    except RuntimeError as error:
        if "probability tensor" in str(error):  # torch.multinomial
            raise ValueError(f"{broken}.") from error
        raise
