"""The state of runs: immutable values."""
