"""`fire-opd evaluate`: how many problems a model answers rightly, with an interval, on benchmarks and on own files."""
