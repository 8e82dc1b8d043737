"""A real language model that learns sums in words from a copy that knows them: the task, and the two models."""
