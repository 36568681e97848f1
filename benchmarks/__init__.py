"""Benchmarks: each is a script that prints ratios to a baseline, measured in turns in one process."""
