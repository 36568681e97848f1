"""optax's optimizer wrappers and skip functions, one module each.

Modules, lowest first: skip_functions weights window guarded apply_if_finite flatten lookahead masked multi_steps
skip_if spike_rule skip_spikes.
"""
