"""Incidents: the troubles of a run, each folded from all the reports about it."""
