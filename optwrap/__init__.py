"""optax's optimizer wrappers, right when gradients are not finite, and their counters out of the jitted step."""
