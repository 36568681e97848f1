"""The packed reading: the only code that the jitted step and the host share.

Modules, lowest first: counters scalars replicas state unpack rows observer.
"""
