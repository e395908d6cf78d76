"""Comparing systems on benchmarks: the harness, its systems, statistics and tables."""
