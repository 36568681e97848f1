"""From counts and records to the exporter: reports are encoded, held until they are acknowledged, and sent.

Modules, lowest first: transport schedule encode outbox.
"""
