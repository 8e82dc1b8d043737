"""Everything that can be wrong without weights, found before weights are loaded, and said in one table."""
