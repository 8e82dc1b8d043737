"""
On-policy distillation with FiRe-OPD from the command line. `fire-opd train` starts this very file.

A smoke run on the CPU with the embedded models shows that everything is wired:

    accelerate launch --config_file configs/accelerate/cpu.yaml examples/train_fire.py --config smoke

This is the paper's run on 8 GPUs; `fire-opd recipes` lists the recipes, and prints one with the source of each value:

    accelerate launch --config_file configs/accelerate/zero3.yaml examples/train_fire.py --config strong-to-weak

This is a full run on 8 GPUs, with student and teacher partitioned by ZeRO-3:

    accelerate launch --config_file configs/accelerate/zero3.yaml examples/train_fire.py \
        --model_name_or_path Qwen/Qwen3-4B \
        --teacher_model_name_or_path Qwen/Qwen3-30B-A3B-Instruct-2507 \
        --dtype bfloat16 \
        --dataset_name prompts/ \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 32 \
        --max_completion_length 16384 \
        --learning_rate 1e-6 \
        --use_vllm \
        --output_dir outputs/qwen3-4b-fire

This trains a LoRA adapter on one GPU:

    accelerate launch --config_file configs/accelerate/single_gpu.yaml examples/train_fire.py \
        --model_name_or_path Qwen/Qwen3-0.6B \
        --teacher_model_name_or_path Qwen/Qwen3-4B \
        --dtype bfloat16 \
        --dataset_name prompts/ \
        --use_peft --lora_r 32 --lora_target_modules all-linear \
        --gradient_accumulation_steps 64 --per_device_train_batch_size 1 \
        --learning_rate 1e-5 \
        --output_dir outputs/qwen3-0.6b-fire-lora

Every argument can stand in a YAML file instead (`--config`, a file or the name of a recipe); the command line
overrides it. `--help` lists all arguments. `--resume_from_checkpoint true` goes on from the last checkpoint.

What is wrong before training starts is said in a sentence, with exit code 2. Ctrl-C and SIGTERM end the run at once,
with a line that names the last checkpoint. `fire-opd train` says no more than that, and leaves no process behind;
`accelerate launch` adds a traceback of its own, which `accelerate launch --quiet` leaves out where one process runs.
"""

import os
import pkgutil
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from fire_opd_trl.trainer.ending import Ending, checkpoint_to_resume, how_it_starts, refusals


if __name__ == "__main__":
    ending = Ending()  # before the slow imports: Ctrl-C ends them, too, without a traceback

from trl import ScriptArguments  # noqa: E402


DESCRIPTION = (
    "On-policy distillation: the student answers prompts, and learns from what the teacher finds of every token. "
    "--config NAME or FILE.yaml sets any of these arguments, and the command line overrides it. The recipes by name: "
    "{}; and the names of methods, for strong-to-weak with another method. `fire-opd recipes` lists them all."
)
USUAL = [
    *("model_name_or_path", "teacher_model_name_or_path", "dataset_name", "output_dir", "method", "dtype"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "learning_rate"),
    *(
        "prompt_column",
        "test_split_size",
        "num_train_epochs",
        "max_steps",
        "save_steps",
        "resume_from_checkpoint",
        "use_vllm",
        "use_peft",
        "report_to",
    ),
]
HELPS = {  # where that of the library says less to users of this script
    "model_name_or_path": "Student: a model id on the Hub, or a local folder.",
    "output_dir": "Folder of the checkpoints, and of the student at the end.",
    "resume_from_checkpoint": "true goes on from the last checkpoint in output_dir; a folder, from that one.",
}


@dataclass
class FiReOPDScriptArguments(ScriptArguments):
    """
    Arguments of this script that belong neither to the training nor to the model.

    Args:
        dataset_name (`str`, *optional*):
            Dataset id on the Hub, local folder, or file (JSONL, Parquet, CSV).
        reward_funcs (`list[str]`, *optional*):
            Dotted paths of reward functions, for example `trl.rewards.accuracy_reward`.
        tools (`list[str]`, *optional*):
            Dotted paths of functions that the student may call while it answers.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column that holds the prompt.
        prompt_as_chat (`bool`, *optional*, defaults to `False`):
            Whether a prompt that is a text becomes a user's message.
        dataset_filter (`list[str]`, *optional*):
            Conditions that rows fulfil, for example `difficulty >= 6`.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset with a column `prompt`: an id on the Hub, a local folder, or a file (JSONL, Parquet, "
            "CSV). For a mixture, list `datasets` in the YAML file instead. `prompt_column` names another column, and "
            "`test_split_size` holds rows out for evaluation."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions by dotted path, for example trl.rewards.accuracy_reward, or my_rewards.judge "
            "for my_rewards.py in the working directory; or FILE.py:NAME. They are logged; `reward_coef` mixes them "
            "in."
        },
    )
    tools: list[str] | None = field(
        default=None,
        metadata={
            "help": "Functions that the student may call while it answers, by dotted path as reward_funcs, or as "
            "FILE.py:NAME. Each needs a docstring and type hints, from which the model learns what it does."
        },
    )
    prompt_column: str = field(
        default="prompt",
        metadata={"help": "Column of the dataset that holds the prompt, a text or a list of messages."},
    )
    prompt_as_chat: bool = field(
        default=False,
        metadata={
            "help": "Make a prompt that is a text the message of a user, so that the chat template renders it, as a "
            "model that was trained on chats expects it."
        },
    )
    dataset_filter: list[str] | None = field(
        default=None,
        metadata={
            "help": "Use only rows that fulfil these conditions. Each is a column, one of == != >= <= > <, and a "
            "value, for example 'difficulty >= 6'."
        },
    )


def make_parser(prog: str | None = None, config: type | None = None):
    """
    Returns the parser of this script. `fire-opd train` and `fire-opd preflight` call it too, each with a `prog` for
    its help; preflight also gives a subclass of FiReOPDConfig.
    """
    from transformers import TrainingArguments
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig

    from fire_opd_trl import FiReOPDConfig
    from fire_opd_trl.preflight.recipes import recipes_by_folder
    from fire_opd_trl.trainer.arguments import Parser, program

    return Parser(
        (FiReOPDScriptArguments, config or FiReOPDConfig, ModelConfig, DatasetMixtureConfig),
        groups={
            "what runs usually set": USUAL,
            "method, teachers and update (FiReOPDConfig)": [FiReOPDConfig],
            "prompts and rewards": [FiReOPDScriptArguments, ScriptArguments],
            "student and adapter (TRL's ModelConfig)": [ModelConfig],
            "mixtures of datasets, in the YAML file (TRL's DatasetMixtureConfig)": [DatasetMixtureConfig],
            "sampling, vLLM and loss (TRL's GRPOConfig)": [GRPOConfig],
            "training (transformers' TrainingArguments)": [TrainingArguments],
        },
        helps=HELPS,
        prog=prog or program(),
        usage="%(prog)s [--config RECIPE] [--ARGUMENT VALUE ...]",
        description=textwrap.fill(
            DESCRIPTION.format(", ".join(recipes_by_folder()["recipes"])), 78, break_on_hyphens=False
        ),
        allow_abbrev=False,
    )


def imported(argument: str, path: str):
    """
    Returns the function that an argument names: by its dotted path, in an installed module or in one of the working
    directory, or as `FILE.py:NAME`.
    """
    from fire_opd_trl.preflight.packaged import load_module

    file, _, name = path.rpartition(":")
    try:
        found = getattr(load_module(Path(file)), name) if file.endswith(".py") else pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{argument}: {path!r} does not import ({error}). Give module.function, for example "
            f"trl.rewards.accuracy_reward, or FILE.py:function; a module of your own must be installed or lie in "
            f"{os.getcwd()}."
        ) from error
    if not callable(found):
        raise ValueError(f"{argument}: {path!r} is a {type(found).__name__}. Name a function inside it.")
    return found


def described_tool(path: str):
    """Returns the function at a path, if it says what it does and takes: the model reads that in its prompt."""
    from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    tool = imported("tools", path)
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        why = str(error).strip().splitlines()[0].rstrip(".!")
        raise ValueError(
            f"tools: {path!r}: {why}. Give it a docstring with a line for each argument below `Args:`, and type hints."
        ) from error
    return tool


def trainer_arguments(script_args, training_args, model_args, dataset_args, checked=None) -> dict:
    """
    Returns the arguments of FiReOPDTrainer for those of the command line. `main` calls it before training, and all
    that is wrong is refused in one error; `fire-opd preflight` gives its table (`checked`), and looks at the rest.
    """
    from fire_opd_trl.preflight.findings import Checked
    from fire_opd_trl.preflight.loading import first_process_first, load_prompts

    found = checked if checked is not None else Checked()
    with found.check("student"):
        if not model_args.model_name_or_path:
            raise ValueError("There is no student. Set --model_name_or_path to a model id or a local folder.")
    with found.check("teacher"):
        if not training_args.teacher_model_name_or_path:
            raise ValueError("There is no teacher. Set --teacher_model_name_or_path to a model id or a local folder.")

    # Dataset: its rows hold a `prompt`, a text or a list of messages
    train_dataset = eval_dataset = None
    with found.check("dataset"), first_process_first(training_args.distributed_state):
        evaluated = training_args.eval_strategy != "no"
        train_dataset, eval_dataset = load_prompts(script_args, dataset_args, evaluated, found)

    sys.path.append(os.getcwd())
    reward_funcs, tools = [], []
    with found.check("rewards"):
        reward_funcs = [imported("reward_funcs", path) for path in script_args.reward_funcs or []]
    with found.check("tools"):
        tools = [described_tool(path) for path in script_args.tools or []]

    callbacks = []
    with found.check("accuracy"):
        if training_args.accuracy_task is not None:
            from fire_opd_trl.evaluation.evaluate.accuracy import AccuracyCallback

            callbacks = [AccuracyCallback.of(training_args)]
            found.record("accuracy", callbacks[0].described())

    loading = model_arguments(training_args, model_args, found)
    if checked is None:
        found.refuse()

    return {
        "model": model_args.model_name_or_path,
        "args": training_args,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "reward_funcs": reward_funcs,
        "tools": tools or None,
        "callbacks": callbacks,
        **loading,
    }


def model_arguments(training_args, model_args, found) -> dict:
    """
    Returns the arguments of FiReOPDTrainer that say what the student becomes when it is loaded; how models are loaded
    joins `training_args`. What is missing is recorded in `found`. `fire-opd plan` needs no more than this.
    """
    from trl import get_peft_config, get_quantization_config

    from fire_opd_trl.preflight.packages import refuse_missing

    quantization_config = peft_config = None
    with found.check("packages"):
        needs = {"use_peft": "peft", "load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes"}
        refuse_missing({name: (module,) for name, module in needs.items() if getattr(model_args, name)})
        quantization_config, peft_config = get_quantization_config(model_args), get_peft_config(model_args)
    # Models: what the config says of loading them wins over the general options
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    given, teachers = training_args.teacher_model_init_kwargs or {}, training_args.teacher_model_name_or_path
    general = {"attn_implementation": model_args.attn_implementation}  # not quantized, and in its own dtype
    if given and isinstance(teachers, dict) and set(given) <= set(teachers):
        own = {name: {**general, **(given.get(name) or {})} for name in teachers}
    else:
        own = {**general, **given}
    training_args.teacher_model_init_kwargs = own
    return {"quantization_config": quantization_config, "peft_config": peft_config}


def make_trainer(arguments: dict):
    """The trainer, from what `trainer_arguments` returns."""
    from fire_opd_trl import FiReOPDTrainer

    return FiReOPDTrainer(**arguments)


def main(script_args, training_args, model_args, dataset_args):
    import transformers
    from packaging.version import Version

    with refusals():  # what you can mend is said in a sentence, without a traceback
        checkpoint = checkpoint_to_resume(
            training_args.resume_from_checkpoint, training_args.output_dir, training_args.max_steps
        )
        trainer = make_trainer(trainer_arguments(script_args, training_args, model_args, dataset_args))
    if start := how_it_starts(checkpoint, training_args.output_dir):
        trainer.accelerator.print(start)
    trainer.train(resume_from_checkpoint=checkpoint)

    on_the_hub = script_args.dataset_name and not os.path.exists(script_args.dataset_name)
    dataset_name = script_args.dataset_name if on_the_hub else None  # a local path has no place in a model card
    trainer.save_model(training_args.output_dir)
    trainer.create_model_card(model_name=Path(training_args.output_dir).name, dataset_name=dataset_name)
    trainer.accelerator.print(f"Model and model card are in {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
        trainer.accelerator.print(f"They are also at https://huggingface.co/{trainer.hub_model_id}.")

    if Version(transformers.__version__) >= Version("5.18.0"):
        trainer.end()  # finishes the trackers and the process group


if __name__ == "__main__":
    with ending:  # a signal ends it with one line that names the last checkpoint
        parser = make_parser()
        try:
            *arguments, unknown = parser.parse_args_and_config(return_remaining_strings=True)
        except (OSError, ValueError) as error:  # a wrong value, said in one sentence
            parser.error(str(error))
        if unknown:
            parser.error(
                f"{parser.unknown(unknown)} Options of `accelerate launch` go before the name of this script, or on "
                "the command line of `fire-opd train`, but not into the YAML file."
            )
        ending.output_dir = arguments[1].output_dir
        main(*arguments)
