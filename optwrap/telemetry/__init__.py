"""From the optimizer's state to the exporter: counted in the step, read on the host, reported by a thread."""
