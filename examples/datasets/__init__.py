"""Scripts that write prompts to train on. `fire-opd data` runs them."""
