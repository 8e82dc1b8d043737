"""The embedded default task, its reward, and the two small models that a first run distils with."""
