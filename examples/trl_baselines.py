"""
TRL's own trainers on the embedded task, without distillation: the baselines that `fire-opd compare` calls `sft` and
`grpo`. SFTTrainer learns what the teacher writes; GRPOTrainer has no teacher, and a right answer is worth 1. On a CPU,
in about half a minute each:

    python examples/trl_baselines.py sft --steps 60 --seed 0
    python examples/trl_baselines.py grpo --steps 60 --seed 0
"""

import argparse
import tempfile

from trl import GRPOTrainer, SFTTrainer

from fire_opd_trl.demo import task
from fire_opd_trl.evaluation.compare import embedded
from fire_opd_trl.evaluation.compare.baselines import grpo_config, prompts, sft_config


def main(argv: list[str] | None = None) -> float:
    """Train, print held-out accuracy before and after, and return the latter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=("sft", "grpo"), help="which of TRL's trainers")
    parser.add_argument("--steps", type=int, default=60, help="updates of 128 completions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the training")
    parser.add_argument("--problems", type=int, default=1000, help="held-out problems")
    parser.add_argument("--generations", type=int, default=4, help="grpo: completions for each prompt")
    options = parser.parse_args(argv)
    for name in ("steps", "problems"):
        if vars(options)[name] < 1:
            parser.error(f"--{name} {vars(options)[name]}: give at least 1")
    if options.generations < 2 or embedded.ROWS % options.generations:
        parser.error(f"--generations {options.generations}: give a divisor of {embedded.ROWS}, at least 2")
    steps, seed = options.steps, options.seed

    student, tokenizer = embedded.load("student")
    held_out = task.problems("test", options.problems, seed=seed)
    before = task.accuracy(student, tokenizer, held_out, seed=seed)

    with tempfile.TemporaryDirectory() as folder:
        if options.trainer == "sft":
            name, teacher = "SFT on the teacher's text", embedded.load("teacher")[0]
            trainer = SFTTrainer(
                model=student,
                args=sft_config(embedded, folder, steps, seed),
                train_dataset=embedded.completed(teacher, tokenizer, prompts(embedded, steps, seed), seed),
                processing_class=tokenizer,
            )
        else:
            name = "GRPO on right answers"
            trainer = GRPOTrainer(
                model=student,
                reward_funcs=task.exact_match,
                args=grpo_config(embedded, folder, steps, seed, num_generations=options.generations),
                train_dataset=prompts(embedded, steps, seed, options.generations),
                processing_class=tokenizer,
            )
        trainer.train()

    after = task.accuracy(student, tokenizer, held_out, seed=seed)
    print(f"{name}: {before:.1%} -> {after:.1%} of {len(held_out)} held-out problems")
    return after


if __name__ == "__main__":
    main()
