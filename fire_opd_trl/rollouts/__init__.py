"""What was sampled: from a prompt and TRL's batch to the micro-batches of the optimizer steps."""
