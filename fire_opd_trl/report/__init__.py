"""Pictures of a run; they need matplotlib (`pip install fire-opd-trl[report]`)."""
