"""After a run: whether the student became better, and how sure one can be of it."""
