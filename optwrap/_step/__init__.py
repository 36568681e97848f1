"""What runs inside the jitted step: the instrumentation.

Modules, lowest first: paths wrappers grad_summary gauges outcomes replicas count callback adopt instrument.
"""
