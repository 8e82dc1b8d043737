"""What a run needs, from configurations alone: memory on each GPU and time, phase by phase. No weight is loaded."""
