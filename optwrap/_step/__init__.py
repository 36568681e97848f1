"""The instrumentation, which runs inside the jitted step.

Modules, lowest first: paths wrappers grad_summary scalars gauges outcomes replicas count callback adopt instrument.
"""
