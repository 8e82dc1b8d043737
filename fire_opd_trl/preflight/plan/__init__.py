"""What a run needs and takes, from configurations alone: memory, seconds, and what fits."""
