"""Looks into a run: what it did to every token of the trajectories that it recorded, and how its metrics went."""
