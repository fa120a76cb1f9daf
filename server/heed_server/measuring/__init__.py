"""Servers under measurement and what clients see of them: for `heed bench`, `heed verify` and the benchmarks."""
