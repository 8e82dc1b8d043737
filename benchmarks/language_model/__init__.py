"""The evidence behind docs/language_model: what a run of a real language model does to its tokens, and sick runs."""
