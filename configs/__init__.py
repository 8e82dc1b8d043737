"""Accelerate configurations and training recipes, shipped inside the wheel as `fire_opd_trl.configs`."""
