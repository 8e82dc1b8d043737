"""Measurements of this library beside others; not part of the installed package."""
