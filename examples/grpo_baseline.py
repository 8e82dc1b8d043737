"""
Reinforcement learning without a teacher, with TRL's GRPOTrainer, on the embedded task: a right answer is worth 1. The
baseline that `fire-opd compare` calls `grpo`. On a CPU, in about half a minute:

    python examples/grpo_baseline.py --steps 60 --seed 0
"""

import argparse
import tempfile

from trl import GRPOTrainer

from fire_opd_trl.demo import task
from fire_opd_trl.evaluation.compare.baselines import grpo_config, prompts
from fire_opd_trl.evaluation.compare.runs import loaded


def main(argv: list[str] | None = None) -> float:
    """Train, print held-out accuracy before and after, and return the latter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="updates of 128 completions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the training")
    parser.add_argument("--problems", type=int, default=1000, help="held-out problems")
    parser.add_argument("--generations", type=int, default=4, help="completions for each prompt")
    options = parser.parse_args(argv)

    student, tokenizer = loaded("student")
    held_out = task.problems("test", options.problems, seed=options.seed)
    before = task.accuracy(student, tokenizer, held_out, seed=options.seed)

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=student,
            reward_funcs=task.exact_match,
            args=grpo_config(folder, options.steps, options.seed, num_generations=options.generations),
            train_dataset=prompts(options.steps, options.seed, options.generations),
            processing_class=tokenizer,
        )
        trainer.train()

    after = task.accuracy(student, tokenizer, held_out, seed=options.seed)
    print(f"GRPO on right answers: {before:.1%} -> {after:.1%} of {len(held_out)} held-out problems")
    return after


if __name__ == "__main__":
    main()
