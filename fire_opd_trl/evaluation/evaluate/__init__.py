"""`fire-opd evaluate`: how many problems a model answers rightly, and how sure that is."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .run import evaluate as evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Python calls this for a name that is not here yet: `evaluate` is imported when it is asked for."""
    if name == "evaluate":
        from .run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
