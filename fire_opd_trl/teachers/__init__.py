"""Who says it: which teachers there are, what they read, and where they run."""
