"""Watching the models of a trainer while they score windows."""

from collections.abc import Callable

from fire_opd_trl.scoring.token_scores import TokenScores


def watch_scorers(trainer) -> list[str]:
    """From now on, the names of the models in the order in which they score windows."""
    calls: list[str] = []
    for name in trainer.window_scorer.scorers:
        change_scores(trainer, name, lambda scores, name=name: calls.append(name) or scores)
    return calls


def change_scores(trainer, name: str, change: Callable[[TokenScores], TokenScores]) -> None:
    """From now on, what one model says of a window is what `change` makes of it."""
    scorer = trainer.window_scorer.scorers[name]
    original = scorer.token_scores
    scorer.token_scores = lambda *args, **kwargs: change(original(*args, **kwargs))
