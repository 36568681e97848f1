"""Micro-batches in a lax.scan around `MultiSteps`: each of them is a step, and one in four moves the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optwrap

BATCHES, MICRO = 6, 4
CORRUPTED = (2, 1)
"""The batch and the micro-batch that is NaN. It is left out, so the window ends one micro-batch later."""


def main() -> None:
    """Fit a line."""
    # [watched]
    with optwrap.Monitor(run="micro-batches") as monitor:
        tx = optwrap.MultiSteps(optax.adam(0.1), MICRO, should_skip_update_fn=optwrap.skip_not_finite)
        tx = optwrap.instrument(tx, monitor)

        def micro_step(carry: Any, x: jax.Array) -> Any:
            params, opt_state = carry
            grads = jax.grad(lambda params: jnp.mean((x @ params["w"] - 1) ** 2))(params)
            params, opt_state = optwrap.apply_gradients(tx, grads, opt_state, params)
            return (params, opt_state), optwrap.reading(opt_state)

        train_step = jax.jit(lambda carry, batch: jax.lax.scan(micro_step, carry, batch))
        params = {"w": jnp.zeros(3)}
        carry = params, tx.init(params)
        for number in range(BATCHES):
            carry, readings = train_step(carry, batch(number))
            monitor.observe(readings)  # uint32[micro-batches, words]
    # [watched]


def batch(number: int) -> jax.Array:
    """Micro-batches of eight rows."""
    x = jax.random.normal(jax.random.key(number), (MICRO, 8, 3))
    return x.at[CORRUPTED[1], 0, 0].set(jnp.nan) if number == CORRUPTED[0] else x


if __name__ == "__main__":
    main()
