"""Memory of a run on each GPU, component by component, in every phase."""

from .run import PlannedRun


Memory = dict[str, dict[str, float]]  # from a phase to its components, in bytes


def memory(run: PlannedRun) -> Memory:
    """Returns the bytes of each component on a GPU at the peak of each phase. Under construction."""
    raise NotImplementedError
