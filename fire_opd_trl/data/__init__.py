"""Prompts to train on: made from public sets, and checked before they are used."""
