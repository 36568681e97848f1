"""Incidents: the troubles of a run, each from all the reports about it."""
