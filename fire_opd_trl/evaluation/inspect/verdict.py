"""Whether a teacher fits, in words for a newcomer: the end of `fire-opd inspect --student --teacher --prompts`."""

import textwrap
from dataclasses import asdict
from typing import Any

from ...preflight.findings import Checked, title_of
from ...preflight.fit import PART, Fit, doubts_of_fit, faults_of_fit
from ...preflight.tryout import describe_partings
from ...rollouts.prompts import UNNAMED
from ..statistics import ratio_interval


WIDTH = 110
ALIKE = 0.1  # nats on the last token: 10 %
WINDOW = ("window", "filter", "fillers", "work", "precision", "memory")  # what the checks say of a training


def table_of_checks(checked: Checked) -> list[str]:
    """Returns what the checks found of models, tokenizers and prompts, and a prompt as each model sees it."""
    about_models = Checked([finding for finding in checked.findings if finding.subject not in WINDOW])
    return [*about_models.table().splitlines(), checked.example, ""]


def of_teacher(
    name: str, fit: Fit | None, window: dict[str, Any], number: int, tokenizer: Any, answers: int, *, seed: int
) -> tuple[list[str], dict[str, Any]]:
    """
    Returns what is said of a teacher, and the same for run.json.

    Args:
        fit ([`Fit`], *optional*): The numbers; `None` where no prompt is the teacher's.
        window (`dict`): The window, for the answers' own words.
        answers (`int`): Answers to each prompt: these are resampled together.
    """
    title = "the teacher" if name == UNNAMED else title_of(name)
    if fit is None:
        return ["", f"VERDICT: {title} was not asked: no prompt is its own."], {"verdict": "not seen", "because": []}
    faults, doubts = faults_of_fit(fit), doubts_of_fit(fit)
    verdict = "does not fit" if faults else "fits with doubts" if doubts else "fits"
    low, high = interval_of_kl(fit, answers, seed)
    lines = ["", *numbers(fit, title, low, high)] if fit.tokens else []
    lines += describe_partings(window, number, title, tokenizer)
    lines += ["", *wrapped(f"VERDICT: {title} {verdict}.{why(fit, low, high) * (verdict == 'fits')}")]
    lines += [line for because in faults or doubts for line in wrapped(f"- {because}.")]
    found = {key: value for key, value in asdict(fit).items() if key != "row_sums"}
    return lines, {"verdict": verdict, "because": faults or doubts, "kl": fit.kl, "kl_interval": [low, high], **found}


def wrapped(text: str) -> list[str]:
    """Returns a text in lines that a terminal can show."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def numbers(fit: Fit, title: str, low: float, high: float) -> list[str]:
    """Returns the numbers, one a line, each with what it means."""
    sound = fit.answers - fit.broken
    rows = [
        ("log-probability of a token", f"{fit.teacher:.2f} to {title}, {fit.student:.2f} to the student itself"),
        ("  if it were guessed", f"{fit.guessing:.2f}"),
        ("KL(student || teacher)", f"{fit.kl:.3f} nats a token, 95 % interval {low:.3f} to {high:.3f}"),
        ("tokens below 1 %", f"{fit.rejected:.1%} to {title}, {fit.own_rejected:.1%} to the student itself"),
        ("where they part first", parting(fit, sound)),
        ("how an answer ends", ending(fit, sound)),
        ("seen", f"{fit.tokens} tokens in {sound} answers" + f", {fit.broken} more are broken" * bool(fit.broken)),
    ]
    return [f"{label:<29}{text}" for label, text in rows]


def parting(fit: Fit, sound: int) -> str:
    """Returns where the answers first leave the teacher's language."""
    if not fit.parted:
        return f"nowhere by more than {PART:g} nats (a factor of 7)"
    return f"in {fit.parted} of {sound} answers by more than {PART:g} nats, the middle one at token {fit.place}"


def ending(fit: Fit, sound: int) -> str:
    """Returns whether both agree where an answer ends."""
    cut = f"; {sound - fit.ended} of {sound} were cut" * (fit.ended < sound)
    if fit.end_gap is None:
        return f"unknown: none of {sound} ended within --max_completion_length"
    if abs(fit.end_gap) < ALIKE:
        return f"both find its last token alike ({fit.end_gap:+.2f} nats){cut}"
    than = f"{abs(fit.end_gap):.2f} nats {'more' if fit.end_gap >= 0 else 'less'} likely than to the student"
    return f"its last token is to the teacher {than}{cut}"


def why(fit: Fit, low: float, high: float) -> str:
    """Returns why a teacher fits, in a sentence."""
    learn = "there is something to learn" if low > 0 else "whether there is something to learn, more rows would say"
    return f" It reads the answers as its own language ({fit.kl:.2f} nats a token from the student), and {learn}."


def interval_of_kl(fit: Fit, answers: int, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of the KL over prompts, whose answers are drawn together."""
    sums: dict[int, float] = {}
    tokens: dict[int, float] = {}
    for row, gap, count in fit.row_sums:
        prompt = row // answers
        sums[prompt], tokens[prompt] = sums.get(prompt, 0.0) + gap, tokens.get(prompt, 0.0) + count
    return ratio_interval(list(sums.values()), list(tokens.values()), seed)
