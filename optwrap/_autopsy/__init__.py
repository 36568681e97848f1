"""Which operation made the first non-finite value, and how it reached the outputs of a function.

Modules, lowest first: parts findings values tags overflow remedies records slice progress forward loops
interpreter autopsy recorder.
"""
