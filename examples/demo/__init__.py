"""The demo: a small transformer trains on damaged data, and the exporter shows what was skipped."""
