"""What all wrappers share: trees, conditions, argument checks, collectives.

Modules, lowest first: checks collectives norm_cache trees cond declarations apply_gradients.
"""
