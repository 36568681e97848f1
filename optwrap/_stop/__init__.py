"""The decision to stop a training: a pure function of the readings that were observed, the same on every host.

Modules, lowest first: policy stop tally decision.
"""
