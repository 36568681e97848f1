"""optax's optimizer wrappers and skip functions, one module each."""
