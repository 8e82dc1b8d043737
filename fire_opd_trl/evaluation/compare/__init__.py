"""`fire-opd compare`: methods against each other on the embedded task, with seeds, intervals and random controls."""
