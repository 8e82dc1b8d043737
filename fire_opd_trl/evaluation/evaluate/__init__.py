"""`fire-opd evaluate`: how good a model is on benchmarks and on files of problems, and how sure that is."""
