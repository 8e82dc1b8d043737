"""The benchmark: time, memory and growth of this trainer beside TRL's, on the same work in one run."""
