"""
Two teachers with different skills, one student: each prompt is scored by the teacher that its row names.

`437+85=` asks for the sum, `437,85=` for the sum of each column alone, modulo ten. The teacher of the first skill is
the embedded one. The teacher of the second skill, and a student that is mediocre at both, are made here by a few steps
of supervised fine-tuning. On one CPU core it takes about a minute and a half:

    python examples/two_teachers.py

docs/two_teachers/README.md has wrong routes, other methods, seeds and intervals beside it.
"""

from importlib.resources import files

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fire_opd_trl import FiReOPDConfig, FiReOPDTrainer
from fire_opd_trl.demo import task


SKILLS, UPDATES, ROLLOUTS = ("carry", "digits"), 40, 128  # a skill and its teacher have the same name
MODELS = files("fire_opd_trl.demo") / "models"
tokenizer = AutoTokenizer.from_pretrained(MODELS / "student")
common = {"output_dir": "outputs/two_teachers", "use_cpu": True, "bf16": False, "save_strategy": "no"}


def row(skill: str, a: int, b: int) -> dict[str, str]:
    """Returns a prompt, its right answer, `7+5+0=12,3+8+0=11,4+0+0=04;412` for `437,85=`, and who scores it."""
    if skill == "carry":
        return {"prompt": task.prompt(a, b), "completion": task.working(a, b), "teacher_id": "carry"}
    columns = [(a // 10**place % 10, b // 10**place % 10) for place in range(task.COLUMNS)]
    answer = sum((x + y) % 10 * 10**place for place, (x, y) in enumerate(columns))
    text = ",".join(f"{x}+{y}+0={x + y:02d}" for x, y in columns) + f";{answer}"
    return {"prompt": f"{a},{b}=", "completion": text, "teacher_id": "digits"}


def dataset(skills, split: str, count: int, seed: int = 0) -> Dataset:
    """Returns rows that take the skills in turn."""
    pairs = task.problems(split, count, seed)
    return Dataset.from_list([row(skills[number % len(skills)], *pair) for number, pair in enumerate(pairs)])


def fine_tuned(name: str, skills, updates: int, batch: int):
    """Returns an embedded model after supervised fine-tuning on right answers."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype="float32")
    args = SFTConfig(max_steps=updates, per_device_train_batch_size=batch, learning_rate=1e-3, **common)
    data = dataset(skills, "train", updates * batch, seed=1).remove_columns("teacher_id")
    SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer).train()
    return model


def accuracy(model, skill: str) -> float:
    """Returns the share of 1000 held-out problems that the model answers exactly, one sample each."""
    rows = dataset([skill], "test", 1000)
    answers = [text.rpartition(";")[2] for text in rows["completion"]]
    return sum(task.exact_match(task.sampled_completions(model, tokenizer, list(rows["prompt"])), answers)) / 1000


def main() -> None:
    teachers = {
        "carry": AutoModelForCausalLM.from_pretrained(MODELS / "teacher", dtype="float32"),
        "digits": fine_tuned("teacher", ["digits"], updates=120, batch=64),
    }
    student = fine_tuned("student", SKILLS, updates=50, batch=128)
    before = {skill: accuracy(student, skill) for skill in SKILLS}
    args = FiReOPDConfig(
        method="opd_full",  # compares student and teacher over the whole vocabulary, at every token
        per_device_train_batch_size=ROLLOUTS,
        gradient_accumulation_steps=1,
        max_completion_length=task.MAX_COMPLETION_TOKENS,
        max_steps=UPDATES,
        learning_rate=4e-4,
        **common,
    )
    prompts = dataset(SKILLS, "train", UPDATES * ROLLOUTS).remove_columns("completion")
    FiReOPDTrainer(student, teachers, args, train_dataset=prompts, processing_class=tokenizer).train()
    for skill in SKILLS:
        print(f"{skill}: {before[skill]:.1%} of held-out problems before, {accuracy(student, skill):.1%} after")


if __name__ == "__main__":
    main()
