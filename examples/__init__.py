"""Example scripts and notebooks, shipped inside the wheel as `fire_opd_trl.examples`."""
