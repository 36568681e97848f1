"""Which operation made the first non-finite value, and how it reached the outputs of a function.

Modules, lowest first: parts findings source values tags overflow remedies program records slice progress interpreter
autopsy recorder.
"""
