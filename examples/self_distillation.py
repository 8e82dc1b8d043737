"""
A model teaches itself: the teacher is the student without its adapter, and reads the worked solution as a hint.

The embedded student first learns to copy a worked solution that stands before a problem; without the hint it then
fails. After that its adapter learns, on its own answers to the problems alone, from what the model with the hint finds
of every token. It takes about two minutes on a CPU core:

    python examples/self_distillation.py
    python examples/self_distillation.py --hint other    # the solution of another problem, as a control

docs/self_distillation.md explains it. Needs fire-opd-trl[peft].
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task
from fire_opd_trl.demo.run import model_path
from fire_opd_trl.preflight.packages import refuse_missing
from fire_opd_trl.trainer.ending import Ending, refusals


ROWS = 64  # of an update
COMMON = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True}


def hinted(problem: tuple[int, int], solved: tuple[int, int]) -> str:
    """Returns the prompt of the teacher: the working of `solved`, then the problem."""
    return f"{task.working(*solved)};{task.prompt(*problem)}"


def reader(tokenizer, updates: int, folder: str):
    """Returns the embedded student after fine-tuning on prompts with the hint, so that it can use one."""
    rows = [
        {"prompt": hinted(pair, pair), "completion": task.working(*pair)}
        for pair in task.problems("train", updates * ROWS, seed=1)
    ]
    model = AutoModelForCausalLM.from_pretrained(model_path("student"), dtype="float32")
    args = SFTConfig(folder, max_steps=updates, per_device_train_batch_size=ROWS, learning_rate=1e-3, **COMMON)
    SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    return model


def accuracy(model, tokenizer, hint: bool, count: int) -> float:
    """Returns the share of held-out problems that the model answers exactly, one sample each."""
    pairs = task.problems("test", count)
    prompts = [hinted(pair, pair) if hint else task.prompt(*pair) for pair in pairs]
    answers = [str(a + b) for a, b in pairs]
    return sum(task.exact_match(task.sampled_completions(model, tokenizer, prompts), answers)) / count


def main(argv: list[str] | None = None) -> FiReOPDTrainer:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--hint", choices=("right", "other"), default="right", help="Default: %(default)s.")
    parser.add_argument("--steps", type=int, default=30, help="Optimizer steps. Default: %(default)s.")
    parser.add_argument("--updates", type=int, default=60, help="Of the fine-tuning before. Default: %(default)s.")
    parser.add_argument("--problems", type=int, default=500, help="Held-out problems. Default: %(default)s.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/self"), help="Default: %(default)s.")
    options = parser.parse_args(argv)
    for name in ("steps", "updates", "problems"):
        if vars(options)[name] < 1:
            parser.error(f"--{name} {vars(options)[name]}: give at least 1")
    with refusals():  # what you can mend is said in a sentence, before a model is loaded
        refuse_missing({"the adapter of the student": ("peft",)})
        options.output_dir.mkdir(parents=True, exist_ok=True)

    from peft import LoraConfig

    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    model = reader(tokenizer, options.updates, str(options.output_dir))
    before = {hint: accuracy(model, tokenizer, hint, options.problems) for hint in (False, True)}

    pairs = task.problems("train", options.steps * ROWS, seed=2)
    solved = pairs if options.hint == "right" else [*pairs[1:], pairs[0]]
    rows = [
        {"prompt": task.prompt(*pair), "teacher_prompt": hinted(pair, other)}
        for pair, other in zip(pairs, solved, strict=True)
    ]
    trainer = FiReOPDTrainer(
        model=model,
        teacher_model="self",
        args=FiReOPDConfig(
            str(options.output_dir),
            method="opd_full",
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=1,
            max_steps=options.steps,
            max_completion_length=task.MAX_COMPLETION_TOKENS,
            learning_rate=2e-3,
            log_rollouts=8,
            **COMMON,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    after = accuracy(trainer.model, tokenizer, False, options.problems)
    print(f"\nRight answers to {options.problems} held-out problems, one sample each:")
    print(f"{before[True]:>6.1%}  the model with the hint: the teacher")
    print(f"{before[False]:>6.1%}  the model without it: the student before")
    print(f"{after:>6.1%}  the student after {options.steps} steps, without the hint")
    return trainer


if __name__ == "__main__":
    with Ending():
        main()
