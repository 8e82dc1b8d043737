"""The learning curves of a report: which metrics are shown, in which order, and what each of them says."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """How a metric is shown; a share of something has the unit %."""

    key: str
    title: str
    unit: str
    help: str


# The first ones are those to watch first.
CURVES = (
    Curve("loss", "Loss", "", "What is minimised. It may rise while the student learns: look at the KL first."),
    Curve(
        "fire/reverse_kl", "Reverse KL", "nats", "How far the student is from the teacher, a token. It should fall."
    ),
    Curve(
        "fire/reverse_kl_kept",
        "Reverse KL, kept answers",
        "nats",
        "The same over the answers that the filter keeps: it is lower, since the teacher likes them.",
    ),
    Curve("reward", "Reward", "", "Mean reward of the answers, if there are rewards. It should rise."),
    Curve(
        "completions/mean_length",
        "Length",
        "tokens",
        "Mean length of an answer. A steep fall or rise is the first sign of most collapses.",
    ),
    Curve(
        "completions/clipped_ratio",
        "Truncated",
        "%",
        "Answers that were cut at max_completion_length. Above 30 % much of the training is on unfinished text.",
    ),
    Curve(
        "fire/looped_ratio",
        "Looped",
        "%",
        "Answers whose end repeats itself. It should be near 0, and must not rise.",
    ),
    Curve("fire/keep_ratio", "Kept", "%", "Answers that the filter keeps: all of them without a filter."),
    Curve(
        "fire/keep_ratio_finished",
        "Kept of the finished",
        "%",
        "It should be above the kept shares of truncated and of looped answers.",
    ),
    Curve(
        "fire/keep_ratio_truncated",
        "Kept of the truncated",
        "%",
        "If it is above that of finished answers, the filter prefers text without an end.",
    ),
    Curve(
        "fire/keep_ratio_looped",
        "Kept of the looped",
        "%",
        "If it is above that of finished answers, the filter prefers loops, which teachers find likely.",
    ),
    Curve(
        "fire/student_entropy",
        "Student's entropy",
        "nats",
        "How undecided the student is. If it falls to 0, the student says the same every time.",
    ),
    Curve("entropy", "Entropy in the update", "nats", "The student's, as the update of weights sees it."),
    Curve(
        "fire/teacher_entropy",
        "Teacher's entropy",
        "nats",
        "How undecided the teacher is on these answers. If it rises, they are strange to the teacher.",
    ),
    Curve(
        "fire/weight_ess",
        "Effective sample size",
        "%",
        "How many tokens really count: 100 % where all weights are equal. Below 30 % a few tokens make the update.",
    ),
    Curve("fire/weight_max", "Largest weight", "", "The largest weight of a token; the mean in each answer is 1."),
    Curve(
        "fire/advantage_top_decile",
        "Advantage in the top tenth",
        "%",
        "What a tenth of the tokens has of all |advantage|: 10 % where all are equal, near 100 % where few say all.",
    ),
    Curve("fire/advantage_abs", "Mean |advantage|", "nats", "How strongly a token is pushed. It should fall slowly."),
    Curve(
        "fire/terminal_gap",
        "Gap at the end token",
        "nats",
        "Teacher less student where an answer ended. Far below 0, the teacher would have gone on: answers grow.",
    ),
    Curve("fire/teacher_logp", "Teacher's log-probability", "nats", "How likely the teacher finds the answers."),
    Curve("fire/clip_ratio", "Clipped", "%", "Tokens whose update the loss cuts off. It should be small."),
    Curve(
        "fire/sampling_gap",
        "Gap to the sampling engine",
        "nats",
        "How far the engine that samples is from the model that trains. It should be near 0.",
    ),
    Curve(
        "grad_norm", "Norm of the gradient", "", "Before it is clipped. Single peaks are normal; a steady rise is not."
    ),
    Curve("learning_rate", "Learning rate", "", "As scheduled."),
    Curve(
        "tokens_per_second", "Tokens a second", "tokens", "Prompts and answers of all processes, over the whole step."
    ),
    Curve("share/rollout", "Time to sample", "%", "The part of a step in which the student samples."),
    Curve("share/score", "Time to score", "%", "The part in which teacher and student score answers."),
    Curve("share/update", "Time to update", "%", "The part in which weights are updated."),
    Curve("share/other", "Other time", "%", "What is neither of these three: it should be small."),
)
EVALUATED = ("loss", "reward", "fire/reverse_kl", "completions/mean_length", "completions/clipped_ratio")
OF_A_TEACHER = ("fire/reverse_kl", "fire/keep_ratio")


def curves_of(logs: list[dict[str, Any]], teachers: Iterable[str] = ()) -> list[dict[str, Any]]:
    """
    Returns the learning curves that a run has, in the order of `CURVES`, then those of evaluations and teachers.

    Args:
        logs (`list[dict]`): The lines of metrics.jsonl.
        teachers (`list[str]`): The teachers' names, if there are several.
    """
    keys = dict.fromkeys(key for log in logs for key in log)
    known = {curve.key: curve for curve in CURVES}
    wanted = [
        *CURVES,
        *(
            curve._replace(key=key, title=f"{curve.title}, {name_of(key, suffix)}")
            for suffix in EVALUATED
            for curve in [known[suffix]]
            for key in keys
            if key.startswith("eval_") and (key == f"eval_{suffix}" or key.endswith(f"_{suffix}"))
        ),
        *(
            known[metric]._replace(
                key=metric.replace("fire/", f"fire/{teacher}/"), title=f"{known[metric].title}, teacher {teacher}"
            )
            for metric in OF_A_TEACHER
            for teacher in teachers
        ),
    ]
    return [
        {
            **curve._asdict(),
            "steps": [log["step"] for log in logs if curve.key in log],
            "values": [in_unit(number(log[curve.key]), curve.unit) for log in logs if curve.key in log],
        }
        for curve in wanted
        if any(number(log.get(curve.key)) is not None for log in logs)
    ]


def name_of(key: str, metric: str) -> str:
    """Returns which evaluation a key belongs to, in words: `eval_math_loss` is the evaluation on math."""
    dataset = key.removeprefix("eval_").removesuffix(metric).strip("_")
    return f"evaluation on {dataset}" if dataset else "evaluation"


def number(value: Any) -> float | None:
    """Returns a number that JSON can have, or nothing for what is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def in_unit(value: float | None, unit: str) -> float | None:
    """Returns a share as percent, and any other number as it was logged."""
    return 100 * value if value is not None and unit == "%" else value
