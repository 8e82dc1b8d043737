"""
Supervised fine-tuning on what the teacher writes, with TRL's SFTTrainer, on the embedded task: the off-policy baseline
that `fire-opd compare` calls `sft`. On a CPU, in about half a minute:

    python examples/sft_baseline.py --steps 60 --seed 0
"""

import argparse
import tempfile

from trl import SFTTrainer

from fire_opd_trl.demo import task
from fire_opd_trl.evaluation.compare.baselines import prompts, sft_config, written_by
from fire_opd_trl.evaluation.compare.runs import loaded


def main(argv: list[str] | None = None) -> float:
    """Train, print held-out accuracy before and after, and return the latter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="updates of 128 rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the training")
    parser.add_argument("--problems", type=int, default=1000, help="held-out problems")
    options = parser.parse_args(argv)

    student, tokenizer = loaded("student")
    teacher, _ = loaded("teacher")
    held_out = task.problems("test", options.problems, seed=options.seed)
    before = task.accuracy(student, tokenizer, held_out, seed=options.seed)

    rows = written_by(teacher, tokenizer, prompts(options.steps, options.seed), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=student,
            args=sft_config(folder, options.steps, options.seed),
            train_dataset=rows,  # the columns are prompt and completion; the loss is on the completion alone
            processing_class=tokenizer,
        )
        trainer.train()

    after = task.accuracy(student, tokenizer, held_out, seed=options.seed)
    print(f"SFT on the teacher's text: {before:.1%} -> {after:.1%} of {len(held_out)} held-out problems")
    return after


if __name__ == "__main__":
    main()
