"""Code that all wrappers share: trees, conditions, argument checks, collectives.

Modules, lowest first: errors checks collectives norm_cache trees finite cond declarations apply_gradients.
"""
