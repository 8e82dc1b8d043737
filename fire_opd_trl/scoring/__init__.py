"""What the models say of it: the log-probability and the entropy of every sampled token, and divergences."""
