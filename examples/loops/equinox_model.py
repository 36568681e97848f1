"""Equinox: parameters are the arrays of a model, named by their paths in it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import optwrap
from examples.loops.flax_nnx import STEPS, batch


def main() -> None:
    """Fit a line."""
    # [watched]
    monitor = optwrap.Monitor(run="equinox")
    tx = optwrap.instrument(optwrap.apply_if_finite(optax.adam(0.1), 5), monitor)
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    opt_state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def train_step(model: Any, opt_state: Any, x: jax.Array) -> Any:
        grads = eqx.filter_grad(lambda model: jnp.mean((jax.vmap(model)(x) - 1) ** 2))(model)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, optwrap.reading(opt_state)

    with monitor:
        for step in range(STEPS):
            model, opt_state, reading = train_step(model, opt_state, batch(step))
            monitor.observe(reading)
    # [watched]


if __name__ == "__main__":
    main()
