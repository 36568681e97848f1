"""Ingest: takes reports, commits them in groups, and says how often processes should report."""
