"""Connections: how many, how long, and which reports are taken."""
